"""What a method that adapts ranks does around each step of the loop, and what it tells of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .config import TrainingConfig
from .lora import Adapters
from .resized import Resized


@dataclass(frozen=True)
class LayerRank:
    """A layer as it is now.

    Attributes:
        rank: components that it has.
        exported: rank in the file.
        norm: ‖ΔW‖, the Frobenius norm.
        nu: ν of the discretised exponential; None where the method has none.
    """

    rank: int
    exported: int
    norm: float
    nu: float | None = None


class RankControl(Protocol):
    """The loop's hooks. All of it is exact to resume: see :meth:`tensors`."""

    def penalty(self) -> Tensor | None:
        """What is added to a batch's loss, called after each forward pass; None: nothing."""

    def step(self, done: int, rate: float, unscale: float) -> Sequence[Resized]:
        """After the optimizer's step.

        Args:
            done: steps made, this one included.
            rate: of the learning rate's peak, in [0, 1], which the schedule has reached.
            unscale: what gradients are to be multiplied with.

        Returns:
            Parameters that were replaced.
        """

    def ranks(self) -> dict[str, LayerRank]:
        """Of each layer, by canonical name."""

    def counts(self) -> dict[str, int]:
        """The rank of each layer, without waiting for a device."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is not in the file of the LoRA or in the optimizer: CPU copies."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` took, to the bit.

        Raises:
            ValueError: it is of other layers.
        """


def rank_control(
    adapters: Adapters, config: TrainingConfig, entropy: Callable[[], Tensor | None] | None = None
) -> RankControl | None:
    """Of a configuration's algorithm; None where its ranks are fixed.

    Args:
        entropy: of the last forward pass, see :mod:`.attention_entropy`.
    """
    if config.algorithm == "adaptive":
        from .adaptive_rank import AdaptiveRanks

        return AdaptiveRanks(adapters, config, entropy)
    if config.algorithm == "adalora":
        from .adalora import AllocatedRanks

        return AllocatedRanks(adapters, config)
    return None


def check_names(there: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    """Whether a checkpoint's tensors are those that are expected.

    Raises:
        ValueError: says which are not.
    """
    if differing := sorted(set(there) ^ set(expected)):
        raise ValueError(
            f"The checkpoint's ranks are of other layers than this run's (for example {differing[0][:200]}). Use the "
            f"same model, targets and algorithm, or start anew."
        )
