"""Loads the repository's root once, under the name `likeness`, whatever its folder is called.

ComfyUI does the same under another name; so tests import `likeness.trainers.loop` and the pack's relative imports work.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("host", "browser", "quality")
FOLDER_TIERS = {"host": "host", "nodes": "host", "browser": "browser", "quality": "quality", "trust": "unit"}


def _load_pack() -> None:
    spec = importlib.util.spec_from_file_location(
        "likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["likeness"] = module
    spec.loader.exec_module(module)


if "likeness" not in sys.modules:
    _load_pack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its tier: by its own mark, else by its folder, else `unit`."""
    for item in items:
        if any(item.get_closest_marker(tier) for tier in TIERS):
            continue
        folder = item.path.relative_to(ROOT / "tests").parts[0] if item.path.is_relative_to(ROOT / "tests") else ""
        item.add_marker(FOLDER_TIERS.get(folder, "unit"))


@pytest.fixture(scope="session")
def host_path() -> Path:
    """The folder of the ComfyUI that tests run against: COMFYUI_PATH, else the one in .host/."""
    from likeness.devtools.paths import host_path as find

    host = find()
    if not (host / "main.py").is_file():
        pytest.fail(f"there is no ComfyUI in {host}: run ./test --setup-only, or set COMFYUI_PATH")
    return host


@pytest.fixture(scope="session")
def comfy(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The host's own modules, imported into this process on the CPU, with folders of its own.

    For tests (mark them `host`) that ask the host itself, e.g. `comfy.utils.unet_to_diffusers`. `import comfy.utils`
    works in the test's body once this fixture was asked for.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if str(host_path) not in sys.path:
        sys.path.insert(0, str(host_path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.lora
    import comfy.sd
    import comfy.utils
    import folder_paths

    base = tmp_path_factory.mktemp("in-process-host")
    for name in ("input", "output", "temp", "user"):
        (base / name).mkdir()
        getattr(folder_paths, f"set_{name}_directory")(str(base / name))
    loras = base / "models" / "loras"
    loras.mkdir(parents=True)
    folder_paths.add_model_folder_path("loras", str(loras), is_default=True)
    return SimpleNamespace(path=host_path, base=base, loras=loras, folder_paths=folder_paths, **vars(comfy))


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The assembled tiny-unet checkpoint (an ordinary SD1.5-family file). LIKENESS_CHECKPOINT names another one."""
    from likeness.devtools.checkpoint import tiny_checkpoint as find

    return find()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The server's base folder: models/, input/, output/, custom_nodes/likeness -> this checkout.

    models/checkpoints/tiny-unet.safetensors is there, and its hypernetwork.
    """
    from likeness.devtools.checkpoint import link_hypernetwork
    from likeness.devtools.server import make_base

    folder = make_base(tmp_path_factory.mktemp("server"))
    (folder / "models" / "checkpoints" / "tiny-unet.safetensors").symlink_to(tiny_checkpoint)
    link_hypernetwork(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_mmdit(base: Path) -> str:
    """The name of the second small model's checkpoint (SD3 family), in the server's base; assembled when asked for."""
    from likeness.devtools.checkpoint import is_shipped, link_checkpoint

    if not is_shipped("tiny-mmdit"):
        pytest.skip("NOT TESTED: the weights of tiny-mmdit are not in this checkout")
    return link_checkpoint(base, "tiny-mmdit").name


@pytest.fixture(scope="session")
def server(base: Path, host_path: Path, pytestconfig: pytest.Config) -> Iterator[Any]:
    """The running server; `server.address`, `server.base`, `server.log_text()`.

    Its log is left in .host/test-server.log when the session ends.
    """
    from likeness.devtools.server import Server

    running = Server(host_path, base)
    try:
        yield running.start()
    finally:
        running.stop()
        kept = pytestconfig.rootpath / ".host"
        kept.mkdir(exist_ok=True)
        shutil.copyfile(running.log, kept / "test-server.log")


@pytest.fixture()
def client(server: Any) -> Any:
    """A client of its own for each test."""
    from likeness.experiments.client import Client

    if not server.alive():
        pytest.fail(f"the server has ended.\n{server.log_tail()}")
    return Client(server.address)


@pytest.fixture(scope="session")
def object_info(server: Any) -> dict[str, object]:
    """The server's /object_info, asked once."""
    from likeness.experiments.client import Client

    return Client(server.address).object_info()


@pytest.fixture(scope="session")
def transformers4() -> dict[str, str]:
    """The environment of a process that imports transformers 4 (and its tokenizers) instead of the installed one.

    Run a test file once more in it, in one process: see tests/segmentation/test_older_transformers.py.
    """
    from likeness.devtools.paths import TRANSFORMERS4

    if not (TRANSFORMERS4 / "transformers").is_dir():
        pytest.fail(f"there is no older transformers in {TRANSFORMERS4}: run ./test --setup-only")
    return {**os.environ, "PYTHONPATH": str(TRANSFORMERS4), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Iterator[dict[str, Any]]:
    """What the quality tests measured; .host/quality.json has the last figure of each."""
    measured: dict[str, Any] = {}
    yield measured
    path = Path(pytestconfig.rootpath) / ".host" / "quality.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | measured, indent=1) + "\n")
