"""Who the room imports."""

from __future__ import annotations

import ast
from pathlib import Path

ROOM = Path(__file__).resolve().parents[2] / "experiments"


def test_it_imports_metrics_and_the_writer_of_whole_files_only() -> None:
    """Fails if a sweep needs a trainer, tinyworld or the devtools, which an installed pack does not have."""
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                module = str(node.module)
                assert module == "lora.atomic" or module.split(".")[0] == "metrics", f"{path.name}: {module}"
