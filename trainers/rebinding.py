"""Lets a model be trained that adds in place to what the backward pass still needs."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.div,
}
_BINARY_OP = dis.opmap.get("BINARY_OP", -1)  # Python 3.11 and newer; before, each operator had an opcode
_FIRST_INPLACE = 13  # NB_INPLACE_ADD, the first of the in-place arguments of BINARY_OP
_INPLACE = {code for name, code in dis.opmap.items() if name.startswith("INPLACE_")}


class Rebinding(TorchFunctionMode):
    """While active, the statement ``x += y`` (-=, *=, /=) makes a new tensor wherever gradients are taken.

    Flux's single block computes ``norm(x)`` and then does ``x += …``. Inference does not mind; but the norm keeps x
    for its backward pass, which then raises "modified by an inplace operation", or, when the block is recomputed,
    quietly takes the changed x and gives wrong gradients.

    The statement binds x to the operator's result, so a new tensor serves as well. A call of ``x.add_(y)`` does not;
    torch cannot tell the two apart, but the calling frame's instruction can.

    Attributes:
        count: statements replaced so far. A model that has none in one pass need not pay for the mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace the statements, pass everything else on."""
        replacement = _OUT_OF_PLACE.get(func)
        if (
            replacement is not None
            and torch.is_grad_enabled()
            and any(isinstance(value, Tensor) and value.requires_grad for value in args)
            and _is_statement(sys._getframe(1))
        ):
            self.count += 1
            result = replacement(*args, **(kwargs or {}))
            return result if result.dtype == args[0].dtype else result.to(args[0].dtype)
        return func(*args, **(kwargs or {}))


def _is_statement(frame: FrameType) -> bool:
    """Whether a frame is just now at an augmented assignment."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at] in _INPLACE or (code[at] == _BINARY_OP and code[at + 1] >= _FIRST_INPLACE)
