"""What a run is worth: numbers that its nodes showed, sizes of files, and scores of its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, UnidentifiedImageError

from ..metrics.features import Features, efficientnet_lite0
from ..metrics.registry import METRICS
from .graph import filled, find_node
from .store import Record
from .sweep import Sweep

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Finished:
    """A run that is done, for scorers. Nodes are named as in `graph.find_node`."""

    folder: Path
    graph: Mapping[str, Any]
    record: Record

    @property
    def values(self) -> dict[str, Any]:
        return self.record.values

    def text(self, node: str) -> str:
        """What a node showed. Raises ValueError where it showed nothing."""
        node_id = find_node(self.graph, node)
        if node_id not in self.record.texts:
            raise ValueError(f"node {node!r} showed no text; wire what it gives to a Preview Any node, and name that")
        return self.record.texts[node_id]

    def pictures(self, node: str) -> torch.Tensor:
        """A node's pictures, (N, 3, H, W) in [0, 1]. Raises ValueError where it gave none."""
        files = self.record.files.get(find_node(self.graph, node)) or []
        if not files:
            raise ValueError(f"node {node!r} gave no picture: name a Save Image or Preview Image node")
        return pictures_of([self.folder / file for file in files])

    def size(self, node: str) -> int:
        """Bytes of the file that a node says it wrote."""
        return self.record.sizes[find_node(self.graph, node)]


Scorer = Callable[[Finished], Mapping[str, float]]
"""A finished run -> {column: number}. Raises ValueError where it cannot be scored."""


def pictures_of(paths: Sequence[Path]) -> torch.Tensor:
    """Pictures of one size -> (N, 3, H, W) in [0, 1], of whatever sizes otherwise resized to the first one's."""
    opened: list[Image.Image] = []
    for path in paths:
        try:
            picture = Image.open(path).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{path} is no picture: {error}") from None
        opened.append(picture if not opened else picture.resize(opened[0].size, Image.Resampling.BICUBIC))
    return torch.stack([torch.from_numpy(numpy.array(picture)) for picture in opened]).permute(0, 3, 1, 2) / 255


def scorer_of(sweep: Sweep) -> Scorer:
    """The results and scores that the sweep's definition names."""

    def score(finished: Finished) -> dict[str, float]:
        found = {name: _number(finished, name, described) for name, described in sweep.results.items()}
        for name, described in sweep.scores.items():
            found[name] = _score(finished, described)
        return found

    return score


def sized_nodes(sweep: Sweep) -> list[str]:
    """Ids of the nodes whose files' sizes are results."""
    return [find_node(sweep.graph, result["file"]) for result in sweep.results.values() if "file" in result]


def _number(finished: Finished, name: str, described: Mapping[str, Any]) -> float:
    """One entry of "results": {"file": node}, in MB, or {"node": …} with "json": path, "pattern": regex, or neither."""
    if "file" in described:
        return finished.size(described["file"]) / 1e6
    text = finished.text(described["node"])
    try:
        if "json" in described:
            value: Any = json.loads(text)
            for part in str(described["json"]).split("."):
                value = value[int(part)] if isinstance(value, list) else value[part]
            return float(value)
        if "pattern" in described:
            found = re.search(described["pattern"], text)
            if found is None:
                raise ValueError(f"{described['pattern']!r} is not in it")
            return float(found.group(1 if found.re.groups else 0))
        return float(text)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no {name} in what node {described['node']!r} showed ({text[:80]!r}): {error}") from None


def _score(finished: Finished, described: Mapping[str, Any]) -> float:
    """One entry of "scores": {"metric": a name, "pictures": node, "references": folder, "detail": pixels}."""
    metric = str(described.get("metric", "subject_similarity"))
    if metric not in METRICS:
        raise ValueError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
    if METRICS[metric].takes != "pictures":
        there = ", ".join(name for name, one in METRICS.items() if one.takes == "pictures")
        raise ValueError(f"{metric} does not compare pictures by the features that a sweep has; of these are {there}")
    folder = Path(filled(described["references"], finished.values))
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise ValueError(f"there is no reference picture in {folder}")
    features = _features(described.get("detail"))
    return METRICS[metric].function(finished.pictures(described["pictures"]), pictures_of(paths), features)


@cache
def _features(detail: int | None) -> Features:
    return efficientnet_lite0(detail)
