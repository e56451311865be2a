"""The training loop of a LoRA."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoints, optimizers
from .adapters import Method
from .attention_entropy import cross_attention_entropy
from .auto_rate import with_rate
from .bands import band_edges, band_means, band_sums, named_sums
from .batches import Batch, Batches, check_data
from .checkpoints import Checkpoint
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Cond, Denoiser
from .economy import economised
from .ema import MovingAverage, load_trained, trained_tensors
from .layer_rules import parse_rules
from .lora import Adapters, injected
from .modules import trained_modules
from .objectives import diffusion_loss
from .outcome import Callbacks, NothingLearned, TrainingCancelled, TrainingDiverged, TrainingResult
from .prior import PriorBatches
from .randomness import derived_seed, generator
from .ranks import RankControl, rank_control
from .rebinding import Rebinding
from .runlog import LossReader, RunLog
from .schedule import rate_factor

log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FP16_LOSS_SCALE = 4096.0
"""Gradients of a mean over latents are near 1e-5; fp16 ends at 6e-8. A power of two, so nothing is rounded by it."""
_SMOOTHED = 50
"""Losses in the mean that the log gives beside each."""
_NORMS = 100
"""How often in a run the norm of what was learnt is logged."""


def train(
    denoiser: Denoiser,
    data: TrainingSet,
    config: TrainingConfig,
    folder: Path,
    callbacks: Callbacks | None = None,
    resume_from: Path | None = None,
    rate: Callable[[int], float] | None = None,
) -> TrainingResult:
    """Train LoRA adapters inside ``denoiser.module``, which is as it was when this returns or raises.

    Args:
        denoiser: the model.
        data: cached examples; those of one batch have one shape.
        config: validated here.
        folder: run folder; gets config.json, log.jsonl and checkpoints/step-000100/.
        callbacks: progress, cancel and samples.
        resume_from: a checkpoint folder, or a run folder (its last checkpoint), to go on from bit for bit.
        rate: learning rate of each step, from 0, in place of the configuration's.

    Raises:
        TrainingCancelled: carries the result so far.
        TrainingDiverged: loss or adapter became NaN or infinite; the last good checkpoint is kept.
        NothingLearned: after the last of two or more steps ΔW is zero; its checkpoint is kept.
        ValueError: configuration, data or checkpoint do not fit; says which and what to do.
    """
    config = with_rate(config.validate(), denoiser.module)
    check_data(data)
    trained = trained_modules(denoiser, config)
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
        stack.enter_context(training_mode(denoiser.device))
        adapters = stack.enter_context(
            injected(
                trained.modules,
                trained.layers,
                rank=config.rank,
                alpha=config.alpha,
                seed=config.seed,
                method=Method.of(config),
                rules=parse_rules(config.layer_rules),
                dropout=config.dropout,
                dtype=_DTYPES[config.adapter_dtype],
                device=trained.devices,
                rates=trained.rates,
            )
        )
        economies = stack.enter_context(economised(denoiser.module, trained.modules, config, denoiser.device))
        entropy = None
        if config.algorithm == "adaptive" and config.entropy_weight:
            entropy = stack.enter_context(cross_attention_entropy(denoiser.module))
        ranks = rank_control(adapters, config, entropy)
        run = _Run(denoiser, data, config, folder, callbacks or Callbacks(), adapters, start, rate, ranks)
        stack.callback(run.log.close)
        result = run.go()
        seconds = (time.monotonic() - run.began) / max(1, result.steps_done - run.first_step)
        return replace(result, seconds_a_step=seconds, notes=tuple(economies.lines()))


@contextmanager
def training_mode(device: torch.device) -> Iterator[None]:
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
        rate: Callable[[int], float] | None = None,
        ranks: RankControl | None = None,
    ) -> None:
        self.rate, self.ranks = rate, ranks
        self.denoiser, self.config, self.folder, self.callbacks = denoiser, config, folder, callbacks
        self.adapters = adapters
        if ranks is not None and start is not None:
            ranks.load(start.ranks)
        self.rank_numbers: dict[int, dict[str, Any]] = {}
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
            if self.ranks is None:
                adapters.load(start.adapters)
            if start.average:
                load_trained(self.parameters, start.average)
            optimizers.load_state_tensors(self.optimizer, start.optimizer)
            self.losses, self.step = list(start.losses), start.step
        self.average = MovingAverage(self.parameters, config.ema_decay) if config.ema_decay > 0 else None
        if self.average is not None and start is not None and start.average:
            self.average.load(start.average)
        self.first_step = self.step
        here = start is not None and checkpoints.place(folder, self.step) in checkpoints.checkpoints_in(folder)
        self.saved_step = self.step if here else -1
        self.reader = LossReader(denoiser.device)
        self.numbers: dict[str, Tensor] = {}
        self.edges = band_edges(denoiser.sigmas).to(denoiser.device)
        self.log = RunLog(folder / "log.jsonl", self.step)
        for record in self.log.records:
            self.callbacks.record(record)
        half = any(parameter.dtype == torch.float16 for parameter in denoiser.module.parameters())
        self.loss_scale = FP16_LOSS_SCALE if half else 1.0
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
                    with torch.no_grad(), self._averaged():
                        self.callbacks.sample(self.step)
            self._save()
            self._check_learned()
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
        total = bands = None
        for part in range(config.gradient_accumulation):
            if self.callbacks.cancelled():
                return False
            number = self.step * config.gradient_accumulation + part
            batch = self.batches.draw(number, chance)
            prior = self.prior.draw(number, batch.latents.shape[1:], kept) if self.prior is not None else None
            losses, found = self._losses(batch, prior)
            loss = losses[0] if prior is None else losses[0] + config.prior_weight * losses[1]
            penalty = self.ranks.penalty() if self.ranks is not None else None
            whole = loss if penalty is None else loss + penalty
            (whole * (self.loss_scale / config.gradient_accumulation)).backward()  # type: ignore[no-untyped-call]
            now = torch.stack([loss, *losses]).detach() / config.gradient_accumulation
            total = now if total is None else total + now
            bands = found if bands is None else bands + found
        assert total is not None and bands is not None
        if config.dropout > 0:
            self.adapters.train(False)  # for samples
        names = ("loss",) if self.prior is None else ("loss", "subject_loss", "prior_loss")
        self.numbers = {**dict(zip(names, total, strict=False)), **named_sums(bands)}
        return True

    def _losses(self, batch: Batch, prior: Batch | None) -> tuple[list[Tensor], Tensor]:
        """The loss of the batch, and that of what is to be kept; and the batch's by σ, see :mod:`.bands`."""
        denoiser = self.denoiser
        batches = [batch] if prior is None else [batch, prior]
        noisy = [denoiser.noise_scaling(each.sigma, each.noise, each.latents) for each in batches]
        targets = [each.target for each in batches]
        if prior is not None and self.prior is not None and self.prior.predicted:
            with self.adapters.disabled():
                targets[1] = denoiser.denoise(noisy[1], prior.sigma, prior.conds)
        predicted = self._predicted(batches, noisy)
        losses = [self._loss(*each) for each in zip(batches, predicted, targets, strict=True)]
        return losses, band_sums(predicted[0], targets[0], batch.sigma, denoiser.parameterisation, self.edges)

    def _predicted(self, batches: Sequence[Batch], noisy: Sequence[Tensor]) -> Sequence[Tensor]:
        """x̂₀ of each batch, in one forward pass where their shapes allow it."""
        if len({latents.shape[1:] for latents in noisy}) > 1:
            return [self._denoised(x, batch.sigma, batch.conds) for x, batch in zip(noisy, batches, strict=True)]
        conds = [cond for batch in batches for cond in batch.conds]
        together = self._denoised(torch.cat(list(noisy)), torch.cat([batch.sigma for batch in batches]), conds)
        return torch.split(together, [len(latents) for latents in noisy])

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
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm, foreach=True)
        else:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        optimizers.set_rate(self.optimizer, self._rate(self.step))
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        now_and_then = self.step % max(1, config.steps // _NORMS) == 0 or self.step == config.steps
        if self.ranks is not None:
            resized = self.ranks.step(self.step, self._rate(self.step - 1) / config.learning_rate, 1 / self.loss_scale)
            optimizers.resize(self.optimizer, resized)
            if self.average is not None:
                self.average.resize(resized)
            self.parameters = self.adapters.parameters()
            counts = self.ranks.counts()
            self.rank_numbers[self.step] = {"mean_rank": sum(counts.values()) / len(counts)}
            if now_and_then:
                self.rank_numbers[self.step]["ranks"] = counts
        self.numbers["gradient_norm"] = norm
        if now_and_then:
            self.numbers["delta_norm"] = self.adapters.norm()
        self.reader.put(self.step, self.numbers)

    def _rate(self, step: int) -> float:
        config = self.config
        if self.rate is not None:
            return self.rate(step)
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
            recent = self.losses[-_SMOOTHED:]
            record: dict[str, Any] = {
                "step": step,
                **{name: value for name, value in values.items() if "." not in name},
                "smoothed_loss": sum(recent) / len(recent),
                **band_means(values),
                "learning_rate": rate,
                "seconds": round(seconds, 3),
                **self.rank_numbers.pop(step, {}),
            }
            self.log.write(**record)
            self.callbacks.record(record)
            self.callbacks.progress(step, self.config.steps, loss, left)

    def _save(self) -> None:
        """Write a checkpoint of this step, unless it is there or holds no numbers."""
        self._report(leave=0)
        if not self.adapters.finite():
            raise TrainingDiverged(self._advice(f"The adapter holds NaN or infinite numbers after step {self.step}"))
        if self.saved_step == self.step:
            return
        with self._averaged():
            adapters = self.adapters.tensors()
        state = Checkpoint(
            step=self.step,
            losses=tuple(self.losses),
            config=self.config,
            adapters=adapters,
            optimizer=optimizers.state_tensors(self.optimizer),
            average=self._trained(),
            ranks={} if self.ranks is None else self.ranks.tensors(),
        )
        checkpoints.save(self.folder, state, self.config.keep_last)
        self.saved_step = self.step

    def _trained(self) -> dict[str, Tensor]:
        """What is trained, where it is not what is to be used."""
        if self.average is not None:
            return self.average.tensors()
        return trained_tensors(self.parameters) if optimizers.averages(self.optimizer) else {}

    def _averaged(self) -> AbstractContextManager[None]:
        """The adapters as they are to be used."""
        return optimizers.averaged(self.optimizer) if self.average is None else self.average.applied()

    def _check_learned(self) -> None:
        """A run whose adapter changes nothing is no success, whatever its loss.

        Raises:
            NothingLearned: says why, as far as it can be known.
        """
        if self.step < 2 or float(self.adapters.norm()) > 0:
            return
        norms = [record["gradient_norm"] for record in self.log.records if "gradient_norm" in record]
        if norms and max(norms) == 0:
            why = (
                "All gradients were zero: the model's answer does not depend on the layers that were targeted, or the "
                "masks leave nothing. Choose other targets, look at the masks, and load the model in bf16 or fp32."
            )
        else:
            why = f"The steps were too small to be counted: raise the learning rate ({self.config.learning_rate:g})."
        kept = checkpoints.place(self.folder, self.step)
        raise NothingLearned(
            f"Nothing was learnt in {self.step} steps: ΔW is zero in all layers. {why} {kept} is kept."
        )

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
        with self._averaged():
            deltas, tensors = self.adapters.deltas(), self.adapters.result()
            ranks = {} if self.ranks is None else self.ranks.ranks()
        records = tuple(self.log.records)
        return TrainingResult(
            deltas, tuple(self.losses), self.step, self.folder, self.config, records, tensors, ranks=ranks
        )
