"""A real ComfyUI as a child process, in a base folder of its own, on a free port.

Everything the server reads and writes (models, custom_nodes, input, output, temp, user, its database) lies below the
base folder, so that no run touches another one's files, nor the user's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .paths import ROOT

PACK_NAME = "likeness"
BASE_FOLDERS = ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "temp", "user")
CPU_FLAGS = ("--cpu", "--use-pytorch-cross-attention")  # the fast attention on a CPU
HEADLESS_FLAGS = ("--disable-api-nodes", "--disable-auto-launch")


class ServerFailed(RuntimeError):
    """The server did not come up, or went down; the message ends with the tail of its log."""


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def linked_pack(base: Path, pack: Path = ROOT) -> Path | None:
    """The entry of base/custom_nodes that is this pack (a link, a copy's own folder, any name), or None."""
    folder = base / "custom_nodes"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((entry for entry in entries if entry.exists() and entry.resolve() == pack.resolve()), None)


def make_base(base: Path, pack: Path | None = ROOT) -> Path:
    """Make the folders of a server's base and link the pack into custom_nodes, unless it is there already.

    Raises:
        ValueError: another thing already has the pack's name in custom_nodes.
    """
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    if pack is not None and linked_pack(base, pack) is None:
        link = base / "custom_nodes" / PACK_NAME
        if link.is_symlink() and not link.exists():
            link.unlink()  # left by a checkout that has moved
        if link.exists() or link.is_symlink():
            raise ValueError(f"{link} is already there and is not this checkout; move it away, or run that one")
        link.symlink_to(pack.resolve(), target_is_directory=True)
    return base


class Server:
    """One ComfyUI process. Use it as a context manager, or call start() and stop().

    Args:
        host: the folder that holds ComfyUI's main.py.
        base: the base folder, made by make_base.
        python: the interpreter to run it with.
        port: a port, or None for a free one.
        flags: more of ComfyUI's command line flags, e.g. CPU_FLAGS.
        log: where its output goes; base/server.log unless told.
        env: variables to add to the environment.
    """

    def __init__(
        self,
        host: Path,
        base: Path,
        *,
        python: str | Path = sys.executable,
        port: int | None = None,
        flags: Sequence[str] = (*CPU_FLAGS, *HEADLESS_FLAGS),
        log: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.host, self.base, self.python = Path(host).absolute(), Path(base).absolute(), str(python)
        self.port = port or free_port()
        self.flags = tuple(flags)
        self.log = log or self.base / "server.log"
        self.env = dict(env or {})
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        database = f"sqlite:///{self.base / 'user' / 'comfyui.db'}"
        return [
            *(self.python, str(self.host / "main.py"), "--port", str(self.port)),
            *("--base-directory", str(self.base), "--database-url", database),
            *self.flags,
        ]

    def start(self, timeout: float = 300.0) -> Server:
        """Start the process and wait until it answers; whatever goes wrong meanwhile, no process stays behind.

        Raises:
            ServerFailed: it ended, or did not answer within `timeout` seconds.
        """
        if not (self.host / "main.py").is_file():
            raise ServerFailed(f"there is no ComfyUI in {self.host}; run ./test --setup-only, or set COMFYUI_PATH")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.base,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal reaches us, who then stop it in order
            )
        try:
            self._wait_until_it_answers(timeout)
        except BaseException:  # a Ctrl-C too
            self.stop()
            raise
        return self

    def stop(self, grace: float = 10.0) -> None:
        """Ask the process to end; kill it when it has not within `grace` seconds. Safe to call twice."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def _wait_until_it_answers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.alive():
                code = self.process.returncode if self.process is not None else None
                raise ServerFailed(f"ComfyUI ended with code {code}.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"ComfyUI did not answer within {timeout:.0f} s.\n{self.log_tail()}")
            time.sleep(0.25)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/system_stats", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
