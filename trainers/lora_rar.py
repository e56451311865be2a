"""Teaching LoRA.rar's hypernetwork: pairs of LoRAs, a pair a step (Shenaj et al. 2025, arXiv 2412.05148).

The loss is ZipLoRA's (see :mod:`.zip_lora`), with coefficients that the network predicts in place of coefficients of
their own, and |cos(m₁, m₂)| of each layer, summed, in place of the overlap. Pairs that are held out tell whether what
was learnt holds for LoRAs that were never seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.delta import LowRankDelta
from . import optimizers
from .batches import check_data
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Denoiser
from .economy import economised
from .loop import FP16_LOSS_SCALE, Callbacks, training_mode
from .randomness import generator
from .schedule import rate_factor
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


class _Run:
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
        self.denoiser, self.network, self.asked, self.library = denoiser, network, asked, library
        self.config, self.cosine_weight, self.callbacks = config, cosine_weight, callbacks
        network.to(denoiser.device)
        if start is not None:
            mine = {name: tuple(each.shape) for name, each in network.state_dict().items()}
            if mine != {name: tuple(each.shape) for name, each in start.coefficients.items()}:
                raise ValueError("The run to resume from is of a hypernetwork of other layers. Start anew.")
            if start.step > config.steps:
                raise ValueError(f"The run to resume from has {start.step} steps already; set steps to that or above.")
            network.load_state_dict(start.coefficients)
        self.parameters = list(network.parameters())
        self.optimizer = optimizers.build(config.optimizer, self.parameters, config.learning_rate, 0.0)
        self.step = 0
        self.records: list[Mapping[str, float]] = []
        if start is not None:
            optimizers.load_state_tensors(self.optimizer, start.optimizer)
            self.step, self.records = start.step, list(start.records)
            for record in self.records:
                callbacks.record(record)
        half = any(parameter.dtype == torch.float16 for parameter in denoiser.module.parameters())
        self.loss_scale = FP16_LOSS_SCALE if half else 1.0

    def go(self, held_out: Sequence[tuple[Taught, Taught]], save: Callable[[ZipState], None] | None) -> RarTrained:
        """Learn, then measure the held-out pairs."""
        config, first, began = self.config, self.step, time.monotonic()
        while self.step < config.steps and not self.callbacks.cancelled():
            self._advance()
            left = (time.monotonic() - began) / (self.step - first) * (config.steps - self.step)
            self.callbacks.progress(self.step, config.steps, self.records[-1]["loss"], left)
            if save is not None and config.checkpoint_every and self.step % config.checkpoint_every == 0:
                save(self._state())
        seconds = time.monotonic() - began
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
        limit = config.max_grad_norm if config.max_grad_norm > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)
        rate = config.learning_rate * rate_factor(self.step, config.schedule, config.warmup_steps, config.steps)
        optimizers.set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.step += 1
        values = torch.stack([*fits, cosine.detach(), norm]).tolist()
        loss = values[0] + values[1] + self.cosine_weight * values[2]
        if not all(math.isfinite(value) for value in (loss, *values)):
            raise ValueError(
                f"The loss became {loss} at step {self.step}. Lower the learning rate (it is "
                f"{config.learning_rate:g}), or load the model in bf16 or fp32."
            )
        record = {"step": self.step, "loss": loss, "fit_1": values[0], "fit_2": values[1], "cosine": values[2]}
        record |= {"gradient_norm": values[3], "learning_rate": rate, "subject": numbers[0], "style": numbers[1]}
        self.records.append(record)
        self.callbacks.record(record)

    def _state(self) -> ZipState:
        numbers = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        records = tuple(dict(record) for record in self.records)
        return ZipState(self.step, records, numbers, optimizers.state_tensors(self.optimizer))
