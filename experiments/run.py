#!/usr/bin/env python3
"""Runs a sweep from a clone or from custom_nodes, whatever the folder is called: see docs/experiments.md.

python experiments/run.py sweep.json --host http://127.0.0.1:8188 --folder out
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> None:
    """Load the root under the name `likeness`, as ComfyUI does under another; then relative imports work."""
    spec = importlib.util.spec_from_file_location(
        "likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["likeness"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load_pack()
    sys.exit(importlib.import_module("likeness.experiments.cli").main(sys.argv[1:]))
