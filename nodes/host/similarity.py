"""Texts -> what the text encoders make of each as a whole, to compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import torch
from torch import Tensor

from .conditioning import encode_text

_MOST = 10_000
_known: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


def text_embedder(clip: Any, progress: Callable[[int, int], None] | None = None) -> Callable[[Sequence[str]], Tensor]:
    """A function: texts -> (texts, width), float32 on the CPU.

    A row is the pooled output, or the mean over tokens where there is none. Each text is encoded once for as long as
    the CLIP lives. progress(done, total) is called after each text.
    """

    def embed(texts: Sequence[str]) -> Tensor:
        known = _known.setdefault(clip, {})
        if len(known) > _MOST:
            known.clear()
        rows = []
        for number, text in enumerate(texts, 1):
            if text not in known:
                comfy.model_management.throw_exception_if_processing_interrupted()
                tokens, more = encode_text(clip, text)[0]
                pooled = more.get("pooled_output")
                row = pooled.flatten() if isinstance(pooled, Tensor) else tokens[0].mean(0)
                known[text] = row.detach().to("cpu", torch.float32)
            rows.append(known[text])
            if progress:
                progress(number, len(texts))
        return torch.stack(rows)

    return embed
