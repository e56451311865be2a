"""What a run tells of itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.trainers.bands import band_edges, band_sums
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks, NothingLearned

RUN = TrainingConfig(steps=6, rank=2, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5)


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_line_tells_of_its_step(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if rate, smoothed loss or ‖ΔW‖ is of another step or formula; ‖ΔW‖ here is of the dense matrices."""
    heard: list[Any] = []
    config = replace(RUN, schedule="linear", warmup_steps=2)
    result = train(toy(), data(), config, tmp_path, Callbacks(record=heard.append))
    lines = logged(tmp_path)
    assert lines == heard == list(result.records)
    assert lines[0]["learning_rate"] == 0 and lines[2]["learning_rate"] == RUN.learning_rate
    assert lines[3]["smoothed_loss"] == pytest.approx(sum(result.losses[:4]) / 4)
    dense = math.sqrt(sum(float(delta.dense().double().square().sum()) for delta in result.deltas.values()))
    assert lines[-1]["delta_norm"] == pytest.approx(dense, rel=1e-4) and dense > 0


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradient_norm_is_before_clipping(clip: float, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if what is logged was clipped: plain SGD moves `up` by rate × gradient, clipped to the norm or not."""
    config = replace(RUN, steps=1, optimizer="sgd", weight_decay=0.0, max_grad_norm=clip)
    result = train(toy(), data(), config, tmp_path)
    moved = math.sqrt(sum(float(delta.up.square().sum()) for delta in result.deltas.values())) / config.learning_rate
    (line,) = logged(tmp_path)
    if clip:
        assert moved == pytest.approx(clip, rel=1e-3) and line["gradient_norm"] > 10 * clip
    else:
        assert line["gradient_norm"] == pytest.approx(moved, rel=1e-4)  # the gradient of `down` is 0 where up is 0


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_bands_part_the_sigmas_into_thirds(kind: str) -> None:
    """Fails if a picture is counted in another band, or its error is not that of the network's own prediction."""
    sigmas = torch.linspace(0.1, 0.9, 9)
    edges = band_edges(sigmas)
    assert edges.tolist() == pytest.approx([0.4, 0.7])
    chance = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(9, 2, 3, 3, generator=chance) for _ in range(2))
    off = torch.randn(9, 2, 3, 3, generator=chance)  # of the network's own prediction
    s = sigmas.view(-1, 1, 1, 1)
    x0 = target - s * off  # x̂₀ = x − σ(ε + off), the same for a flow
    assert noise.shape == x0.shape
    sums = band_sums(x0, target, sigmas, kind, edges)
    assert sums[1].tolist() == [3, 3, 3]
    expected = off.square().flatten(1).mean(1).view(3, 3).sum(1)
    assert torch.allclose(sums[0], expected, rtol=1e-4)


def test_bands_in_the_log_make_up_the_loss(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the log's bands are of other pictures: one picture a step is in one band, with the step's loss."""
    train(toy(), data(), replace(RUN, batch_size=1, steps=12), tmp_path)
    seen = set()
    for line in logged(tmp_path):
        bands = {name: value for name, value in line.items() if name.endswith("_sigma")}
        assert list(bands.values()) == [pytest.approx(line["loss"], rel=1e-4)]
        seen |= set(bands)
    assert len(seen) > 1


def test_nothing_learned_is_an_error(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a model that never answers to its adapters ends in success, or the checkpoint is thrown away."""
    denoiser = toy()
    plain = denoiser.denoise
    denoiser.denoise = lambda noisy, sigma, conds: noisy + 0 * plain(noisy, sigma, conds)
    with pytest.raises(NothingLearned, match=r"(?s)6 steps: ΔW is zero.*gradients were zero.*step-000006 is kept"):
        train(denoiser, data(), RUN, tmp_path)
    assert (tmp_path / "checkpoints" / "step-000006" / "lora.safetensors").is_file()


def test_after_a_resume_the_log_is_whole(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if lines of before are lost to the plot, or bands and norms differ from the unbroken run's."""
    whole = train(toy(), data(), RUN, tmp_path / "whole")
    train(toy(), data(), replace(RUN, steps=3), tmp_path / "two")
    resumed = train(toy(), data(), RUN, tmp_path / "two", resume_from=tmp_path / "two")
    for one, two in zip(whole.records, resumed.records, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
