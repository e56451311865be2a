"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A markdown table; a cell's own line breaks and bars are made harmless."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([row(head), "|" + " --- |" * len(head), *map(row, body)])
