"""ZipLoRA: each test has an oracle of its own: dense matrices, numpy's least squares, finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from likeness.lora.columns import Columns, all_ones, columns_of, low_rank_layers, with_columns
from likeness.lora.delta import LowRankDelta
from likeness.lora.keys import from_deltas, to_deltas
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, TrainingSet
from likeness.trainers.outcome import Callbacks
from likeness.trainers.zip_branch import BASE, MERGED, SUM, zipped
from likeness.trainers.zip_lora import Zipped, zip_loras
from likeness.trainers.zip_questions import Concept
from likeness.trainers.zip_state import load_state, save_state

LINEARS = [f"diffusion_model.transformer_blocks.{n}.attn1.{k}" for n in (0, 1) for k in ("to_q", "to_k")]
FEED = "diffusion_model.transformer_blocks.0.ff.0"
CONV = "diffusion_model.transformer_blocks.1.conv"


def lora(seed: int, layers: Sequence[str] = LINEARS, rank: int = 2, size: float = 0.5) -> dict[str, LowRankDelta]:
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for name in layers:
        out = 8 if name == FEED else 4
        kernel, ones = ((3, 3), (1, 1)) if name == CONV else ((), ())
        up = torch.randn(out, rank, *ones, generator=chance) * size
        down = torch.randn(rank, 4, *kernel, generator=chance)
        found[name] = LowRankDelta(up, down, 0.7, "conv" if kernel else "linear")
    return found


def concepts(data: Callable[..., TrainingSet], *loras: dict[str, LowRankDelta], **more: Any) -> list[Concept]:
    return [Concept(f"lora {n}", layers, data(3), **more) for n, layers in enumerate(loras, 1)]


CONFIG = TrainingConfig(steps=6, learning_rate=0.05, batch_size=1, seed=5, targets="all", max_grad_norm=0.0)


def answer(denoiser: Any) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        noisy = torch.randn(2, 4, 5, 4, generator=chance)
        return denoiser.denoise(noisy, torch.tensor([0.5, 3.0]), [1.0, 2.0])


def patched(denoiser: Any, loras: Sequence[dict[str, LowRankDelta]], columns: dict[str, Columns] | None = None) -> None:
    """The independent oracle: W + Σ ΔW diag(m), dense, written into the weights."""
    for number, layers in enumerate(loras):
        for name, delta in layers.items():
            weight = denoiser.module.get_submodule(name.removeprefix("diffusion_model.")).weight
            m = None if columns is None or name not in columns else columns[name].of(number)
            dense = delta.dense().reshape(weight.shape)
            if m is not None:
                dense = dense * m.reshape(1, -1, *[1] * (dense.ndim - 2))
            weight.data += dense


@pytest.mark.parametrize("which", [MERGED, SUM, BASE, 0, 1])
def test_live_model_is_that_of_dense_weights(toy: Any, which: int) -> None:
    """Fails where a branch takes another LoRA's rows, coefficients or scale, in linear layers or convolutions."""
    loras = [lora(1, [*LINEARS, FEED, CONV]), lora(2, [*LINEARS[1:], CONV], rank=3)]
    live, dense = toy(), toy()
    names = [*LINEARS, FEED, CONV]
    with zipped(live.module, loras, names, torch.device("cpu")) as branches:
        for number, layer in enumerate(branches.layers.values()):
            layer.m.data = torch.randn(layer.m.shape, generator=torch.Generator().manual_seed(number))
        columns = branches.columns()
        branches.which = which
        found = answer(live)
    chosen = {MERGED: loras, SUM: loras, BASE: [{}, {}], 0: [loras[0], {}], 1: [{}, loras[1]]}[which]
    patched(dense, chosen, columns if which == MERGED else None)
    torch.testing.assert_close(found, answer(dense), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer(live), answer(toy()), rtol=0, atol=0)  # and nothing is left of it


def test_export_is_the_live_model(toy: Any, data: Any) -> None:
    """Fails where A diag(m) in the file is not what was learnt: the files, applied densely, must answer as it did."""
    loras = [lora(1, [*LINEARS, FEED, CONV]), lora(2, [*LINEARS[1:], CONV], rank=3)]
    denoiser = toy()
    found = zip_loras(denoiser, concepts(data, *loras), CONFIG, 0.01)
    assert max(float((each.values - 1).abs().max()) for each in found.columns.values()) > 0.05, "nothing was learnt"
    with zipped(denoiser.module, loras, list(found.columns), torch.device("cpu")) as branches:
        for name, layer in branches.layers.items():
            layer.m.data = found.columns[name].values
        live = answer(denoiser)
    files = [to_deltas(with_columns(from_deltas(each), columns_of(found.columns, n))) for n, each in enumerate(loras)]
    patched(denoiser, files)
    torch.testing.assert_close(answer(denoiser), live, rtol=1e-5, atol=1e-5)


def test_gradients_by_finite_differences(toy: Any) -> None:
    """Fails where the hand-written backward pass of the branch, or that of the overlap, is not the derivative."""
    loras = [lora(1, [*LINEARS, CONV]), lora(2, [*LINEARS, CONV], rank=1)]
    loras = [
        {k: dataclasses.replace(d, up=d.up.double(), down=d.down.double()) for k, d in one.items()} for one in loras
    ]
    denoiser = toy(dtype=torch.float64)
    device = torch.device("cpu")
    with zipped(denoiser.module, loras, [*LINEARS, CONV], device, torch.float64) as branches:
        chance = torch.Generator().manual_seed(3)
        noisy = torch.randn(1, 4, 3, 3, generator=chance, dtype=torch.float64)

        def loss() -> Tensor:
            x0 = denoiser.denoise(noisy, torch.tensor([0.8], dtype=torch.float64), [1.0])
            return x0.square().mean() + 0.1 * branches.overlap()

        loss().backward()
        for parameter in branches.parameters():
            assert parameter.grad is not None
            for place in [(0, 0), (1, 2)]:
                step, values = 1e-6, []
                for sign in (1, -1):
                    with torch.no_grad():
                        parameter[place] += sign * step
                        values.append(float(loss()))
                        parameter[place] -= sign * step
                expected = (values[0] - values[1]) / (2 * step)
                assert float(parameter.grad[place]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


class LinearDenoiser:
    """The network is one matrix over tokens, its answer ε: the best coefficients are a least squares solution."""

    parameterisation = "eps"
    device = torch.device("cpu")

    def __init__(self, width: int, shape: tuple[int, int] = (1, 8)) -> None:
        self.module = nn.Module()
        self.module.attn1 = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.module.attn1.weight)
        self.sigmas = torch.tensor([1.0])

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        return latents + 0.0 * noise  # the pictures themselves: what the oracle sees

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[object]) -> Tensor:
        tokens = noisy.flatten(2).transpose(1, 2)
        return noisy - self.module.attn1(tokens).transpose(1, 2).reshape(noisy.shape)


def solved(concepts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(k, in) of least squares, by numpy: Σᵢ ‖(Σⱼ Dⱼ diag(mⱼ) − Dᵢ) Xᵢ‖², (D (out, in), X (in, tokens)) each."""
    inputs = concepts[0][0].shape[1]
    rows, goals = [], []
    for delta, x in concepts:
        # The answer is linear in m: column c of LoRA j adds D_j[:, c] x[c] for each token.
        blocks = [np.einsum("oc,ct->otc", other, x).reshape(-1, inputs) for other, _ in concepts]
        rows.append(np.concatenate(blocks, 1) / np.sqrt(x.shape[1]))
        goals.append((delta @ x).reshape(-1) / np.sqrt(x.shape[1]))
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(goals), rcond=None)[0]
    return found.reshape(len(concepts), inputs)


def toy_concepts(deltas: Sequence[LowRankDelta], pictures: Sequence[Tensor]) -> list[Concept]:
    return [
        Concept(f"lora {n}", {"diffusion_model.attn1": delta}, TrainingSet((Example(x, None, 1.0, None),), 0.0))
        for n, (delta, x) in enumerate(zip(deltas, pictures, strict=True), 1)
    ]


def optimum(steps: int = 300, rate: float = 0.1, **more: Any) -> TrainingConfig:
    return TrainingConfig(steps=steps, learning_rate=rate, schedule="cosine", max_grad_norm=0.0, **more)


@pytest.mark.parametrize("count", [2, 3])
def test_optimum_is_least_squares(count: int) -> None:
    """Fails where the loss is not the squared error of each concept against its own teacher, or one is left out."""
    chance = torch.Generator().manual_seed(count)
    deltas = [
        LowRankDelta(torch.randn(6, 3, generator=chance), torch.randn(3, 6, generator=chance), 0.5, "linear")
        for _ in range(count)
    ]
    pictures = [torch.randn(6, 4, 5, generator=chance) for _ in range(count)]
    found = zip_loras(LinearDenoiser(6), toy_concepts(deltas, pictures), optimum(), 0.0)
    oracle = solved([(d.dense().numpy(), x.flatten(1).numpy()) for d, x in zip(deltas, pictures, strict=True)])
    np.testing.assert_allclose(found.columns["diffusion_model.attn1"].values.numpy(), oracle, atol=2e-3)
    assert all(fit.merged < 0.9 * fit.plain for fit in found.fits)


def test_identical_loras_share_the_work() -> None:
    """Two LoRAs that are the same: m₁ + m₂ = 1 is the only optimum, and both get half from their equal start."""
    chance = torch.Generator().manual_seed(0)
    delta = LowRankDelta(torch.randn(5, 2, generator=chance), torch.randn(2, 5, generator=chance), 1.0, "linear")
    x = torch.randn(5, 3, 3, generator=chance)
    found = zip_loras(LinearDenoiser(5), toy_concepts([delta, delta], [x, x]), optimum(), 0.0)
    torch.testing.assert_close(
        found.columns["diffusion_model.attn1"].values, torch.full((2, 5), 0.5), atol=1e-3, rtol=0
    )
    assert all(fit.merged < 1e-5 * fit.base for fit in found.fits)
    assert all(fit.plain == pytest.approx(fit.base, rel=1e-5) for fit in found.fits)  # twice too much, once too little


def test_disjoint_columns_stay_and_the_idle_ones_go() -> None:
    """LoRAs and pictures of different columns do not disturb each other: m stays 1 there. Elsewhere m does nothing, and
    the overlap alone decides: it must push one of the two to 0."""
    chance = torch.Generator().manual_seed(0)
    deltas, pictures = [], []
    for columns in (slice(0, 3), slice(3, 6)):
        down = torch.zeros(2, 6)
        down[:, columns] = torch.randn(2, 3, generator=chance)
        deltas.append(LowRankDelta(torch.randn(6, 2, generator=chance), down, 1.0, "linear"))
        picture = torch.zeros(6, 4, 4)
        picture[columns] = torch.randn(3, 4, 4, generator=chance)
        pictures.append(picture)
    found = zip_loras(LinearDenoiser(6), toy_concepts(deltas, pictures), optimum(200), 1e-3)
    m = found.columns["diffusion_model.attn1"].values
    for own, other, columns in ((0, 1, slice(0, 3)), (1, 0, slice(3, 6))):
        torch.testing.assert_close(m[own, columns], torch.ones(3), atol=0.02, rtol=0)
        torch.testing.assert_close(m[other, columns], torch.zeros(3), atol=0.05, rtol=0)
    assert found.records[-1]["overlap"] < 0.06 * found.records[0]["overlap"]


class Largest(TorchDispatchMode):
    """The shapes of all tensors that operations make, those of the model's own weights left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self.weights:
                self.shapes.add(tuple(each.shape))
        return out


def test_no_dense_difference_is_ever_made() -> None:
    """Fails as soon as any operation, forth or back, makes a tensor of the weight's size (48 × 40 or 40 × 48)."""

    class Wide(LinearDenoiser):
        def __init__(self) -> None:
            super().__init__(4)
            self.module.attn1 = nn.Linear(40, 48, bias=False)
            self.module.attn2 = nn.Linear(48, 40, bias=False)

        def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[object]) -> Tensor:
            tokens = noisy.flatten(2).transpose(1, 2)
            return noisy - self.module.attn2(self.module.attn1(tokens)).transpose(1, 2).reshape(noisy.shape)

    chance = torch.Generator().manual_seed(0)

    def layers() -> dict[str, LowRankDelta]:
        sizes = {"diffusion_model.attn1": (48, 40), "diffusion_model.attn2": (40, 48)}
        return {
            name: LowRankDelta(
                torch.randn(out, 3, generator=chance), torch.randn(3, n, generator=chance), 1.0, "linear"
            )
            for name, (out, n) in sizes.items()
        }

    data = TrainingSet((Example(torch.randn(40, 2, 3, generator=chance), None, 1.0, None),), 0.0)
    both = [Concept(str(n), layers(), data) for n in range(2)]
    denoiser = Wide()
    with Largest(denoiser.module) as seen:
        zip_loras(denoiser, both, TrainingConfig(steps=2, learning_rate=0.01), 0.01)
    assert (6, 40) in seen.shapes, "the mode saw no branch at all"
    assert not {(48, 40), (40, 48)} & seen.shapes
    assert max(int(np.prod(shape)) for shape in seen.shapes) < 48 * 40


def run(toy: Any, data: Any, config: TrainingConfig = CONFIG, **more: Any) -> Zipped:
    return zip_loras(toy(), concepts(data, lora(1), lora(2)), config, 0.01, **more)


def test_same_seed_same_bytes(toy: Any, data: Any) -> None:
    """Fails where anything is drawn from a global generator."""
    first = run(toy, data)
    torch.manual_seed(99)
    second = run(toy, data)
    assert first.records == second.records and first.fits == second.fits
    assert all(torch.equal(first.columns[k].values, second.columns[k].values) for k in first.columns)
    third = run(toy, data, dataclasses.replace(CONFIG, seed=6))
    assert third.records != first.records


def test_resumed_is_unbroken(toy: Any, data: Any, tmp_path: Path) -> None:
    """Cancelled after 2 steps, written, read and gone on: to the bit what an unbroken run learns."""
    asked = iter([False, False, True])
    part = run(toy, data, callbacks=Callbacks(cancelled=lambda: next(asked)))
    assert part.steps_done == 2 and len(part.records) == 2
    about = {"loras": ["a", "b"]}
    save_state(tmp_path / "state.safetensors", part.state, about)
    start = load_state(tmp_path / "state.safetensors", about)
    whole, resumed = run(toy, data), run(toy, data, start=start)
    assert whole.records == resumed.records and whole.fits == resumed.fits
    assert all(torch.equal(whole.columns[k].values, resumed.columns[k].values) for k in whole.columns)
    with pytest.raises(ValueError, match="loras is"):
        load_state(tmp_path / "state.safetensors", {"loras": ["b", "a"]})
    with pytest.raises(ValueError, match="other coefficients"):
        zip_loras(toy(), concepts(data, lora(1, LINEARS[:2]), lora(2)), CONFIG, start=start)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("imagined", [False, True])
def test_learns_on_every_parameterisation(toy: Any, data: Any, kind: str, imagined: bool) -> None:
    """Merged predictions come nearer to the teachers than the plain sum's, with pictures and with none."""
    both = concepts(data, lora(1), lora(2), imagined=imagined)
    config = dataclasses.replace(CONFIG, steps=40, batch_size=2)
    found = zip_loras(toy(kind), both, config, 0.0)
    for fit in found.fits:
        assert fit.merged < 0.9 * fit.plain


def test_layers_that_do_not_learn_are_added_up(toy: Any, data: Any) -> None:
    """Targets name the layers with coefficients; the others stay in both models, and there is none for them."""
    loras = [lora(1, [*LINEARS, FEED]), lora(2, [FEED])]
    found = zip_loras(toy(), concepts(data, *loras), dataclasses.replace(CONFIG, targets="attention"), 0.01)
    assert set(found.columns) == set(LINEARS)
    assert all(each.loras == (0,) for each in found.columns.values())
    assert all(record["overlap"] == 0 for record in found.records)


def test_gradient_checkpointing_changes_nothing(toy: Any, data: Any) -> None:
    """Recomputed blocks go through the same branches: the same records to the bit."""
    assert run(toy, data).records == run(toy, data, dataclasses.replace(CONFIG, gradient_checkpointing=True)).records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: [a], "expected two or more"),
        (lambda a, b: [a, dataclasses.replace(b, layers={})], "changes no layer"),
        (lambda a, b: [a, dataclasses.replace(b, layers=lora(2, [LINEARS[0][:-1] + "z"]))], "no layer"),
        (lambda a, b: [a, dataclasses.replace(b, layers={LINEARS[0]: lora(2, [FEED])[FEED]})], "LoRA 2 changes"),
    ],
)
def test_refusals(toy: Any, data: Any, change: Any, message: str) -> None:
    """What cannot be merged is told before any work, and the model is left as it was."""
    denoiser = toy()
    with pytest.raises(ValueError, match=message):
        zip_loras(denoiser, change(*concepts(data, lora(1), lora(2))), CONFIG)
    torch.testing.assert_close(answer(denoiser), answer(toy()), rtol=0, atol=0)


def test_model_is_as_it_was(toy: Any, data: Any) -> None:
    """Weights, flags, hooks and gradients: as before, also after an error in the middle."""
    denoiser = toy()
    before = {name: value.clone() for name, value in denoiser.module.state_dict().items()}

    def fails() -> bool:
        raise RuntimeError("in the middle")

    zip_loras(denoiser, concepts(data, lora(1), lora(2)), CONFIG)
    with pytest.raises(RuntimeError, match="in the middle"):
        zip_loras(denoiser, concepts(data, lora(1), lora(2)), CONFIG, callbacks=Callbacks(cancelled=fails))
    assert all(torch.equal(value, before[name]) for name, value in denoiser.module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in denoiser.module.parameters())
    assert not any(module._forward_hooks for module in denoiser.module.modules())


def test_all_ones_is_the_plain_sum() -> None:
    """Fails where with_columns changes more than the columns it was told."""
    one = lora(1, [*LINEARS, CONV])
    same = with_columns(from_deltas(one), columns_of(all_ones([one]), 0))
    for name, delta in low_rank_layers(same).items():
        torch.testing.assert_close(delta.dense(), one[name].dense())
