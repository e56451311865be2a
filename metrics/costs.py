"""What a method costs, as rows beside its scores: seconds a picture, trained numbers, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .rows import Row


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures that was drawn at once.

    Attributes:
        pictures: so many.
        seconds: that it took, sampling and decoding.
        warm_up: it was the first of a run, which loads the model.
    """

    pictures: int
    seconds: float
    warm_up: bool = False


def seconds_a_picture(batches: Sequence[Drawn]) -> float | None:
    """Mean over all batches that are no warm-up; None where there is no other."""
    rest = [batch for batch in batches if not batch.warm_up]
    pictures = sum(batch.pictures for batch in rest)
    return sum(batch.seconds for batch in rest) / pictures if pictures else None


def time_row(batches: Sequence[Drawn], method: str, step: int | None, how: str) -> Row:
    """The row of `seconds_a_picture`.

    Args:
        how: what was drawn: size, sampler, steps, device. Times of different ones stand in columns of their own.
    """
    seconds = seconds_a_picture(batches)
    note = "" if seconds is not None else "no time: all pictures were drawn in one batch, which is the warm-up"
    return Row("seconds_a_picture", seconds, method, step=step, model=how, note=note)


def lora_rows(tensors: Mapping[str, Tensor], method: str, step: int | None) -> list[Row]:
    """Rows of trained numbers and of the tensors' size as they are. Alphas are counted in neither.

    Raises:
        ValueError: there is no tensor.
    """
    trained = [tensor for name, tensor in tensors.items() if not name.endswith(".alpha")]
    if not trained:
        raise ValueError("the LoRA has no tensors: wire the one that was trained or loaded")
    size = sum(tensor.numel() * tensor.element_size() for tensor in trained) / 1e6
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in trained}))
    return [
        Row("trained_parameters", float(sum(tensor.numel() for tensor in trained)), method, step=step),
        Row("file_size", size, method, step=step, model=f"tensors in {dtypes}"),
    ]
