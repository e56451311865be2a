"""ZipLoRA: how much of each input column of each LoRA is to be kept (Shah et al. 2024, arXiv 2311.13600).

A subject's LoRA and a style's, added up, disturb each other most where their columns point the same way (§4 there). So
ΔW = Σᵢ ΔWᵢ diag(mᵢ), m learnt from 1 on, so that the merged model answers each LoRA's prompt as it alone does,
while the columns that two of them share become fewer:

    L = Σᵢ ‖merged(xᵢ, pᵢ) − LoRAᵢ(xᵢ, pᵢ)‖² + λ Σ_layers Σ_{i<j} mean |mᵢ ⊙ mⱼ|

- *The first terms* are mean squared errors of what the network itself predicts (ε, v or the flow), as in the authors'
  published recipe; the paper writes a norm. Teachers and merged model see the same noise and noise level.
- *The last term* the paper writes |m_c · m_s|, a sum over layers. Taken as an inner product (or cosine) it is 0 where
  positive and negative products cancel, though every column is shared; taken column by column it is 0 only where none
  is. The latter is used here, as a mean over a layer's columns, so that λ means the same for wide and narrow layers.
  With the published λ of .01 it outweighs the errors of small models, and most columns fade; .001 is the default here.
- *k LoRAs* in place of two: a teacher each, and the last term over all pairs.

The coefficients go into A (see ``lora.columns``), so the result is an ordinary LoRA whose ranks add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..lora.columns import Columns
from . import optimizers
from .batches import check_data
from .column_run import ColumnRun
from .config import TrainingConfig
from .denoiser import Denoiser
from .economy import economised
from .loop import training_mode
from .outcome import Callbacks
from .targets import PREFIX, matched_layers
from .zip_branch import BASE, MERGED, SUM, ZipBranches, zipped
from .zip_questions import Concept, Fit, ZipQuestions
from .zip_state import ZipState


@dataclass(frozen=True)
class Zipped:
    """What was learnt.

    Attributes:
        columns: canonical layer -> coefficients, of the layers that learnt.
        steps_done: updates made; fewer than asked for where the caller cancelled.
        records: a line a step: step, loss, fit_1 …, overlap, gradient_norm, learning_rate.
        fits: of each concept.
        state: to go on from.
        factor_bytes: of the LoRAs' own factors on the device.
        coefficients: how many numbers were learnt.
        seconds: of the steps alone.
        notes: what was done for memory, in words.
    """

    columns: Mapping[str, Columns]
    steps_done: int
    records: tuple[Mapping[str, float], ...]
    fits: tuple[Fit, ...]
    state: ZipState
    factor_bytes: int
    coefficients: int
    seconds: float
    notes: tuple[str, ...] = field(default=())


def check_concepts(concepts: Sequence[Concept]) -> None:
    """Whether there is something to merge. Raises ValueError."""
    if len(concepts) < 2:
        raise ValueError(f"There are {len(concepts)} LoRAs to merge; expected two or more.")
    for concept in concepts:
        if not concept.layers:
            raise ValueError(f"{concept.name} changes no layer of the diffusion model; there is nothing to merge.")
        check_data(concept.data)


def zip_loras(
    denoiser: Denoiser,
    concepts: Sequence[Concept],
    config: TrainingConfig,
    overlap_weight: float = 0.001,
    callbacks: Callbacks | None = None,
    start: ZipState | None = None,
    save: Callable[[ZipState], None] | None = None,
) -> Zipped:
    """Learn the coefficients of two or more LoRAs; ``denoiser.module`` is as it was when this returns or raises.

    Args:
        denoiser: the base model, without the LoRAs.
        concepts: at least two.
        config: steps, learning rate, seed, batches, noise levels, optimizer, targets (whose coefficients are learnt; in
            all other layers the LoRAs are added up), and what saves memory. Weight decay is not heeded: it would pull
            coefficients to 0.
        overlap_weight: λ.
        callbacks: progress, cancel and records; cancelled, what was learnt so far is returned.
        start: of an earlier run, to go on from bit for bit.
        save: gets the state every ``config.checkpoint_every`` steps, where that is above 0.

    Raises:
        ValueError: nothing to merge or learn, LoRAs or state do not fit, or the loss became no number.
    """
    config = replace(config, weight_decay=0.0, algorithm="lora").validate()
    if not math.isfinite(overlap_weight) or overlap_weight < 0:
        raise ValueError(f"The weight of the overlap is {overlap_weight}; expected 0 or more.")
    check_concepts(concepts)
    changed = {name for concept in concepts for name in concept.layers}
    matched = matched_layers({PREFIX: denoiser.module}, config.targets, config.target_pattern)
    learning = [name for name in matched if name in changed]
    if not learning:
        raise ValueError(
            f"The LoRAs change none of the {len(matched)} layers that the targets {config.targets!r} name; they change "
            f"{sorted(changed)[0]}, for example. Choose the targets 'all'."
        )
    with ExitStack() as stack:
        stack.enter_context(training_mode(denoiser.device))
        layers = [concept.layers for concept in concepts]
        branches = stack.enter_context(zipped(denoiser.module, layers, learning, denoiser.device))
        economies = stack.enter_context(economised(denoiser.module, {PREFIX: denoiser.module}, config, denoiser.device))
        run = _Run(denoiser, concepts, config, overlap_weight, callbacks or Callbacks(), branches, start)
        found = run.go(save)
        return replace(found, notes=tuple(economies.lines()))


class _Run(ColumnRun):
    """One call of :func:`zip_loras`, once the branches are in place."""

    def __init__(
        self,
        denoiser: Denoiser,
        concepts: Sequence[Concept],
        config: TrainingConfig,
        overlap_weight: float,
        callbacks: Callbacks,
        branches: ZipBranches,
        start: ZipState | None,
    ) -> None:
        super().__init__(denoiser, config, callbacks, branches.parameters())
        self.concepts, self.overlap_weight, self.branches = concepts, overlap_weight, branches
        self.questions = ZipQuestions(denoiser, concepts, config, branches)
        if start is not None:
            self._resume(start)

    def go(self, save: Callable[[ZipState], None] | None) -> Zipped:
        """Measure, learn, measure."""
        before = self.questions.probes((BASE, SUM))
        seconds = self._learn(save)
        with optimizers.averaged(self.optimizer):
            after = self.questions.probes((MERGED,))
            columns = self.branches.columns()
        fits = tuple(Fit(*one, *other) for one, other in zip(before, after, strict=True))
        held, count = self.branches.sizes()
        return Zipped(columns, self.step, tuple(self.records), fits, self._state(), held, count, seconds)

    def _advance(self) -> None:
        """One step: for each concept a pass of its teacher and one of the merged model, forth and back."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        for part in range(config.gradient_accumulation):
            number = self.step * config.gradient_accumulation + part
            for index in range(len(self.concepts)):
                fit = self.questions.fit(index, number, MERGED, ("zip", number))
                (fit * (self.loss_scale / config.gradient_accumulation)).backward()  # type: ignore[no-untyped-call]
                name = f"fit_{index + 1}"
                values[name] = values.get(name, 0.0) + fit.detach() / config.gradient_accumulation
        overlap = self.branches.overlap()
        if overlap.requires_grad and self.overlap_weight > 0:
            (overlap * (self.overlap_weight * self.loss_scale)).backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        if not gradients:
            raise ValueError("No coefficient got a gradient: the model does not use the layers that the LoRAs change.")
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        norm, rate = self._update()
        fits = torch.stack([*values.values(), overlap.detach().to(norm.device), norm]).tolist()
        loss = sum(fits[:-2]) + self.overlap_weight * fits[-2]
        named = dict(zip((*values, "overlap", "gradient_norm"), fits, strict=True))
        self._record({"loss": loss, **named, "learning_rate": rate})

    def _numbers(self) -> dict[str, Tensor]:
        return {name: layer.m for name, layer in self.branches.learning.items()}

    @torch.no_grad()
    def _resume(self, start: ZipState) -> None:
        mine = {name: tuple(layer.m.shape) for name, layer in self.branches.learning.items()}
        theirs = {name: tuple(m.shape) for name, m in start.coefficients.items()}
        if mine != theirs:
            differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
            raise ValueError(
                f"The run to resume from has other coefficients (for example of {differing[0]}). Use the same LoRAs, "
                "in the same order, with the same model and targets, or start anew."
            )
        for name, layer in self.branches.learning.items():
            layer.m.copy_(start.coefficients[name])
        self._go_on(start)
