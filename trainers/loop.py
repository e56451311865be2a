"""The training loop of a LoRA."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..lora.delta import LowRankDelta
from . import checkpoints, optimizers
from .adapters import Method
from .batches import Batch, Batches, check_data
from .checkpoints import Checkpoint
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Cond, Denoiser
from .layer_rules import parse_rules
from .lora import Adapters, injected
from .objectives import diffusion_loss
from .prior import PriorBatches
from .randomness import derived_seed, generator
from .rebinding import Rebinding
from .recompute import recomputed_blocks
from .runlog import LossReader, RunLog
from .schedule import rate_factor
from .targets import PREFIX, matched_layers

log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FP16_LOSS_SCALE = 4096.0
"""Gradients of a mean over latents are near 1e-5; fp16 ends at 6e-8. A power of two, so nothing is rounded by it."""


def _no_progress(step: int, steps: int, loss: float, seconds_left: float) -> None:
    """Ignore it."""


def _never() -> bool:
    return False


def _no_sample(step: int) -> None:
    """Ignore it."""


@dataclass(frozen=True)
class Callbacks:
    """What the loop tells and asks its caller.

    Attributes:
        progress: (steps done, steps in all, loss of the last known step, seconds left).
        cancelled: asked before each batch; True stops the run.
        sample: called after step k every ``sample_every`` steps, with the adapters in place and gradients off.
    """

    progress: Callable[[int, int, float, float], None] = _no_progress
    cancelled: Callable[[], bool] = _never
    sample: Callable[[int], None] = _no_sample


@dataclass(frozen=True)
class TrainingResult:
    """What was learnt.

    Attributes:
        deltas: canonical layer name -> ΔW, float32 on the CPU.
        losses: one a step, from the first step on (those before a resume included).
        steps_done: updates made.
        folder: the run's folder.
        config: the configuration it was trained with.
    """

    deltas: Mapping[str, LowRankDelta]
    losses: tuple[float, ...]
    steps_done: int
    folder: Path
    config: TrainingConfig


class TrainingCancelled(Exception):
    """The caller cancelled. A checkpoint was written; ``result`` is what was learnt so far."""

    def __init__(self, result: TrainingResult) -> None:
        super().__init__(f"Training was cancelled after {result.steps_done} of {result.config.steps} steps.")
        self.result = result


class TrainingDiverged(ValueError):
    """The loss or the adapter is no finite number any more."""


def train(
    denoiser: Denoiser,
    data: TrainingSet,
    config: TrainingConfig,
    folder: Path,
    callbacks: Callbacks | None = None,
    resume_from: Path | None = None,
) -> TrainingResult:
    """Train LoRA adapters inside ``denoiser.module``, which is as it was when this returns or raises.

    Args:
        denoiser: the model.
        data: cached examples; those of one batch have one shape.
        config: validated here.
        folder: run folder; gets config.json, log.jsonl and checkpoints/step-000100/.
        callbacks: progress, cancel and samples.
        resume_from: a checkpoint folder, or a run folder (its last checkpoint), to go on from bit for bit.

    Raises:
        TrainingCancelled: carries the result so far.
        TrainingDiverged: loss or adapter became NaN or infinite; the last good checkpoint is kept.
        ValueError: configuration, data or checkpoint do not fit; says which and what to do.
    """
    config.validate()
    check_data(data)
    modules = {PREFIX: denoiser.module, **getattr(denoiser, "text_encoders", {})}
    layers = matched_layers(modules, config.targets, config.target_pattern)
    start = None
    if resume_from is not None:
        start = checkpoints.load(resume_from)
        checkpoints.check_resumable(start, config)
    elif found := checkpoints.checkpoints_in(folder):
        raise ValueError(
            f"{folder} already holds a run ({found[-1].name}). Resume from it, or choose another folder for this one."
        )
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoints.write_text(folder / "config.json", config.to_json() + "\n")
    with ExitStack() as stack:
        stack.enter_context(_training_mode(denoiser.device))
        adapters = stack.enter_context(
            injected(
                modules,
                layers,
                rank=config.rank,
                alpha=config.alpha,
                seed=config.seed,
                method=Method.of(config),
                rules=parse_rules(config.layer_rules),
                dropout=config.dropout,
                dtype=_DTYPES[config.adapter_dtype],
                device=denoiser.device,
            )
        )
        if config.gradient_checkpointing:
            blocks = stack.enter_context(recomputed_blocks(denoiser.module, random=config.dropout > 0))
            if not blocks:
                log.warning("gradient checkpointing is on, but the model has no blocks that it knows of")
        run = _Run(denoiser, data, config, folder, callbacks or Callbacks(), adapters, start)
        stack.callback(run.log.close)
        return run.go()


@contextmanager
def _training_mode(device: torch.device) -> Iterator[None]:
    """Gradients on, global random state kept, tiny numbers flushed to zero.

    Denormals: gradients of a nearly trained layer fall below 1e-38, where a CPU is ten times slower and no digit
    counts. Torch cannot be asked whether they are flushed, but arithmetic can.
    """
    flushed = float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0.0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed)


class _Run:
    """One call of :func:`train`, once the adapters are in place."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: TrainingSet,
        config: TrainingConfig,
        folder: Path,
        callbacks: Callbacks,
        adapters: Adapters,
        start: Checkpoint | None,
    ) -> None:
        self.denoiser, self.config, self.folder, self.callbacks = denoiser, config, folder, callbacks
        self.adapters = adapters
        self.parameters = adapters.parameters()
        kind = denoiser.parameterisation, getattr(denoiser, "patch_size", 2)
        self.batches = Batches(data, denoiser.sigmas, denoiser.device, config, *kind)
        self.prior = (
            PriorBatches(data, denoiser.sigmas, denoiser.device, config, *kind) if config.prior_weight > 0 else None
        )
        self.optimizer = optimizers.build(
            config.optimizer, self.parameters, config.learning_rate, config.weight_decay, adapters.rates()
        )
        self.losses: list[float] = []
        self.step = 0
        if start is not None:
            adapters.load(start.adapters, start.optimizer)
            optimizers.load_state_tensors(self.optimizer, start.optimizer)
            self.losses, self.step = list(start.losses), start.step
        self.first_step = self.step
        here = start is not None and checkpoints.place(folder, self.step) in checkpoints.checkpoints_in(folder)
        self.saved_step = self.step if here else -1
        self.reader = LossReader(denoiser.device)
        self.log = RunLog(folder / "log.jsonl", self.step)
        half = any(parameter.dtype == torch.float16 for parameter in denoiser.module.parameters())
        self.loss_scale = _FP16_LOSS_SCALE if half else 1.0
        # Until the first pass shows that the model needs none.
        self.rebinding: Rebinding | None = Rebinding()
        self.began = time.monotonic()

    def go(self) -> TrainingResult:
        """Train to the end."""
        config = self.config
        updating = False
        try:
            while self.step < config.steps:
                if not self._gradients():
                    self._save()
                    raise TrainingCancelled(self._result())
                updating = True
                self._update()
                updating = False
                self._report(leave=1)
                if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    self._save()
                if config.sample_every and self.step % config.sample_every == 0:
                    with torch.no_grad():
                        self.callbacks.sample(self.step)
            self._save()
        except (TrainingCancelled, TrainingDiverged):
            raise
        except BaseException:
            # Out of memory, a full disk, Ctrl-C: what was learnt up to the last whole step is worth keeping.
            if not updating:
                self._save_what_can_be()
            raise
        return self._result()

    def _gradients(self) -> bool:
        """Add up the gradients of one step. False: the caller cancelled on the way."""
        config = self.config
        chance = generator(config.seed, "step", self.step)
        if config.dropout > 0:
            torch.manual_seed(derived_seed(config.seed, "dropout", self.step))
            self.adapters.train(True)
        kept = generator(config.seed, "prior", self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = None
        for part in range(config.gradient_accumulation):
            if self.callbacks.cancelled():
                return False
            number = self.step * config.gradient_accumulation + part
            batch = self.batches.draw(number, chance)
            prior = self.prior.draw(number, batch.latents.shape[1:], kept) if self.prior is not None else None
            losses = self._losses(batch, prior)
            loss = losses[0] if prior is None else losses[0] + config.prior_weight * losses[1]
            (loss * (self.loss_scale / config.gradient_accumulation)).backward()  # type: ignore[no-untyped-call]
            now = torch.stack([loss, *losses]).detach() / config.gradient_accumulation
            total = now if total is None else total + now
        assert total is not None
        if config.dropout > 0:
            self.adapters.train(False)  # for samples
        names = ("loss",) if self.prior is None else ("loss", "subject_loss", "prior_loss")
        self.reader.put(self.step + 1, dict(zip(names, total, strict=False)))
        return True

    def _losses(self, batch: Batch, prior: Batch | None) -> list[Tensor]:
        """The loss of the batch, and that of what is to be kept."""
        denoiser = self.denoiser
        batches = [batch] if prior is None else [batch, prior]
        noisy = [denoiser.noise_scaling(each.sigma, each.noise, each.latents) for each in batches]
        targets = [each.target for each in batches]
        if prior is not None and self.prior is not None and self.prior.predicted:
            with self.adapters.disabled():
                targets[1] = denoiser.denoise(noisy[1], prior.sigma, prior.conds)
        return [
            self._loss(each, predicted, target)
            for each, predicted, target in zip(batches, self._predicted(batches, noisy), targets, strict=True)
        ]

    def _predicted(self, batches: Sequence[Batch], noisy: Sequence[Tensor]) -> Sequence[Tensor]:
        """x̂₀ of each batch, in one forward pass where their shapes allow it."""
        if len({latents.shape[1:] for latents in noisy}) > 1:
            return [self._denoised(x, batch.sigma, batch.conds) for x, batch in zip(noisy, batches, strict=True)]
        conds = [cond for batch in batches for cond in batch.conds]
        together = self._denoised(torch.cat(list(noisy)), torch.cat([batch.sigma for batch in batches]), conds)
        return together.split([len(latents) for latents in noisy])

    def _denoised(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Cond]) -> Tensor:
        with self.rebinding or nullcontext():
            predicted = self.denoiser.denoise(noisy, sigma, conds)
        if self.rebinding is not None and not self.rebinding.count:
            self.rebinding = None
        return predicted

    def _loss(self, batch: Batch, predicted: Tensor, target: Tensor) -> Tensor:
        return diffusion_loss(
            predicted,
            target,
            batch.sigma,
            self.denoiser.parameterisation,
            mask=batch.mask,
            factor=batch.factor,
            huber_c=batch.huber_c,
        )

    def _update(self) -> None:
        """One step of the optimizer."""
        config = self.config
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            raise ValueError("No adapter got a gradient: the model does not use the layers that were targeted.")
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        if config.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm, foreach=True)
        optimizers.set_rate(self.optimizer, self._rate(self.step))
        self.optimizer.step()
        self.step += 1

    def _rate(self, step: int) -> float:
        config = self.config
        return config.learning_rate * rate_factor(step, config.schedule, config.warmup_steps, config.steps)

    def _report(self, leave: int) -> None:
        """Log and pass on the losses that are known by now, and stop if one is no number."""
        for step, values in self.reader.ready(leave):
            loss = values["loss"]
            if not math.isfinite(loss):
                raise TrainingDiverged(self._advice(f"The loss became {loss} at step {step}"))
            self.losses.append(loss)
            seconds = time.monotonic() - self.began
            left = seconds / max(1, step - self.first_step) * (self.config.steps - step)
            rate = self._rate(step - 1)
            self.log.write(**{"step": step, **values, "learning_rate": rate, "seconds": round(seconds, 3)})
            self.callbacks.progress(step, self.config.steps, loss, left)

    def _save(self) -> None:
        """Write a checkpoint of this step, unless it is there or holds no numbers."""
        self._report(leave=0)
        if not self.adapters.finite():
            raise TrainingDiverged(self._advice(f"The adapter holds NaN or infinite numbers after step {self.step}"))
        if self.saved_step == self.step:
            return
        state = Checkpoint(
            step=self.step,
            losses=tuple(self.losses),
            config=self.config,
            adapters=self.adapters.tensors(),
            optimizer={**optimizers.state_tensors(self.optimizer), **self.adapters.extra()},
        )
        checkpoints.save(self.folder, state, self.config.keep_last)
        self.saved_step = self.step

    def _save_what_can_be(self) -> None:
        """A checkpoint on the way out of an error, which must stay the error that is raised."""
        try:
            if self.step > self.first_step:
                self._save()
        except Exception:
            log.warning("no checkpoint could be written after the error at step %d", self.step, exc_info=True)

    def _advice(self, what: str) -> str:
        found = checkpoints.checkpoints_in(self.folder)
        kept = f"The last good checkpoint is {found[-1]}." if found else "There was no checkpoint yet."
        half = " or load the model in bf16 or fp32 in place of fp16," if self.loss_scale != 1.0 else ""
        return (
            f"{what}: training diverged. Lower the learning rate (it is {self.config.learning_rate:g}; try a tenth),"
            f"{half} keep max_grad_norm at 1, and add warm-up steps. {kept}"
        )

    def _result(self) -> TrainingResult:
        return TrainingResult(self.adapters.deltas(), tuple(self.losses), self.step, self.folder, self.config)
