"""The steps of a run that learns coefficients of columns: ZipLoRA's own, or those that LoRA.rar's network predicts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from . import optimizers
from .config import TrainingConfig
from .denoiser import Denoiser
from .loop import FP16_LOSS_SCALE
from .outcome import Callbacks
from .schedule import rate_factor
from .zip_state import ZipState


class ColumnRun:
    """What both have in common; a kind of run says what one step is (`_advance`), and what its numbers are."""

    def __init__(
        self, denoiser: Denoiser, config: TrainingConfig, callbacks: Callbacks, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.denoiser, self.config, self.callbacks, self.parameters = denoiser, config, callbacks, parameters
        self.optimizer = optimizers.build(config.optimizer, parameters, config.learning_rate, 0.0)
        self.step = 0
        self.records: list[Mapping[str, float]] = []
        half = any(parameter.dtype == torch.float16 for parameter in denoiser.module.parameters())
        self.loss_scale = FP16_LOSS_SCALE if half else 1.0

    def _advance(self) -> None:
        """One step: gradients, then `_update` and `_record`."""
        raise NotImplementedError

    def _numbers(self) -> dict[str, Tensor]:
        """What is learnt, by name."""
        raise NotImplementedError

    def _learn(self, save: Callable[[ZipState], None] | None) -> float:
        """All steps that are left, or until the caller cancels; the seconds they took."""
        config, first, began = self.config, self.step, time.monotonic()
        while self.step < config.steps and not self.callbacks.cancelled():
            self._advance()
            left = (time.monotonic() - began) / (self.step - first) * (config.steps - self.step)
            self.callbacks.progress(self.step, config.steps, self.records[-1]["loss"], left)
            if save is not None and config.checkpoint_every and self.step % config.checkpoint_every == 0:
                save(self._state())
        return time.monotonic() - began

    def _update(self) -> tuple[Tensor, float]:
        """Clip the gradients and move along them; (their norm, the learning rate)."""
        config = self.config
        limit = config.max_grad_norm if config.max_grad_norm > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)
        rate = config.learning_rate * rate_factor(self.step, config.schedule, config.warmup_steps, config.steps)
        optimizers.set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.step += 1
        return norm, rate

    def _record(self, values: Mapping[str, float]) -> None:
        """Keep and tell the line of the step just made. Raises ValueError where a value became no number."""
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(
                f"The loss became {values['loss']} at step {self.step}. Lower the learning rate (it is "
                f"{self.config.learning_rate:g}), or load the model in bf16 or fp32."
            )
        record = {"step": self.step, **values}
        self.records.append(record)
        self.callbacks.record(record)

    def _state(self) -> ZipState:
        numbers = {name: tensor.detach().cpu().clone() for name, tensor in self._numbers().items()}
        records = tuple(dict(record) for record in self.records)
        return ZipState(self.step, records, numbers, optimizers.state_tensors(self.optimizer))

    def _go_on(self, start: ZipState) -> None:
        """From an earlier run's steps and optimizer; what it had learnt is in place already."""
        if start.step > self.config.steps:
            raise ValueError(f"The run to resume from has {start.step} steps already; set steps to that or above.")
        optimizers.load_state_tensors(self.optimizer, start.optimizer)
        self.step, self.records = start.step, list(start.records)
        for record in self.records:
            self.callbacks.record(record)
