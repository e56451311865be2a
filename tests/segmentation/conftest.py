"""Folders of tiny random models, made once for all tests of the room."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _tiny_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """grounding-dino, sam and sam2, each a folder as on the hub."""
    made, base = _tiny_models(), tmp_path_factory.mktemp("tiny-models")
    return {
        "grounding-dino": made.grounding_dino(base / "grounding-dino"),
        "sam": made.sam(base / "sam"),
        "sam2": made.sam2(base / "sam2"),
    }
