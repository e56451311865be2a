"""Smaller ranks, against numpy's SVD of the dense ΔW: the error is the tail, and no rank is larger than it must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.lora import kinds, spectrum, svd
from likeness.lora.keys import SCHEMES, from_deltas, to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors
from likeness.lora.resize import Truncation, relative_error, resize_lora

LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
CONV = "diffusion_model.input_blocks.1.0.in_layers.2"
TEXT = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"


def chance(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def one_layer(base: str = LAYER, **parts: torch.Tensor | float) -> dict[str, torch.Tensor]:
    names = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
    return {f"{base}.{names.get(name, name)}": torch.as_tensor(tensor) for name, tensor in parts.items()}


def dense(tensors: dict[str, torch.Tensor], base: str = LAYER) -> np.ndarray:
    """ΔW (out, in·kh·kw) in float64, by the formulas of the formats."""
    p = {key.removeprefix(f"{base}."): t.double() for key, t in tensors.items() if key.startswith(f"{base}.")}
    alpha = p.get("alpha")
    if "lora_up.weight" in p:
        down = p["lora_down.weight"]
        if "lora_mid.weight" in p:
            down = torch.einsum("abyx,bi->aiyx", p["lora_mid.weight"], down.flatten(1))
        scale = 1.0 if alpha is None else float(alpha) / p["lora_down.weight"].shape[0]
        return (scale * p["lora_up.weight"].flatten(1) @ down.flatten(1)).numpy()
    if "diff" in p:
        return p["diff"].flatten(1).numpy()
    if "hada_w1_a" in p:
        scale = 1.0 if alpha is None else float(alpha) / p["hada_w1_b"].shape[0]
        halves = []
        for n in "12":
            a, b, core = p[f"hada_w{n}_a"], p[f"hada_w{n}_b"], p.get(f"hada_t{n}")
            halves.append(a @ b if core is None else torch.einsum("ijyx,jr,ip->pryx", core, b, a).flatten(1))
        return (scale * halves[0] * halves[1]).numpy()
    one = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        other = p["lokr_w2"]
    elif "lokr_t2" not in p:
        other = p["lokr_w2_a"] @ p["lokr_w2_b"]
    else:
        other = torch.einsum("ijyx,jr,ip->pryx", p["lokr_t2"], p["lokr_w2_b"], p["lokr_w2_a"])
    rank = next((p[b].shape[0] for b in ("lokr_w2_b", "lokr_w1_b") if b in p), None)
    scale = 1.0 if alpha is None or rank is None else float(alpha) / rank
    return scale * np.kron(one.numpy(), other.flatten(1).numpy())


KINDS = {
    "LoRA": one_layer(up=chance(10, 6), down=chance(6, 14), alpha=3.0),
    "LoRA without alpha": one_layer(up=chance(10, 6), down=chance(6, 14)),
    "LoRA, alpha below 0": one_layer(up=chance(10, 6), down=chance(6, 14), alpha=-3.0),
    "LoRA, rank above the sides": one_layer(up=chance(5, 8), down=chance(8, 7), alpha=3.0),
    "LoRA, fp16": one_layer(up=chance(10, 6).half(), down=chance(6, 14).half(), alpha=3.0),
    "LoRA, bf16": one_layer(up=chance(10, 6).bfloat16(), down=chance(6, 14).bfloat16(), alpha=3.0),
    "conv": one_layer(up=chance(10, 6, 1, 1), down=chance(6, 4, 3, 3), alpha=2.0),
    "conv, Tucker": one_layer(up=chance(10, 5, 1, 1), mid=chance(5, 5, 3, 3), down=chance(5, 4, 1, 1), alpha=2.0),
    "LoHa": one_layer(hada_w1_a=chance(20, 2), hada_w1_b=chance(2, 24), hada_w2_a=chance(20, 2, seed=1),
                      hada_w2_b=chance(2, 24, seed=1), alpha=1.0),
    "LoHa, dense": one_layer(hada_w1_a=chance(10, 4), hada_w1_b=chance(4, 14), hada_w2_a=chance(10, 4, seed=1),
                             hada_w2_b=chance(4, 14, seed=1), alpha=1.0),
    "LoHa, Tucker": one_layer(hada_w1_a=chance(2, 20), hada_w1_b=chance(2, 24), hada_t1=chance(2, 2, 3, 3),
                              hada_w2_a=chance(2, 20, seed=1), hada_w2_b=chance(2, 24, seed=1),
                              hada_t2=chance(2, 2, 3, 3, seed=1)),
    "LoKr": one_layer(lokr_w1=chance(3, 2), lokr_w2=chance(5, 6), alpha=7.0),
    "LoKr, products": one_layer(lokr_w1_a=chance(3, 1), lokr_w1_b=chance(1, 4), lokr_w2_a=chance(6, 2),
                                lokr_w2_b=chance(2, 5), alpha=1.5),
    "LoKr, half a product": one_layer(lokr_w1_a=chance(3, 1), lokr_w1_b=chance(1, 4), lokr_w2=chance(6, 5), alpha=-2.),
    "LoKr, conv": one_layer(lokr_w1=chance(3, 2), lokr_w2=chance(4, 5, 3, 3)),
    "LoKr, Tucker": one_layer(lokr_w1=chance(3, 2), lokr_w2_a=chance(2, 4), lokr_w2_b=chance(2, 5),
                              lokr_t2=chance(2, 2, 3, 3), alpha=1.0),
    "full": one_layer(diff=chance(12, 9)),
    "full, wide": one_layer(diff=chance(9, 12)),
    "full, conv": one_layer(diff=chance(12, 9, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_the_tail(kind: str) -> None:
    """Fails if a kind's ΔW is built another way, or the approximation is not the best of its rank (Eckart–Young)."""
    tensors = KINDS[kind]
    before = dense(tensors)
    s = np.linalg.svd(before, compute_uv=False)
    (layer,), _ = kinds.lora_layers(tensors)
    found = layer.svd()
    assert found is not None and found.shape == before.shape
    values = found.values.numpy()
    assert np.allclose(values, s[: len(values)], rtol=0, atol=1e-6 * s[0])
    assert np.linalg.norm(s[len(values) :]) < 1e-6 * s[0]
    for rank in range(1, int((s > 1e-6 * s[0]).sum()) + 1):
        up, down = found.factors(rank)
        error = np.linalg.norm(before - (up @ down).numpy())
        assert error == pytest.approx(np.linalg.norm(s[rank:]), abs=2e-6 * s[0])
        assert up.norm().item() == pytest.approx(down.norm().item(), rel=1e-5)  # √s in each


@pytest.mark.parametrize("kind", KINDS)
def test_a_resized_layer_is_an_ordinary_lora(kind: str) -> None:
    """Fails if the tensors that come out mean another ΔW than the report says, or have a kernel that is not theirs."""
    before = dense(KINDS[kind])
    s = np.linalg.svd(before, compute_uv=False)
    out, (layer,) = resize_lora(KINDS[kind], Truncation("rank", rank=2, others="always"))
    assert set(out) == {f"{LAYER}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    after = to_deltas(out)[LAYER]
    assert (after.rank, after.scale, layer.after) == (2, 1.0, 2)
    error = np.linalg.norm(before - after.dense().flatten(1).double().numpy()) / np.linalg.norm(before)
    assert error == pytest.approx(layer.error, abs=1e-5)
    assert layer.energy == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-6)
    kernel = (3, 3) if "conv" in kind or "Tucker" in kind else ()
    assert after.shape[2:] == kernel


def lora_of(values: list[float], seed: int = 0, alpha: float = 4.0, dtype: torch.dtype = torch.float32) -> dict:
    """A layer whose ΔW has these singular values, with the rank's worth of alpha in its scale."""
    rank = len(values)
    left, right = (torch.linalg.qr(chance(side, rank, seed=seed).double()).Q for side in (40, 30))
    mix = chance(rank, rank, seed=seed + 1).double() + 3 * torch.eye(rank)
    s = torch.tensor(values, dtype=torch.float64)
    up, down = left * s @ mix * (rank / alpha), torch.linalg.solve(mix, right.T)
    return one_layer(up=up.to(dtype), down=down.to(dtype), alpha=alpha)


spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@given(spectra, st.floats(0.05, 0.9999), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_energy_is_kept_and_no_rank_is_wasted(values: list[float], energy: float, seed: int) -> None:
    """Fails if a layer keeps less than asked, or would keep enough with one rank less; or if a rank grew."""
    tensors = lora_of(values, seed)
    s = np.linalg.svd(dense(tensors), compute_uv=False) ** 2
    _, (layer,) = resize_lora(tensors, Truncation("energy", energy=energy))
    assert layer.before == len(values) and layer.after <= len(values)
    assert s[: layer.after].sum() / s.sum() >= energy - 1e-6
    assert layer.after == 1 or s[: layer.after - 1].sum() / s.sum() < energy + 1e-6


@given(spectra, st.floats(0.001, 0.99), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_tolerance_holds_and_no_rank_is_wasted(values: list[float], tolerance: float, seed: int) -> None:
    """Fails if the layer that comes out is further from the old one than allowed, measured on the dense matrices."""
    tensors = lora_of(values, seed)
    before = dense(tensors)
    s = np.linalg.svd(before, compute_uv=False)
    out, (layer,) = resize_lora(tensors, Truncation("relative error", tolerance=tolerance))
    assert np.linalg.norm(before - dense(out)) <= (tolerance + 1e-5) * np.linalg.norm(before)
    assert layer.after == 1 or np.linalg.norm(s[layer.after - 1 :]) > (tolerance - 1e-5) * np.linalg.norm(s)


# powers of 2, which round nothing: between equal singular values rounding would choose
@given(spectra, st.integers(-12, 12).map(lambda n: 2.0**n), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_neither_the_scale_nor_how_it_is_written_matters(values: list[float], factor: float, rank: int) -> None:
    """Fails if a LoRA with another alpha and the same ΔW, or k times the ΔW, is cut elsewhere."""
    tensors = lora_of(values)
    same = dict(tensors)
    same[f"{LAYER}.alpha"] = tensors[f"{LAYER}.alpha"] * factor
    same[f"{LAYER}.lora_up.weight"] = tensors[f"{LAYER}.lora_up.weight"] / factor
    scaled = {**tensors, f"{LAYER}.alpha": tensors[f"{LAYER}.alpha"] * factor}
    for how in (Truncation("rank", rank=rank), Truncation("energy", energy=0.9)):
        (cut, (one,)), (again, (two,)), (larger, (three,)) = (resize_lora(t, how) for t in (tensors, same, scaled))
        assert one.after == two.after == three.after
        size = np.abs(dense(cut)).max()
        assert np.abs(dense(cut) - dense(again)).max() <= 1e-4 * size
        assert np.abs(dense(cut) * factor - dense(larger)).max() <= 1e-4 * factor * size


def test_what_is_not_cut_is_the_same_tensor() -> None:
    """Fails if a layer that keeps its rank is rounded, or one of a rank that would not be smaller is rewritten."""
    tensors = KINDS["LoRA, fp16"]
    out, (layer,) = resize_lora(tensors, Truncation("rank", rank=6))
    assert all(out[key] is tensors[key] for key in tensors) and (layer.before, layer.after, layer.error) == (6, 6, 0.0)
    full = KINDS["full"]
    out, (layer,) = resize_lora(full, Truncation("energy", energy=1.0))
    assert out[f"{LAYER}.diff"] is full[f"{LAYER}.diff"] and "would be larger" in layer.note
    out, (layer,) = resize_lora(KINDS["LoHa"], Truncation(rank=1, others="never"))
    assert set(out) == set(KINDS["LoHa"]) and layer.note == "kept, as asked"


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"up": chance(8, 4), "down": chance(4, 8), "dora_scale": chance(8, 1)}, "DoRA turns or scales"),
        ({"oft_blocks": chance(2, 4, 4)}, "OFT turns or scales"),
        ({"oft_blocks": chance(2, 2, 4, 4)}, "BOFT turns or scales"),
        ({"a1.weight": chance(8, 2), "a2.weight": chance(2, 8), "b1.weight": chance(8, 2), "b2.weight": chance(2, 8)},
         "GLoRA turns or scales"),
        ({"diff_b": chance(8)}, "no matrix"),
        ({"diff": chance(8)}, "no matrix"),
        ({"w_norm": chance(8), "b_norm": chance(8)}, "no matrix"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_kept_and_said(parts: dict[str, torch.Tensor], says: str) -> None:
    """Fails if DoRA and others, whose change depends on the base weight, were cut as if they were plain."""
    tensors = one_layer(**parts)
    out, (layer,) = resize_lora(tensors, Truncation(rank=1, others="always"))
    assert says in layer.note and set(out) == set(tensors) and all(out[key] is tensors[key] for key in tensors)


def test_what_stands_beside_stays() -> None:
    """Fails if the bias's difference is lost when its layer is cut."""
    tensors = one_layer(up=chance(8, 4), down=chance(4, 8), alpha=1.0, diff_b=chance(8))
    out, _ = resize_lora(tensors, Truncation(rank=1))
    assert out[f"{LAYER}.diff_b"] is tensors[f"{LAYER}.diff_b"] and out[f"{LAYER}.lora_up.weight"].shape == (8, 1)


def test_nothing_learnt_stays_nothing() -> None:
    """Fails if a layer that was never trained (all 0), or has alpha 0, ends in NaN or in no layer."""
    for tensors in (
        one_layer(up=torch.zeros(8, 4), down=chance(4, 8), alpha=1.0),
        one_layer(up=chance(8, 4), down=chance(4, 8), alpha=0.0),
        one_layer(diff=torch.zeros(8, 8)),
    ):
        for how in (Truncation("energy"), Truncation("relative error"), Truncation(rank=3)):
            out, (layer,) = resize_lora(tensors, how)
            assert layer.after == 1 and layer.energy == 1.0 and layer.error == 0.0
            assert not dense(out).any() and relative_error([layer]) == 0.0


def test_max_rank_limits() -> None:
    """Fails if the limit is not kept, or where nothing is asked for it."""
    tensors = lora_of([4.0, 3.0, 2.0, 1.0])
    for mode in ("energy", "relative error"):
        ranks = [
            resize_lora(tensors, Truncation(mode, energy=0.99, tolerance=0.01, max_rank=n))[1][0].after for n in (0, 2)
        ]
        assert ranks == [4, 2]


@pytest.mark.parametrize("naming", SCHEMES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_through_files_of_every_naming(tmp_path: Path, family, deltas, naming: str, dtype: str) -> None:
    """Fails if a file, cut and saved and loaded again, means another ΔW than numpy's best approximation: all layers of
    all architectures, text encoders and convolutions too."""
    layers, res_blocks = family
    before = deltas(layers, rank=4)
    metadata = {"likeness.res_blocks": json.dumps(res_blocks)} if res_blocks else {}
    save_lora(tmp_path / "a.safetensors", LoraTensors(from_deltas(before), metadata), naming, "fp32")
    out, found = resize_lora(load_lora(tmp_path / "a.safetensors", layers), Truncation(rank=2))
    assert {layer.name: layer.after for layer in found} == dict.fromkeys(before, 2)
    save_lora(tmp_path / "b.safetensors", out, naming, dtype)
    after = to_deltas(load_lora(tmp_path / "b.safetensors", layers))
    tolerance = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}[dtype]
    for name, delta in before.items():
        u, s, v = np.linalg.svd(delta.dense().flatten(1).double().numpy(), full_matrices=False)
        best = (u[:, :2] * s[:2]) @ v[:2]
        assert np.abs(after[name].dense().flatten(1).numpy() - best).max() <= tolerance * np.abs(best).max(), name


def test_metadata_says_what_was_done(tmp_path: Path) -> None:
    """Fails if the trigger word is lost, or the old rank, or peft's old alphas, still stand in the file."""
    old = {
        "likeness.trigger": "sks",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 99, "unet.r": 4}),
        "ss_training_comment": "mine",
    }
    tensors = {**lora_of([4.0, 3.0, 2.0, 1.0]), **one_layer(TEXT, up=chance(8, 4), down=chance(4, 8))}
    once, layers = resize_lora(LoraTensors(tensors, old), Truncation(rank=2))
    assert "ss_network_dim" not in once.metadata and "lora_adapter_metadata" not in once.metadata
    assert once.metadata["likeness.trigger"] == "sks"
    assert once.metadata["ss_training_comment"] == "mine; resized with Likeness to rank 2"
    written = save_lora(tmp_path / "a.safetensors", once, "comfy")
    assert (written["ss_network_dim"], written["ss_network_alpha"]) == ("2", "2.0")
    twice, _ = resize_lora(once, Truncation("energy", energy=0.6))
    done = json.loads(twice.metadata["likeness.resized"])
    assert [one["to"] for one in done] == ["rank 2", "energy 0.6"]
    assert (
        done[0]["numbers"] == [4 * 70 + 4 * 16, 2 * 70 + 2 * 16] == [sum(x.numbers[i] for x in layers) for i in (0, 1)]
    )
    assert done[0]["relative_error"] == pytest.approx(relative_error(layers), rel=1e-5)
    mixed, _ = resize_lora(LoraTensors({**tensors, **lora_of([9.0, 1e-4])}, old), Truncation("energy", energy=0.9))
    assert mixed.metadata["ss_network_dim"] == "Dynamic"


def test_refusals() -> None:
    """Fails if nonsense is taken, or half a layer."""
    for bad in ({"mode": "sv_ratio"}, {"rank": 0}, {"energy": 0.0}, {"tolerance": 1.0}, {"others": "x"}):
        with pytest.raises(ValueError, match="expected"):
            Truncation(**bad)
    with pytest.raises(ValueError, match="nothing to resize"):
        resize_lora({}, Truncation())
    with pytest.raises(ValueError, match=f"{LAYER} has lora_up.weight but no"):
        resize_lora(one_layer(up=chance(4, 2)), Truncation())
    for kind, gone in (("LoHa", "hada_w1_b"), ("LoKr, products", "lokr_w2_a")):
        broken = {key: tensor for key, tensor in KINDS[kind].items() if not key.endswith(gone)}
        with pytest.raises(ValueError, match=f"{LAYER} is incomplete"):
            resize_lora(broken, Truncation())


def test_measures_of_a_spectrum() -> None:
    """Fails if the effective rank is not exp of the entropy of s / Σs, or the stable rank not ‖·‖²_F / ‖·‖²₂."""
    assert spectrum.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert spectrum.effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    s = np.array([0.5, 0.3, 0.2])
    assert spectrum.effective_rank(torch.tensor(9 * s)) == pytest.approx(np.exp(-(s * np.log(s)).sum()))
    assert spectrum.stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert spectrum.effective_rank(torch.zeros(3)) == spectrum.stable_rank(torch.zeros(3)) == 0.0
    assert spectrum.tails(torch.tensor([2.0, 1.0])).tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_a_rank_that_is_not_there_is_not_counted() -> None:
    """Fails if rounding's leftovers count as directions: two equal columns make a ΔW of rank 1."""
    up, down = chance(50, 1).half().repeat(1, 3), chance(3, 60).half()
    assert int((svd.of_pair(up, down, 1.0).values > 0).sum()) == 1
    assert int((svd.of_matrix(up.float() @ down.float()).values > 1e-5).sum()) == 1
