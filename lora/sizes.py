"""How large a weight the tensors of one layer change, whatever the algorithm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def changed_size(parts: Mapping[str, Tensor]) -> tuple[int, int | None] | None:
    """(outputs, everything else of the weight) that a LoHa, LoKr, OFT or full difference is made for.

    None in place of the second where the tensors leave it open, as OFT's do; None where they tell nothing, be it that
    they are of another kind or that they are malformed.
    """
    if any(tensor.ndim < 2 for name, tensor in parts.items() if name.startswith(("hada_", "lokr_", "oft_blocks"))):
        return None
    if {"hada_w1_a", "hada_w1_b"} <= set(parts):
        return _product(parts, "hada_w1_a", "hada_w1_b", "hada_t1")
    if any(name.startswith("lokr_w1") for name in parts):
        small, large = _full(parts, "lokr_w1", ""), _full(parts, "lokr_w2", "lokr_t2")
        return None if small is None or large is None else (small[0] * large[0], small[1] * large[1])
    if "oft_blocks" in parts and parts["oft_blocks"].ndim == 3:
        return parts["oft_blocks"].shape[0] * parts["oft_blocks"].shape[1], None
    if "diff" in parts and parts["diff"].ndim >= 2:
        return parts["diff"].shape[0], parts["diff"].shape[1:].numel()
    return None


def _full(parts: Mapping[str, Tensor], name: str, core: str) -> tuple[int, int] | None:
    """(rows, columns) of a factor that is there whole, or as two of low rank."""
    if name in parts:
        return parts[name].shape[0], parts[name].shape[1:].numel()
    if {f"{name}_a", f"{name}_b"} <= set(parts):
        return _product(parts, f"{name}_a", f"{name}_b", core)
    return None


def _product(parts: Mapping[str, Tensor], a: str, b: str, core: str) -> tuple[int, int]:
    """(rows, columns) of a @ b; with a Tucker core, a is the other way round and the core brings the kernel."""
    if core in parts:
        return parts[a].shape[1], parts[b].shape[1] * parts[core].shape[2:].numel()
    return parts[a].shape[0], parts[b].shape[1:].numel()
