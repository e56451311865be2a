"""What a LORA_MODEL socket carries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class LoraTensors(dict[str, Tensor]):
    """A plain dict of tensors in comfy naming, which is what the host's own LoRA nodes take, plus what is known of it.

    metadata: the text pairs of a safetensors header. A dict that comes from one of the host's nodes has none; use
    ``metadata_of`` to read it from either.
    """

    metadata: dict[str, str]

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(tensors or {})
        self.metadata = dict(metadata or {})


def metadata_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A copy of the metadata of a LORA_MODEL; empty where it has none."""
    return dict(getattr(tensors, "metadata", {}))
