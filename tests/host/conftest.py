"""One real ComfyUI for the whole session, in a base folder of its own, with the pack linked in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from likeness.devtools.client import Client
from likeness.devtools.server import Server, make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The server's base folder: models/, input/, output/, custom_nodes/likeness -> this checkout.

    models/checkpoints/tiny-unet.safetensors is there.
    """
    folder = make_base(tmp_path_factory.mktemp("server"))
    (folder / "models" / "checkpoints" / "tiny-unet.safetensors").symlink_to(tiny_checkpoint)
    return folder


@pytest.fixture(scope="session")
def server(base: Path, host_path: Path, pytestconfig: pytest.Config) -> Iterator[Server]:
    """The running server; `server.address`, `server.base`, `server.log_text()`.

    Its log is left in .host/test-server.log when the session ends.
    """
    running = Server(host_path, base)
    try:
        yield running.start()
    finally:
        running.stop()
        kept = pytestconfig.rootpath / ".host"
        kept.mkdir(exist_ok=True)
        shutil.copyfile(running.log, kept / "test-server.log")


@pytest.fixture()
def client(server: Server) -> Client:
    """A client of its own for each test."""
    if not server.alive():
        pytest.fail(f"the server has ended.\n{server.log_tail()}")
    return Client(server.address)


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, object]:
    """The server's /object_info, asked once."""
    return Client(server.address).object_info()
