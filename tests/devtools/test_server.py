"""The child process itself, with a stand-in for ComfyUI that is a few lines long."""

from __future__ import annotations

import os

import pytest

from likeness.devtools.server import Server, ServerFailed, make_base

ANSWERS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def host(tmp_path, program: str):
    (tmp_path / "main.py").write_text(program)
    return tmp_path


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_is_there_inside_the_block_and_gone_after_it(tmp_path):
    """Fails if the process outlives the block, an error inside it included."""
    server = Server(host(tmp_path, ANSWERS), make_base(tmp_path / "base", None))
    with pytest.raises(RuntimeError, match="inside"), server:
        assert server.alive()
        pid = server.process.pid
        raise RuntimeError("inside")
    assert gone(pid) and not server.alive()


def test_a_server_that_ends_says_why(tmp_path):
    """Fails if the log's last words are lost, or the wait goes on to its limit."""
    server = Server(host(tmp_path, "raise SystemExit('no such model')"), make_base(tmp_path / "base", None))
    with pytest.raises(ServerFailed, match="no such model"):
        server.start(timeout=60)


def test_a_wait_that_is_broken_off_leaves_no_process(tmp_path, monkeypatch):
    """Fails if Ctrl-C, or the end of patience, while it starts leaves a server behind."""
    server = Server(host(tmp_path, "import time; time.sleep(60)"), make_base(tmp_path / "base", None))
    with pytest.raises(ServerFailed, match="did not answer"):
        server.start(timeout=0.5)
    assert gone(server.process.pid)

    def interrupted() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert gone(server.process.pid)
