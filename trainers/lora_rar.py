"""Teaching LoRA.rar's hypernetwork: pairs of LoRAs, a pair a step (Shenaj et al. 2025, arXiv 2412.05148).

The loss is ZipLoRA's (see :mod:`.zip_lora`), with coefficients that the network predicts in place of coefficients of
their own, and |cos(m₁, m₂)| of each layer, summed, in place of the overlap. Pairs that are held out tell whether what
was learnt holds for LoRAs that were never seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.delta import LowRankDelta
from .batches import check_data
from .column_run import ColumnRun
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Denoiser
from .economy import economised
from .loop import training_mode
from .outcome import Callbacks
from .randomness import generator
from .targets import PREFIX
from .zip_branch import BASE, MERGED, SUM, zipped
from .zip_questions import Concept, Fit, ZipQuestions
from .zip_state import ZipState


class ColumnNetwork(Protocol):
    """What predicts coefficients; ``merging.lora_rar.HyperNetwork`` is one."""

    def coefficients(self, one: LowRankDelta, other: LowRankDelta) -> Tensor | None:
        """(2, in) of a layer's two ΔW, differentiable in the parameters; None where it does not know the layer."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is taught."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its numbers."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Put them back."""

    def to(self, device: torch.device) -> Any:
        """Move it."""


@dataclass(frozen=True)
class Taught:
    """A LoRA of the library.

    Attributes:
        name: for messages.
        load: gives canonical layer -> ΔW when it is asked for, so that a library need not be in memory.
        data: latents and captions in its words.
        imagined: see ``zip_questions.Concept``.
    """

    name: str
    load: Callable[[], Mapping[str, LowRankDelta]]
    data: TrainingSet
    imagined: bool = False

    def concept(self) -> Concept:
        """With its layers read."""
        return Concept(self.name, self.load(), self.data, self.imagined)


@dataclass(frozen=True)
class RarTrained:
    """What was taught; the network itself has the numbers.

    Attributes:
        steps_done: fewer than asked for where the caller cancelled.
        records: a line a step: step, loss, fit_1 (subject), fit_2 (style), cosine, subject, style (numbers), …
        fits: (subject's name, style's name) -> (subject's, style's fit) of the held-out pairs.
        state: to go on from.
        seconds: of the steps alone.
    """

    steps_done: int
    records: tuple[Mapping[str, float], ...]
    fits: Mapping[tuple[str, str], tuple[Fit, Fit]]
    state: ZipState
    seconds: float


def train_rar(
    denoiser: Denoiser,
    network: ColumnNetwork,
    asked: Callable[[str], bool],
    library: tuple[Sequence[Taught], Sequence[Taught]],
    held_out: Sequence[tuple[Taught, Taught]],
    config: TrainingConfig,
    cosine_weight: float = 0.01,
    callbacks: Callbacks | None = None,
    start: ZipState | None = None,
    save: Callable[[ZipState], None] | None = None,
) -> RarTrained:
    """Teach ``network``; the model is as it was when this returns or raises.

    Args:
        asked: which canonical layers the network is asked of.
        library: (subjects, styles) to learn from; a pair of them is drawn at each step.
        held_out: pairs that are measured and not learnt from.
        config: steps, learning rate, seed, batches, noise levels, optimizer, and what saves memory.
        cosine_weight: λ.
        callbacks: progress, cancel and records; cancelled, what was learnt so far is returned.
        start: of an earlier run, to go on from bit for bit.
        save: gets the state every ``config.checkpoint_every`` steps, where that is above 0.

    Raises:
        ValueError: nothing to learn from, LoRAs or state do not fit, or the loss became no number.
    """
    config = replace(config, weight_decay=0.0, algorithm="lora").validate()
    if not math.isfinite(cosine_weight) or cosine_weight < 0:
        raise ValueError(f"The weight of the cosine is {cosine_weight}; expected 0 or more.")
    for what, each in zip(("subject", "style"), library, strict=True):
        if not each:
            raise ValueError(f"There is no {what} to learn from: the library needs LoRAs of both kinds.")
        for taught in each:
            check_data(taught.data)
    with ExitStack() as stack:
        stack.enter_context(training_mode(denoiser.device))
        return _Run(denoiser, network, asked, library, config, cosine_weight, callbacks or Callbacks(), start).go(
            held_out, save
        )


class _Run(ColumnRun):
    """One call of :func:`train_rar`."""

    def __init__(
        self,
        denoiser: Denoiser,
        network: ColumnNetwork,
        asked: Callable[[str], bool],
        library: tuple[Sequence[Taught], Sequence[Taught]],
        config: TrainingConfig,
        cosine_weight: float,
        callbacks: Callbacks,
        start: ZipState | None,
    ) -> None:
        network.to(denoiser.device)
        if start is not None:
            mine = {name: tuple(each.shape) for name, each in network.state_dict().items()}
            if mine != {name: tuple(each.shape) for name, each in start.coefficients.items()}:
                raise ValueError("The run to resume from is of a hypernetwork of other layers. Start anew.")
            network.load_state_dict(start.coefficients)
        super().__init__(denoiser, config, callbacks, list(network.parameters()))
        self.network, self.asked, self.library, self.cosine_weight = network, asked, library, cosine_weight
        if start is not None:
            self._go_on(start)

    def go(self, held_out: Sequence[tuple[Taught, Taught]], save: Callable[[ZipState], None] | None) -> RarTrained:
        """Learn, then measure the held-out pairs."""
        seconds = self._learn(save)
        fits = {}
        for subject, style in held_out:
            with torch.no_grad(), self._paired(subject, style) as (questions, _):
                found = [Fit(*each) for each in questions.probes((BASE, SUM, MERGED))]
            fits[subject.name, style.name] = (found[0], found[1])
        return RarTrained(self.step, tuple(self.records), fits, self._state(), seconds)

    @contextmanager
    def _paired(
        self, subject: Taught, style: Taught
    ) -> Iterator[tuple[ZipQuestions, dict[str, tuple[Tensor, Tensor]]]]:
        """The pair beside the model's layers; layer -> (what the network predicts, the leaf that the model uses)."""
        concepts = [subject.concept(), style.concept()]
        layers = [concept.layers for concept in concepts]
        denoiser, config = self.denoiser, self.config
        with ExitStack() as stack:
            branches = stack.enter_context(zipped(denoiser.module, layers, (), denoiser.device))
            stack.enter_context(economised(denoiser.module, {PREFIX: denoiser.module}, config, denoiser.device))
            used: dict[str, tuple[Tensor, Tensor]] = {}
            for name, layer in branches.layers.items():
                if len(layer.loras) == 2 and self.asked(name):
                    predicted = self.network.coefficients(*(each[name] for each in layers))
                    if predicted is not None:
                        leaf = predicted.detach().clone().requires_grad_(torch.is_grad_enabled())
                        layer.m = leaf
                        used[name] = (predicted, leaf)
            if not used:
                raise ValueError(
                    f"The hypernetwork knows no layer that {subject.name} and {style.name} both change. Use LoRAs of "
                    f"attention layers, all of one model."
                )
            yield ZipQuestions(denoiser, concepts, config, branches), used

    def _advance(self) -> None:
        """One step: a pair, its two questions, and back through the network."""
        config, scale = self.config, self.loss_scale
        chance = generator(config.seed, "pair", self.step)
        numbers = [int(torch.randint(len(each), (), generator=chance)) for each in self.library]
        pair = [each[number] for each, number in zip(self.library, numbers, strict=True)]
        self.optimizer.zero_grad(set_to_none=True)
        with self._paired(pair[0], pair[1]) as (questions, used):
            fits = []
            for index in range(2):
                fit = questions.fit(index, self.step, MERGED, ("rar", self.step))
                (fit * scale).backward()  # type: ignore[no-untyped-call]
                fits.append(fit.detach())
            together = [predicted for predicted, _ in used.values()]
            cosine = torch.stack([F.cosine_similarity(m[0], m[1], dim=0).abs() for m in together]).sum()
            gradients = [
                torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale for _, leaf in used.values()
            ]
            penalty = self.cosine_weight * cosine
            torch.autograd.backward([*together, penalty], [*gradients, torch.ones_like(penalty)])
        norm, rate = self._update()
        values = torch.stack([*fits, cosine.detach(), norm]).tolist()
        loss = values[0] + values[1] + self.cosine_weight * values[2]
        named = dict(zip(("fit_1", "fit_2", "cosine", "gradient_norm"), values, strict=True))
        drawn = {"subject": numbers[0], "style": numbers[1]}
        self._record({"loss": loss, **named, "learning_rate": rate, **drawn})

    def _numbers(self) -> dict[str, Tensor]:
        return self.network.state_dict()
