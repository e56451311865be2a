"""The moving average of adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from likeness.trainers.config import TrainingConfig
from likeness.trainers.ema import MovingAverage, decay_at
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks

RUN = TrainingConfig(steps=6, rank=2, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5)


def test_average_is_the_recursion() -> None:
    """Fails if the decay, its warm-up or the order of the two differs from the recursion written in scalars."""
    p = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage([p], 0.9)
    by_hand = 1.0
    for step, value in enumerate((2.0, 5.0, -1.0, 4.0), 1):
        p.data.fill_(value)
        average.update(step)
        d = min(0.9, (1 + step) / (10 + step))
        by_hand = d * by_hand + (1 - d) * value
    assert decay_at(1, 0.999) == 2 / 11 and decay_at(10**6, 0.999) == 0.999
    with average.applied():
        assert float(p.detach()) == pytest.approx(by_hand, rel=1e-6)
    assert float(p.detach()) == 4.0


def test_parameters_are_what_they_were_to_the_bit() -> None:
    """Fails if rounding a float32 average to bf16 and back changes what is trained, also when an error comes."""
    p = nn.Parameter(torch.randn(50, dtype=torch.bfloat16))
    average = MovingAverage([p], 0.99)
    before = p.detach().clone()
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert torch.equal(p, before) and p.dtype == torch.bfloat16


def test_result_checkpoint_and_samples_are_the_average(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if any of the three has the last step in place of the average of all, recomputed here from checkpoints."""
    config = replace(RUN, checkpoint_every=1, keep_last=0, sample_every=6)
    plain = train(toy(), data(), config, tmp_path / "plain")
    denoiser = toy()
    sampled: dict[str, torch.Tensor] = {}

    def sample(step: int) -> None:
        parameters = dict(denoiser.module.named_parameters())
        sampled.update({name: value.detach().clone() for name, value in parameters.items() if "lora_B" in name})

    averaged = train(denoiser, data(), replace(config, ema_decay=0.5), tmp_path / "ema", Callbacks(sample=sample))
    assert averaged.losses == plain.losses
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    by_hand = torch.zeros_like(plain.deltas[name].up)
    for step in range(1, 7):
        saved = load_file(tmp_path / "plain" / "checkpoints" / f"step-{step:06}" / "lora.safetensors")
        d = decay_at(step, 0.5)
        by_hand = d * by_hand + (1 - d) * saved[f"{name}.lora_up.weight"]
    used = load_file(tmp_path / "ema" / "checkpoints" / "step-000006" / "lora.safetensors")[f"{name}.lora_up.weight"]
    assert torch.allclose(averaged.deltas[name].up, by_hand, atol=1e-7)
    assert torch.equal(used, averaged.deltas[name].up)
    assert any(torch.equal(value, used) for value in sampled.values())
    assert not torch.allclose(by_hand, plain.deltas[name].up, atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_is_bit_for_bit(dtype: str, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the average, or what is trained beside it, is not in the checkpoint exactly."""
    config = replace(RUN, ema_decay=0.9, adapter_dtype=dtype, checkpoint_every=2, keep_last=0)
    whole = train(toy(), data(), config, tmp_path / "a")
    train(toy(), data(), config, tmp_path / "b", resume_from=tmp_path / "a" / "checkpoints" / "step-000002")
    one, two = (tmp_path / name / "checkpoints" / "step-000006" for name in "ab")
    for name in ("lora.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    # Without the average from here on: what was trained goes on, not its average.
    off = train(toy(), data(), replace(config, ema_decay=0.0), tmp_path / "c", resume_from=one.with_name("step-000004"))
    assert off.losses == whole.losses
