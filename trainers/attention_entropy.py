"""The entropy of cross-attention: on how many words each place of the picture looks.

LoRA² (arXiv 2603.21884) has it as its third loss. The texts at hand say only that it is made small; so here it is the
Shannon entropy of each place's attention over the tokens, softmax(q kᵀ/√d), divided by its greatest value ln(tokens):
1 is even over all tokens, 0 all on one. Its mean is taken over places, heads and layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.resolve import MODEL
from ..lora.roles import CROSS, role_of


def attention_entropy(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """In [0, 1], a scalar, in float32.

    Args:
        q: (B, places, heads·d).
        k: (B, tokens, heads·d), two tokens or more.
    """
    q, k = (torch.unflatten(each.float(), -1, (heads, -1)).transpose(1, 2) for each in (q, k))
    logs = torch.log_softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
    return -(logs.exp() * logs).sum(-1).mean() / math.log(k.shape[-2])


@contextmanager
def cross_attention_entropy(module: nn.Module) -> Iterator[Callable[[], Tensor | None]]:
    """Watch a model's cross-attention for as long as the context lasts; call what is yielded after a forward pass.

    It gives that pass's entropy with its graph, None where there was no pass with gradients, and forgets it.

    Raises:
        ValueError: the model has no cross-attention of its own (Flux, SD3), or in a form that is not known.
    """
    layers = [
        part
        for name, part in module.named_modules()
        if role_of(f"{MODEL}{name}.to_q") == CROSS
        and all(hasattr(part, needed) for needed in ("to_q", "to_k", "heads"))
    ]
    if not layers:
        raise ValueError(
            "entropy_weight is above 0, and this model has no cross-attention with a query and a key of its own (as "
            "Flux and SD3 have none). Set it to 0."
        )
    seen: dict[int, dict[str, Tensor]] = {}

    def note(number: int, which: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(_layer: Any, _inputs: Any, out: Tensor) -> None:
            if out.requires_grad:
                seen.setdefault(number, {})[which] = out

        return hook

    def now() -> Tensor | None:
        found = [
            attention_entropy(pair["q"], pair["k"], layers[number].heads)
            for number, pair in seen.items()
            if len(pair) == 2 and pair["k"].shape[1] > 1
        ]
        seen.clear()
        return torch.stack(found).mean() if found else None

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            for which in ("q", "k"):
                handle = getattr(layer, f"to_{which}").register_forward_hook(note(number, which))
                stack.callback(handle.remove)
        yield now
