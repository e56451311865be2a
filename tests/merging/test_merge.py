"""Whole LoRAs into one: kinds, ranks, weights, output ranks and figures, against numpy on dense ΔW."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.lora.kinds import lora_layers
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors
from likeness.merging.align import Source
from likeness.merging.layer_weights import parse_layer_weights, weights_in
from likeness.merging.merge import merge_loras
from likeness.merging.methods import METHODS
from likeness.merging.options import MergeOptions, OutputRank
from likeness.merging.stack import LayerStack
from likeness.merging.ties import ties

Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
K = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
CONV = "diffusion_model.input_blocks.1.0.in_layers.2"
TEXT = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"


def chance(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(base: str, shape: tuple[int, ...], rank: int, alpha: float | None, seed: int, dtype=torch.float32) -> dict:
    """One layer's tensors in comfy naming."""
    up, down = chance(shape[0], rank, *[1] * (len(shape) - 2), seed=seed), chance(rank, *shape[1:], seed=seed + 1)
    out = {f"{base}.lora_up.weight": up.to(dtype), f"{base}.lora_down.weight": down.to(dtype)}
    return out if alpha is None else out | {f"{base}.alpha": torch.tensor(float(alpha))}


def dense(tensors: dict, base: str) -> np.ndarray:
    """ΔW (out, everything else), float64, by the formula of a LoRA."""
    up, down = (tensors[f"{base}.lora_{f}.weight"].double().flatten(1).numpy() for f in ("up", "down"))
    alpha = tensors.get(f"{base}.alpha")
    return (1.0 if alpha is None else float(alpha) / len(down)) * up @ down


def merged(sources: list[tuple[dict, float]], rules: str = "", **options) -> tuple[LoraTensors, list]:
    named = [Source(f"lora {i}", tensors, weight) for i, (tensors, weight) in enumerate(sources)]
    return merge_loras(named, MergeOptions(**options), parse_layer_weights(rules))


def near(tensors: dict, base: str, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    return np.abs(dense(tensors, base) - expected).max() <= tolerance * max(1e-9, np.abs(expected).max())


OTHERS = {
    "LoHa": {"hada_w1_a": chance(20, 2), "hada_w1_b": chance(2, 24), "hada_w2_a": chance(20, 2, seed=1),
             "hada_w2_b": chance(2, 24, seed=1), "alpha": torch.tensor(1.0)},
    "LoHa of high rank": {"hada_w1_a": chance(20, 5), "hada_w1_b": chance(5, 24), "hada_w2_a": chance(20, 5, seed=1),
                          "hada_w2_b": chance(5, 24, seed=1), "alpha": torch.tensor(1.0)},
    "LoKr": {"lokr_w1": chance(4, 3), "lokr_w2": chance(5, 8)},
    "full": {"diff": chance(20, 24)},
}  # fmt: skip


def dense_other(kind: str) -> np.ndarray:
    p = {suffix: tensor.double().numpy() for suffix, tensor in OTHERS[kind].items()}
    if kind == "full":
        return p["diff"]
    if kind == "LoKr":
        return np.kron(p["lokr_w1"], p["lokr_w2"])
    return (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]) / p["hada_w1_b"].shape[0]


dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
one_lora = st.tuples(
    st.integers(1, 5),
    st.one_of(st.none(), st.floats(0.1, 9)),
    dtypes,
    st.integers(-200, 200).map(lambda n: n / 100),
    st.integers(0, 9999),
)


@settings(max_examples=40, deadline=None)
@given(
    loras=st.lists(one_lora, min_size=1, max_size=4),
    shape=st.sampled_from([(12, 17), (17, 12), (6, 4), (10, 4, 3, 3), (8, 9, 1, 1)]),
)
def test_linear_is_the_weighted_sum(loras: list, shape: tuple[int, ...]) -> None:
    """Fails if ranks, alphas, dtypes or signs of weights are mixed up, or a cross term BᵢAⱼ is in it: against numpy on
    the dense ΔW, over ranks below and above what the layer can have, matrices and convolutions."""
    sources = [(pair(Q, shape, rank, alpha, seed, dtype), w) for rank, alpha, dtype, w, seed in loras]
    if all(w == 0 for _, w in sources):
        return
    expected = sum(weight * dense(tensors, Q) for tensors, weight in sources)
    limit = min(shape[0], math.prod(shape[1:]))
    size = sum(abs(weight) * np.abs(dense(tensors, Q)).max() for tensors, weight in sources)
    for method in ("linear", "svd"):
        out, (layer,) = merged(sources, method=method)
        assert np.abs(dense(out, Q) - expected).max() <= 2e-6 * size
        assert out[f"{Q}.lora_down.weight"].shape[1:] == shape[1:]
        assert layer.rank <= min(limit, sum(rank for rank, _, _, w, _ in loras if w != 0))
        assert layer.error == 0 and layer.norm == pytest.approx(np.linalg.norm(expected), rel=1e-4, abs=1e-5 * size)
        assert layer.norms == pytest.approx([abs(w) * np.linalg.norm(dense(t, Q)) for t, w in sources], rel=1e-5)


def test_concatenation_is_not_rounded() -> None:
    """Fails if the factors are rescaled by anything but powers of two (bits are lost), or half precision would lose the
    small one: up of 1e-6, as a short training leaves it."""
    tensors = pair(Q, (12, 17), 4, None, 1)
    tensors[f"{Q}.lora_up.weight"] *= 1e-6
    out, _ = merged([(tensors, 1.0)])
    product = out[f"{Q}.lora_up.weight"] @ out[f"{Q}.lora_down.weight"]
    assert torch.equal(product, tensors[f"{Q}.lora_up.weight"] @ tensors[f"{Q}.lora_down.weight"])
    half = {key: tensor.half().double() for key, tensor in out.items()}
    assert near(half, Q, dense(tensors, Q), 2e-3)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("method", ["linear", "magnitude"])
def test_kinds_that_are_no_pair(kind: str, method: str) -> None:
    """Fails if LoHa, LoKr or a full difference is left out, or built by another formula, beside an ordinary LoRA."""
    other = {f"{Q}.{suffix}": tensor for suffix, tensor in OTHERS[kind].items()}
    plain = pair(Q, (20, 24), 3, 6.0, 5)
    out, (layer,) = merged([(plain, 0.5), (other, -1.5)], method=method, density=1.0)
    expected = 0.5 * dense(plain, Q) - 1.5 * dense_other(kind)
    assert near(out, Q, expected, 1e-5)
    assert set(out) == {f"{Q}.{suffix}" for suffix in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert layer.ranks[0] == 3 and (layer.ranks[1] is None) == (kind in ("full", "LoHa of high rank", "LoKr"))


def test_layers_that_not_all_have() -> None:
    """Fails if a layer of one LoRA is lost or counted for another; text encoders and convolutions too."""
    first = pair(Q, (12, 17), 2, 1.0, 1) | pair(CONV, (8, 4, 3, 3), 2, None, 2)
    second = pair(Q, (12, 17), 3, 2.0, 3) | pair(TEXT, (16, 16), 2, 4.0, 4)
    out, layers = merged([(first, 2.0), (second, -1.0)])
    assert [layer.ranks for layer in layers] == [(2, 3), (2, 0), (0, 2)]
    assert near(out, Q, 2 * dense(first, Q) - dense(second, Q))
    assert near(out, CONV, 2 * dense(first, CONV)) and near(out, TEXT, -dense(second, TEXT))
    assert [layer.norms[1] for layer in layers][1] == 0 and math.isnan(layers[1].cosine)
    assert out[f"{CONV}.lora_up.weight"].shape == (8, 2, 1, 1)


def test_biases_and_norms() -> None:
    """Fails if what stands beside a layer, or has one dimension, is lost, weighted twice or compressed."""
    first = pair(Q, (12, 17), 2, 1.0, 1) | {
        f"{Q}.diff_b": chance(12),
        "norm.w_norm": chance(5),
        "norm.b_norm": chance(5),
    }
    second = {f"{Q}.diff_b": chance(12, seed=3), "other.diff": chance(4)}
    out, layers = merged([(first, 2.0), (second, -1.0)])
    assert torch.allclose(out[f"{Q}.diff_b"], 2 * first[f"{Q}.diff_b"] - second[f"{Q}.diff_b"])
    assert torch.allclose(out["norm.w_norm"], 2 * first["norm.w_norm"])
    assert torch.allclose(out["other.diff"], -second["other.diff"])
    assert near(out, Q, 2 * dense(first, Q))
    assert {layer.name: layer.rank for layer in layers}[f"{Q}.diff_b"] is None
    for method in METHODS:
        out, _ = merged([(first, 1.0), (first, 1.0)], method=method, density=0.9)
        assert set(out) >= set(first) and all(bool(torch.isfinite(tensor).all()) for tensor in out.values())


def test_weights_of_single_layers() -> None:
    """Fails if the first rule that matches does not decide, factors are no factors, or weight 0 merges."""
    first, second = (pair(Q, (9, 9), 2, 1.0, i) | pair(K, (9, 7), 2, 1.0, i + 5) for i in (1, 2))
    rules = "# halves\n\nattn1 0.5\n.* 1 0\nattn2 9\n"
    out, layers = merged([(first, 2.0), (second, -1.0)], rules)
    assert near(out, Q, dense(first, Q) - 0.5 * dense(second, Q))
    assert near(out, K, 2 * dense(first, K)) and layers[1].rank == 2
    out, layers = merged([(first, 2.0), (second, -1.0)], "attn1 0")
    assert [layer.name for layer in layers] == [K]
    with pytest.raises(ValueError, match="every weight is 0"):
        merged([(first, 0.0), (second, 1.0)], ".* 1 0")
    for text, says in (
        ("( 1", "line 1 .* no regular expression"),
        ("\nattn1", "line 2 .* has no number"),
        ("attn1 half", "'half' is no number"),
        ("attn1 inf", "finite"),
        ("attn1 1 2 3", "3 numbers for 2 LoRAs"),
    ):
        with pytest.raises(ValueError, match=says):
            merged([(first, 1.0), (second, 1.0)], text)
    assert weights_in("x", [1.0, 2.0], parse_layer_weights("y 3")) == (1.0, 2.0)


def test_output_ranks() -> None:
    """Fails if a cut is not the best of its rank (Eckart–Young), energy or error are not the tail's, auto goes above
    Σr, energy takes a rank too many, or rounding's leftovers of what cancels count as directions."""
    sources = [(pair(Q, (30, 20), 4, None, 1), 1.0), (pair(Q, (30, 20), 5, None, 2), -0.5)]
    u, s, v = np.linalg.svd(sum(w * dense(t, Q) for t, w in sources), full_matrices=False)
    for method in ("linear", "svd"):
        out, (layer,) = merged(sources, method=method, output=OutputRank("number", rank=3))
        assert layer.rank == 3 and near(out, Q, (u[:, :3] * s[:3]) @ v[:3])
        assert layer.error == pytest.approx(np.linalg.norm(s[3:]) / np.linalg.norm(s), rel=1e-5)
        assert layer.energy == pytest.approx((s[:3] ** 2).sum() / (s**2).sum())
    shares = (s**2).cumsum() / (s**2).sum()
    for energy in (0.3, 0.9, 0.999):
        _, (layer,) = merged(sources, output=OutputRank("energy", energy=energy))
        assert layer.rank == int((shares < energy).sum()) + 1
    assert merged(sources, output=OutputRank("auto"))[1][0].rank == int((shares < 0.99).sum()) + 1
    full, (layer,) = merged(sources, method="ties", density=0.5)
    assert layer.rank == 20 and layer.error == 0
    _, (layer,) = merged(sources, method="ties", density=0.5, output=OutputRank("auto"))
    values = np.linalg.svd(dense(full, Q), compute_uv=False)
    assert layer.rank == 9 and layer.energy == pytest.approx((values[:9] ** 2).sum() / (values**2).sum(), rel=1e-5)
    twins = [(sources[0][0], 1.0), (sources[0][0], 1.0)]
    assert merged(twins)[1][0].rank == 8 and merged(twins, method="svd")[1][0].rank == 4
    assert merged([twins[0], (twins[0][0], -1.0)], method="svd")[1][0].rank == 1
    for bad in ({"mode": "all"}, {"mode": "number", "rank": 0}, {"mode": "energy", "energy": 0}):
        with pytest.raises(ValueError, match="expected"):
            OutputRank(**bad)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_through_a_file(method: str, tmp_path: Path) -> None:
    """Fails if a method's output is no ordinary LoRA: saved, loaded and read by its formula it is what was merged. λ
    scales it, and the same seed gives the same bits."""
    first = pair(Q, (12, 17), 2, 1.0, 1, torch.float16) | pair(CONV, (8, 4, 3, 3), 2, None, 2)
    second = pair(Q, (12, 17), 3, 2.0, 3, torch.bfloat16) | pair(TEXT, (16, 16), 2, 4.0, 4)
    sources = [(first, 1.0), (second, 0.7)]
    out, _ = merged(sources, method=method, seed=4)
    again, layers = merged(sources, method=method, seed=4, measure=False)
    assert all(torch.equal(out[key], again[key]) for key in out) and math.isnan(layers[0].cosine)
    tripled, _ = merged(sources, method=method, seed=4, scale=-3.0)
    save_lora(tmp_path / "m.safetensors", out, "kohya", "fp32")
    loaded = load_lora(tmp_path / "m.safetensors")
    for base in (Q, CONV, TEXT):
        assert near(loaded, base, dense(out, base)) and near(tripled, base, -3 * dense(out, base), 1e-4)
    assert {layer.kind for layer in lora_layers(loaded)[0]} == {"LoRA"}


def test_methods_work_on_the_difference() -> None:
    """Fails if TIES, or the seeds of DARE, work on factors, or weights come after the election: numpy's dense ΔW in."""
    sources = [(pair(Q, (12, 17), 2, 1.0, 1), 1.0), (pair(Q, (12, 17), 3, 2.0, 3), -0.7)]
    stack = torch.tensor(np.stack([w * dense(t, Q) for t, w in sources])).float()
    out, _ = merged(sources, method="ties", density=0.3, majority="frequency")
    assert near(out, Q, ties(stack, 0.3, "frequency").double().numpy())
    draws = [dense(merged(sources, method="dare", density=0.5, seed=seed)[0], Q) for seed in range(60)]
    assert not np.allclose(draws[0], draws[1])
    spread = np.sqrt((stack.double().numpy() ** 2).sum(0) / len(draws))
    assert (np.abs(np.mean(draws, 0) - stack.double().sum(0).numpy()) < 6 * spread + 1e-6).all()


def test_density_over_the_whole_model() -> None:
    """Fails if each layer keeps its own share, or LoRAs share a limit: the small layer must vanish."""
    first = pair(Q, (12, 17), 2, None, 1) | {k: t * 1e-3 for k, t in pair(K, (12, 17), 2, None, 2).items()}
    out, layers = merged([(first, 1.0)], method="magnitude", density=0.25, scope="model")
    flat = np.concatenate([dense(first, Q).ravel(), dense(first, K).ravel()])
    limit = np.sort(np.abs(flat))[::-1][int(0.25 * len(flat)) - 1]
    assert near(out, Q, np.where(np.abs(dense(first, Q)) >= limit * (1 - 1e-6), dense(first, Q), 0))
    assert layers[1].norm == 0 and not dense(out, K).any()
    with pytest.raises(ValueError, match="only ties, magnitude"):
        merged([(first, 1.0)], method="dare", scope="model")


def test_figures() -> None:
    """Fails if cosine or sign conflict are of other entries or leave out a weight's sign, or chance is not what numpy
    finds when the signs are shuffled."""
    loras = [pair(Q, (40, 50), 6, None, seed) for seed in (1, 2, 3)]
    weights = [1.0, -0.5, 2.0]
    d = [w * dense(t, Q) for t, w in zip(loras, weights, strict=True)]
    _, (layer,) = merged(list(zip(loras, weights, strict=True)))
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = [(d[i] * d[j]).sum() / np.linalg.norm(d[i]) / np.linalg.norm(d[j]) for i, j in pairs]
    assert layer.cosine == pytest.approx(np.mean(cosines))
    conflicts = [(np.sign(d[i]) != np.sign(d[j])).mean() for i, j in pairs]
    assert layer.conflict.share == pytest.approx(np.mean(conflicts))
    assert layer.conflict.chance == pytest.approx(0.5, abs=0.01)
    skewed = {f"{Q}.diff": (torch.arange(2000).reshape(40, 50) % 5 > 0).float() * 2 - 1}  # 80% positive
    other = {f"{Q}.diff": (torch.arange(2000).reshape(40, 50) % 7 > 0).float() * 2 - 1}
    _, (layer,) = merged([(skewed, 1.0), (other, 1.0)])
    shuffled = np.random.default_rng(0).permutation(skewed[f"{Q}.diff"].numpy().ravel())
    assert layer.conflict.chance == pytest.approx((shuffled != other[f"{Q}.diff"].numpy().ravel()).mean(), abs=0.03)
    same, opposite = merged([(loras[0], 1.0), (loras[0], 2.0)])[1][0], merged([(loras[0], 1.0), (loras[0], -2.0)])[1][0]
    assert (same.conflict.share, opposite.conflict.share) == pytest.approx((0, 1), abs=1e-9)
    apart = [({f"{Q}.diff": torch.eye(4)[i : i + 1].T @ torch.ones(1, 3)}, 1.0) for i in range(3)]
    assert math.isnan(merged(apart)[1][0].conflict.share)  # no entry that two of them have
    assert (same.cosine, opposite.cosine) == pytest.approx((1, -1))


def test_what_does_not_fit_together() -> None:
    """Fails if SD1.5 is merged with SD2.x or Flux, or the message does not name both architectures and the layer."""
    sd1, sd2 = (pair(Q, (8, 8), 2, 1.0, 1) | pair(K, (8, width), 2, 1.0, 2) for width in (768, 1024))
    flux = pair("diffusion_model.double_blocks.0.img_attn.qkv", (24, 8), 2, 1.0, 1)
    with pytest.raises(ValueError, match=rf"lora 0 .*Diffusion 1\).*lora 2 .*Diffusion 2\).*{K}.*8×768.*8×1024"):
        merged([(sd1, 1.0), (sd1, 1.0), (sd2, 1.0)])
    with pytest.raises(ValueError, match=r"Diffusion 1\).*Flux\).*double_blocks.0.img_attn.qkv.*no such layer"):
        merged([(sd1, 1.0), (flux, 1.0)])
    narrow = pair(Q, (8, 8), 2, 1.0, 1)  # a UNet, but which?
    text = pair(TEXT, (8, 8), 2, 1.0, 3)
    assert len(merged([(sd1, 1.0), (narrow, 1.0), (text, 1.0)])[1]) == 3


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (pair(Q, (8, 8), 2, 1.0, 1) | {f"{Q}.dora_scale": chance(8, 1)}, f"lora 1: its layer {Q} is DoRA.*base model"),
        ({f"{Q}.oft_blocks": chance(2, 4, 4)}, "OFT"),
        ({f"{Q}.lora_up.weight": chance(8, 2)}, f"lora 1: the layer {Q} has lora_up.weight but no"),
        ({f"{Q}.hada_w1_a": chance(8, 2)}, "incomplete or malformed"),
        (pair(Q, (8, 8), 2, math.nan, 1), "NaN"),
        ({f"{Q}.diff_b": chance(8), f"{Q}.set_weight": chance(8, 8)}, "set_weight"),
        ({"strange.thing": chance(8)}, "strange.thing is no part of a LoRA"),
        ({}, "lora 1 changes no layer"),
        ({f"{Q}.alpha": torch.tensor(1.0)}, "lora 1 changes no layer"),
        (pair(Q, (8, 8), 2, 1.0, 1) | {f"{Q}.diff_b": chance(9)}, "lora 1 changes .* by 9 numbers"),
    ],
)  # fmt: skip
def test_refusals(tensors: dict, says: str) -> None:
    """Fails if what cannot be merged is merged or ends in another error, or the message does not say which LoRA."""
    good = pair(Q, (8, 8), 2, 1.0, 1) | {f"{Q}.diff_b": chance(8)}
    with pytest.raises(ValueError, match=says):
        merged([(good, 1.0), (tensors, 1.0)])


def test_refused_choices() -> None:
    """Fails if a choice that no method knows is taken in silence."""
    good = pair(Q, (8, 8), 2, 1.0, 1)
    for bad in ({"density": 0.0}, {"majority": "most"}, {"scope": "block"}, {"scale": math.inf}, {"outliers": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            MergeOptions(**bad)
    for sources, options, says in (
        ([(good, 1.0)], {"method": "zip"}, "unknown method"),
        ([(good, 1.0)], {"method": "slerp"}, "merges 2 LoRAs, and was given 1"),
        ([(good, math.nan)], {}, "weight of lora 0 is nan"),
        ([], {}, "no LoRA"),
    ):
        with pytest.raises(ValueError, match=says):
            merged(sources, **options)


class OnDisk(Mapping[str, torch.Tensor]):
    """Reads a tensor when asked for it, and remembers which."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors, self.asked, self.metadata = tensors, [], {"sshs_model_hash": "known"}

    def __getitem__(self, key: str) -> torch.Tensor:
        self.asked.append(key.rpartition(".lora_")[0] or key.rpartition(".")[0])
        return self._tensors[key].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def test_layers_are_asked_for_one_at_a_time() -> None:
    """Fails if a merge takes all of a LoRA at once, so that a hundred do not fit into memory."""
    sources = [OnDisk(pair(Q, (8, 8), 2, 1.0, i) | pair(K, (8, 9), 2, 1.0, i)) for i in range(3)]
    out, _ = merge_loras([Source(str(i), one) for i, one in enumerate(sources)])
    for one in sources:
        runs = 1 + sum(a != b for a, b in pairwise(one.asked))
        assert runs == 4  # to check and to merge, and each goes through both layers once
    assert near(out, K, sum(dense(dict(one), K) for one in sources))


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].stacked])
def test_differences_are_made_one_at_a_time(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a method holds all ΔW of a layer at once, of which a hundred are gigabytes."""
    alive: list[weakref.ref] = []
    most = 0
    made = LayerStack.delta

    def watched(self: LayerStack, *which: float) -> torch.Tensor:
        nonlocal most
        out = made(self, *which)
        alive.append(weakref.ref(out))
        most = max(most, sum(one() is not None for one in alive))
        return out

    monkeypatch.setattr(LayerStack, "delta", watched)
    sources = [(pair(Q, (12, 17), 3, None, i), 1.0) for i in range(9)]
    merged(sources, method=method, density=0.5, measure=False)
    assert len(alive) >= 9 and most <= 2


def test_few_values_of_a_large_layer() -> None:
    """Fails if the figures of a layer cut by iteration are not those of the factors that came out: against numpy on
    ΔW, made of factors (many) and whole (TIES)."""
    sources = [(pair(Q, (300, 270), 9, None, i), 1.0) for i in range(4)]
    for method in ("linear", "ties"):
        out, (layer,) = merged(sources, method=method, output=OutputRank("number", rank=6), measure=False)
        whole = sum(dense(t, Q) for t, _ in sources)
        if method == "ties":
            whole = ties((torch.from_numpy(dense(t, Q)).float() for t, _ in sources), 0.5).double().numpy()
        lost, norm = np.linalg.norm(whole - dense(out, Q)), np.linalg.norm(whole)
        best = np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[6:])
        assert layer.rank == 6 and layer.norm == pytest.approx(norm, rel=1e-5)
        assert layer.error == pytest.approx(lost / norm, rel=1e-4) and lost <= 1.002 * best


def test_metadata() -> None:
    """Fails if trigger words, hashes, weights or the method are lost, or something that LoRAs disagree on is kept."""
    base = {"ss_base_model_version": "sd_v1", "likeness.res_blocks": "[2, 2]", "ss_steps": "9"}
    first = LoraTensors(pair(Q, (8, 8), 2, 1.0, 1), {**base, "likeness.trigger": "sks", "ss_sd_model_name": "a"})
    second = LoraTensors(
        pair(Q, (8, 8), 3, 1.0, 2),
        {**base, "modelspec.trigger_phrase": "zwx dog", "ss_sd_model_name": "b", "sshs_model_hash": "abc"},
    )
    calls = []
    out, _ = merge_loras(
        [Source("one", first, 0.5), Source("two", second, -1)],
        MergeOptions("ties", density=0.2),
        parse_layer_weights("attn 0.5"),
        lambda done, total: calls.append((done, total)),
    )
    said = json.loads(out.metadata["likeness.merged_from"])
    assert said["method"] == "ties" and said["density"] == 0.2 and said["majority"] == "total" and "seed" not in said
    assert said["layer_weights"] == [{"layers": "attn", "factors": [0.5]}]
    assert [(one["name"], one["weight"], one["trigger"]) for one in said["loras"]] == [
        ("one", 0.5, "sks"),
        ("two", -1, "zwx dog"),
    ]
    assert len(said["loras"][0]["hash"]) == 64 and said["loras"][1]["hash"] == "abc"
    assert out.metadata["likeness.trigger"] == "sks, zwx dog" and out.metadata["likeness.res_blocks"] == "[2, 2]"
    assert "ss_sd_model_name" not in out.metadata and "ss_steps" not in out.metadata
    assert calls == [(1, 1)]
