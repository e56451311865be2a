from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks, TrainingCancelled, TrainingDiverged, TrainingResult

RUN = TrainingConfig(steps=6, rank=2, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5)


def with_(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**config.__dict__, **changes})


def as_bytes(result: TrainingResult) -> dict[str, bytes]:
    return {
        name: delta.up.numpy().tobytes() + delta.down.numpy().tobytes() + str(delta.scale).encode()
        for name, delta in result.deltas.items()
    }


def portrait(module: torch.nn.Module) -> dict[str, Any]:
    """Everything of a module that training could change, by identity where it matters."""
    return {
        "modules": [(name, id(child)) for name, child in module.named_modules()],
        "order": [list(child._modules) for child in module.modules()],
        "modes": [child.training for child in module.modules()],
        "attributes": [sorted(child.__dict__) for child in module.modules()],
        "hooks": [(len(child._forward_hooks), len(child._forward_pre_hooks)) for child in module.modules()],
        "parameters": [(name, id(p), p.requires_grad, p.grad, p.dtype) for name, p in module.named_parameters()],
        "bytes": {name: value.view(torch.uint8).numpy().tobytes() for name, value in module.state_dict().items()},
    }


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_it_learns(kind: str, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the gradient or its sign is wrong for a parameterisation: the loss on the same draws must fall."""
    config = with_(RUN, steps=120, learning_rate=3e-2, batch_size=4, rank=4, alpha=4.0)
    result = train(toy(kind), data(2), config, tmp_path)
    assert result.steps_done == 120 == len(result.losses)
    assert sum(result.losses[-30:]) < 0.9 * sum(result.losses[:30])


def test_same_seed_same_bytes(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if anything random (init, order, σ, noise, dropouts, flips) does not come from the seed alone."""
    config = with_(RUN, caption_dropout=0.3, dropout=0.2, noise_offset=0.1)
    first = train(toy(), data(flip=True), config, tmp_path / "a")
    torch.manual_seed(99)
    torch.rand(7)
    second = train(toy(), data(flip=True), config, tmp_path / "b")
    other = train(toy(), data(flip=True), with_(config, seed=6), tmp_path / "c")
    assert as_bytes(first) == as_bytes(second) and first.losses == second.losses
    assert as_bytes(first) != as_bytes(other)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resume_is_bit_for_bit(optimizer: str, schedule: str, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if N + M steps in two runs give other bytes than in one: state, order, σ, noise or rate differ."""
    config = with_(
        RUN,
        steps=9,
        optimizer=optimizer,
        schedule=schedule,
        warmup_steps=2,
        gradient_accumulation=2,
        caption_dropout=0.2,
        dropout=0.1,
        checkpoint_every=4,
        keep_last=0,
    )
    whole = train(toy(), data(flip=True), config, tmp_path / "whole")
    resumed = train(
        toy(), data(flip=True), config, tmp_path / "two", resume_from=tmp_path / "whole" / "checkpoints" / "step-000004"
    )
    assert as_bytes(whole) == as_bytes(resumed)
    assert whole.losses == resumed.losses
    one, two = (tmp_path / name / "checkpoints" / "step-000009" for name in ("whole", "two"))
    for name in ("lora.safetensors", "optimizer.safetensors", "state.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_two_runs_of_constant_rate_equal_one(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a finished run cannot be made longer, or the log of the two is not that of the one."""
    whole = train(toy(), data(), with_(RUN, steps=7), tmp_path / "whole")
    train(toy(), data(), with_(RUN, steps=3), tmp_path / "two")
    longer = train(toy(), data(), with_(RUN, steps=7), tmp_path / "two", resume_from=tmp_path / "two")
    assert as_bytes(whole) == as_bytes(longer)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "two")
    ]
    assert [line["step"] for line in logs[1]] == list(range(1, 8))
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]] == list(whole.losses)


def test_checkpointing_changes_no_bit(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if recomputed activations differ (dropout drawn anew), or if nothing is recomputed at all."""
    calls = {}
    results = {}
    for on in (False, True):
        denoiser = toy()
        config = with_(RUN, gradient_checkpointing=on, dropout=0.3)
        results[on] = train(denoiser, data(), config, tmp_path / str(on))
        calls[on] = denoiser.module.transformer_blocks[0].calls
        assert "forward" not in denoiser.module.transformer_blocks[0].__dict__
    assert as_bytes(results[False]) == as_bytes(results[True])
    assert calls == {False: 6, True: 12}


class Stop(RuntimeError):
    pass


@pytest.mark.parametrize("how", ["success", "cancel", "error", "nan", "no checkpointing"])
def test_module_is_put_back(how: str, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if on any way out a module object, flag, mode, attribute, hook, gradient or byte of the model differs."""
    denoiser = toy()
    module = denoiser.module
    module.transformer_blocks[0].train()
    module.embed.weight.requires_grad_(False)
    module.embed.bias.grad = torch.ones(4)
    before = portrait(module)
    random_state = torch.get_rng_state()
    plain = denoiser.denoise

    def denoise(noisy: torch.Tensor, sigma: torch.Tensor, conds: Any) -> torch.Tensor:
        predicted: torch.Tensor = plain(noisy, sigma, conds)
        if denoiser.calls >= 4 and how == "error":
            raise Stop("out of memory")
        return predicted * math.nan if denoiser.calls >= 4 and how == "nan" else predicted

    denoiser.denoise = denoise
    config = with_(RUN, gradient_checkpointing=how != "no checkpointing", dropout=0.1)
    asks = iter(range(100))
    callbacks = Callbacks(cancelled=lambda: how == "cancel" and next(asks) >= 3)
    expected: dict[str, type[BaseException]] = {"cancel": TrainingCancelled, "error": Stop, "nan": TrainingDiverged}
    if how in expected:
        with pytest.raises(expected[how]):
            train(denoiser, data(), config, tmp_path, callbacks)
    else:
        train(denoiser, data(), config, tmp_path, callbacks)
    assert torch.equal(module.embed.bias.grad, torch.ones(4))
    after = portrait(module)
    for what in before:
        assert str(before[what]) == str(after[what]), what
    assert torch.equal(random_state, torch.get_rng_state())
    if how == "error":  # what was learnt before the error is kept
        assert (tmp_path / "checkpoints" / "step-000003" / "state.json").is_file()


def test_cancel_stops_within_a_step_and_resumes(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if steps are made after the cancel, half a step is kept, or going on differs from never stopping."""
    config = with_(RUN, gradient_accumulation=3)
    whole = train(toy(), data(), config, tmp_path / "whole")
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 8  # in the middle of the third step

    denoiser = toy()
    with pytest.raises(TrainingCancelled) as caught:
        train(denoiser, data(), config, tmp_path / "cut", Callbacks(cancelled=cancelled))
    assert denoiser.calls == 8
    partial = caught.value.result
    assert partial.steps_done == 2 and partial.losses == whole.losses[:2]
    assert any(float(delta.up.abs().sum()) > 0 for delta in partial.deltas.values())
    resumed = train(toy(), data(), config, tmp_path / "cut", resume_from=tmp_path / "cut")
    assert as_bytes(resumed) == as_bytes(whole)


def test_nan_stops_and_keeps_the_last_good_checkpoint(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if training goes on over NaN, if its adapter is saved, or the message gives no advice."""
    denoiser = toy()
    plain = denoiser.denoise
    denoiser.denoise = lambda *a: plain(*a) * (math.nan if denoiser.calls >= 5 else 1.0)
    with pytest.raises(TrainingDiverged, match=r"(?s)step 5.*Lower the learning rate.*step-000004"):
        train(denoiser, data(), with_(RUN, steps=20, checkpoint_every=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_an_adapter_of_nan_is_not_saved(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a finite loss with an infinite gradient in the last step gives a NaN adapter as the result."""
    denoiser = toy()
    plain = denoiser.denoise

    def denoise(*a: Any) -> torch.Tensor:
        predicted: torch.Tensor = plain(*a)
        if denoiser.calls == 6:
            predicted.register_hook(lambda grad: grad * math.inf)
        return predicted

    denoiser.denoise = denoise
    with pytest.raises(TrainingDiverged, match="adapter holds NaN"):
        train(denoiser, data(), RUN, tmp_path)
    assert not any((tmp_path / "checkpoints").glob("step-*"))


def test_progress_samples_and_checkpoints_come_when_told(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a step is unreported, samples come at other steps or with gradients, or K checkpoints are not left."""
    reports: list[tuple[int, int, float, float]] = []
    sampled: list[int] = []
    denoiser = toy()

    def sample(step: int) -> None:
        assert not torch.is_grad_enabled()
        torch.rand(3)
        denoiser.module(torch.zeros(1, 4, 4, 4), torch.ones(1), torch.ones(1))
        sampled.append(step)

    config = with_(RUN, steps=7, checkpoint_every=2, keep_last=2, sample_every=3, dropout=0.2)
    config = with_(config, gradient_checkpointing=True)
    callbacks = Callbacks(progress=lambda *a: reports.append(a), sample=sample)
    result = train(denoiser, data(), config, tmp_path, callbacks)
    assert [report[0] for report in reports] == list(range(1, 8)) and reports[-1][3] == 0
    assert [report[2] for report in reports] == list(result.losses)
    assert sampled == [3, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000006", "step-000007"]
    quiet = train(toy(), data(), with_(config, sample_every=0), tmp_path / "quiet")
    assert as_bytes(result) == as_bytes(quiet)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_caption_dropout_rate(rate: float, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the empty condition is used more or less often than asked (400 pictures, 5 standard deviations)."""
    denoiser = toy()
    train(denoiser, data(), with_(RUN, steps=50, batch_size=8, rank=1, caption_dropout=rate), tmp_path)
    empty = sum(cond == 0.0 for cond in denoiser.seen)
    assert len(denoiser.seen) == 400
    assert abs(empty - 400 * rate) <= 5 * math.sqrt(400 * rate * (1 - rate))


def test_accumulation_is_a_larger_batch(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if gradients of the parts are summed instead of averaged: SGD would step twice as far."""
    one = data(1)
    base = with_(RUN, steps=2, optimizer="sgd", max_grad_norm=0.0, weight_decay=0.0, batch_size=1)
    # Of one picture and one σ, n parts differ in noise alone; with no noise at all they are alike.
    denoisers = [toy(), toy()]
    for denoiser in denoisers:
        denoiser.sigmas = denoiser.sigmas[30:31]
        denoiser.noise_scaling = lambda sigma, noise, latents: latents * 1.5
    single = train(denoisers[0], one, base, tmp_path / "1")
    double = train(denoisers[1], one, with_(base, gradient_accumulation=2), tmp_path / "2")
    for name, delta in single.deltas.items():
        assert torch.allclose(delta.dense(), double.deltas[name].dense(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("base", [torch.float16, torch.bfloat16])
def test_half_precision_base_with_float_adapter(base: torch.dtype, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the adapter takes the base's dtype, or a half base trains to other than nearly the float base's LoRA."""
    config = with_(RUN, steps=3, optimizer="sgd", targets="attention", max_grad_norm=0.0)
    half = train(toy(dtype=base), data(), config, tmp_path / "half")
    full = train(toy(), data(), config, tmp_path / "full")
    for name, delta in half.deltas.items():
        assert delta.up.dtype == torch.float32
        moved = full.deltas[name].up
        assert (delta.up - moved).norm() < 0.1 * moved.norm()


def test_inference_tensors_are_trained_on(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if latents made in the host's inference mode cannot be saved for the backward pass."""
    denoiser = toy()
    with torch.inference_mode():
        result = train(denoiser, data(masked=True), RUN, tmp_path)
        assert torch.is_inference_mode_enabled()
    assert result.steps_done == 6


def test_flush_denormal_is_put_back(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if training leaves the thread's treatment of tiny numbers changed, or does not flush them meanwhile."""

    def flushed() -> bool:
        return float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0.0

    torch.set_flush_denormal(False)
    meanwhile: list[bool] = []
    train(toy(), data(), RUN, tmp_path, Callbacks(progress=lambda *_: meanwhile.append(flushed())))
    assert all(meanwhile) and not flushed()


def test_what_does_not_fit_is_said(toy: Any, data: Callable[..., Any], tmp_path: Path) -> None:
    """Fails if a run that cannot go on starts, or the message does not say why."""
    train(toy(), data(), with_(RUN, steps=2), tmp_path / "run")
    cases: list[tuple[str, TrainingConfig, Path | None]] = [
        (r"already holds a run", RUN, None),
        (r"has 2 steps already", with_(RUN, steps=2), tmp_path / "run"),
        (r"rank is 4, the checkpoint's is 2", with_(RUN, rank=4), tmp_path / "run"),
        (r"no folder .*nowhere", RUN, tmp_path / "nowhere"),
        (r"holds no checkpoint", RUN, tmp_path),
        (r"matches no layer", with_(RUN, targets="custom", target_pattern="nothing"), None),
    ]
    for message, config, resume in cases:
        with pytest.raises(ValueError, match=message):
            train(toy(), data(), config, tmp_path / "run", resume_from=resume)
    with pytest.raises(ValueError, match="no examples"):
        train(toy(), data(0), RUN, tmp_path / "empty")
    state = tmp_path / "run" / "checkpoints" / "step-000002" / "lora.safetensors"
    state.write_bytes(state.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read"):
        train(toy(), data(), RUN, tmp_path / "run", resume_from=tmp_path / "run")
