"""LoRA.rar's coefficients against the published formula, written out in numpy on dense ΔW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from likeness.lora.delta import LowRankDelta
from likeness.merging.lora_rar import HyperNetwork, from_tensors, is_asked, load_network, predict_columns, save_network

Q, OUT, K = (f"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.{n}" for n in ("to_q", "to_out.0", "to_k"))


def delta(seed: int, width: int, rank: int = 3, scale: float = 0.5) -> LowRankDelta:
    chance = torch.Generator().manual_seed(seed)
    up, down = torch.randn(width, rank, generator=chance), torch.randn(rank, width, generator=chance)
    return LowRankDelta(up, down, scale, "linear")


def formula(tensors: dict[str, np.ndarray], head: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(in, 2): a batch of columns through head, ReLU and the shared last layer, as the paper has it."""
    batch = np.concatenate([one.T, other.T], axis=1)  # (in, 2 · out)
    hidden = np.maximum(batch @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"], 0)
    return np.asarray(hidden @ tensors["last.weight"].T + tensors["last.bias"])


def published(widths: tuple[int, ...] = (640, 1280)) -> dict[str, torch.Tensor]:
    """A state dict of the published sizes, under names of our own: told by shapes alone."""
    chance = torch.Generator().manual_seed(0)
    found = {}
    for name, out, inputs in [*((f"in{width}", 128, 2 * width) for width in widths), ("last", 2, 128)]:
        found[f"{name}.weight"] = torch.randn(out, inputs, generator=chance) / inputs**0.5
        found[f"{name}.bias"] = torch.randn(out, generator=chance)
    return found


def test_published_file_gives_the_published_formula(tmp_path: Path) -> None:
    """Fails where a head is chosen by the wrong width, rows and columns are mixed up, the two LoRAs change places, or
    anything is normalised. 492,034 numbers are the published count."""
    tensors = published()
    assert sum(tensor.numel() for tensor in tensors.values()) == 492_034
    torch.save(tensors, tmp_path / "hypernet.pth")
    network = load_network(tmp_path / "hypernet.pth")
    assert network.widths == (640, 1280) and not network.normalised
    arrays = {key: tensor.numpy().astype(np.float64) for key, tensor in tensors.items()}
    for width in network.widths:
        one, other = delta(1, width), delta(2, width, rank=5)
        found = predict_columns(network, {Q: one}, {Q: other}).columns[Q].values
        expected = formula(arrays, f"in{width}", one.dense().double().numpy(), other.dense().double().numpy())
        np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-4, atol=1e-4)


def test_nested_checkpoints_are_found(tmp_path: Path) -> None:
    """Some programs save the weights beside an optimizer's state."""
    torch.save({"step": 5, "model": published((8,))}, tmp_path / "hypernet.pth")
    assert load_network(tmp_path / "hypernet.pth").widths == (8,)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_pickles_that_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails as soon as weights_only is forgotten."""
    torch.save({"last.weight": Evil()}, tmp_path / "hypernet.pth")
    with pytest.raises(ValueError, match="weights alone"):
        load_network(tmp_path / "hypernet.pth")
    assert "ran" not in capsys.readouterr().out


def test_saved_network_is_the_same(tmp_path: Path) -> None:
    """Fails where the normalisation or a head is lost on the way."""
    network = HyperNetwork((6, 8), about={"steps": 3}).begin(1)
    with torch.no_grad():
        network.out.weight.normal_(generator=torch.Generator().manual_seed(2))
    save_network(tmp_path / "net.safetensors", network)
    again = load_network(tmp_path / "net.safetensors")
    assert again.normalised and again.about == {"steps": 3}
    for width in (6, 8):
        pair = delta(1, width), delta(2, width)
        a, b = network.coefficients(*pair), again.coefficients(*pair)
        assert a is not None and b is not None and torch.equal(a, b)


def test_what_there_is_no_head_for_stays() -> None:
    """Keys, layers of one LoRA alone and unknown widths get no coefficients, and it is said why."""
    network = HyperNetwork((6,)).begin(0)
    one = {Q: delta(1, 6), K: delta(2, 6), OUT: delta(3, 8), "diffusion_model.a.attn2.to_q": delta(4, 6)}
    found = predict_columns(network, one, {Q: delta(5, 6), K: delta(6, 6), OUT: delta(7, 8)})
    assert set(found.columns) == {Q}
    assert found.left == {
        "keys, values and what is no attention": [K],
        "of width 8, for which the hypernetwork has no head": [OUT],
        "changed by one LoRA alone": ["diffusion_model.a.attn2.to_q"],
    }
    with pytest.raises(ValueError, match=r"of the widths 6.* have 8"):
        predict_columns(network, {OUT: one[OUT]}, {OUT: one[OUT]})


def test_a_fresh_network_says_one() -> None:
    """Training begins at the plain sum."""
    found = HyperNetwork((6,)).begin(3).coefficients(delta(1, 6), delta(2, 6))
    assert found is not None and torch.equal(found, torch.ones(2, 6))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 100))
def test_scale_of_the_pair_does_not_count(seed: int, factor: float) -> None:
    """Our own networks are blind to the common strength of both, and only to that."""
    network = HyperNetwork((6,)).begin(seed)
    nn.init.normal_(network.out.weight, generator=torch.Generator().manual_seed(seed))
    one, other = delta(seed, 6), delta(seed + 1, 6)
    stronger = [LowRankDelta(each.up, each.down, each.scale * factor, "linear") for each in (one, other)]
    found, same = network.coefficients(one, other), network.coefficients(*stronger)
    assert found is not None and same is not None
    torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-4)
    if not 0.9 < factor < 1.1:
        changed = network.coefficients(one, stronger[1])
        assert changed is not None and not torch.allclose(changed, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("last.weight"), "one layer of 2×128"),
        (lambda t: t.pop("in8.bias"), "no bias"),
        (lambda t: t.update({"x.weight": torch.ones(3, 4), "x.bias": torch.ones(3)}), "3×4"),
        (lambda t: t["in8.weight"].fill_(float("nan")), "NaN"),
    ],
)
def test_damaged_files_are_refused(change: Any, message: str) -> None:
    tensors = published((8,))
    change(tensors)
    with pytest.raises(ValueError, match=message):
        from_tensors(tensors, "net.pth", False, {})


def test_which_layers_are_asked() -> None:
    """Query and output of both attentions, SD3's output; neither keys, values, fused layers nor feed-forward."""
    assert is_asked(Q) and is_asked(OUT) and is_asked("diffusion_model.joint_blocks.0.x_block.attn.proj")
    for name in (K, "diffusion_model.joint_blocks.0.x_block.attn.qkv", "diffusion_model.output_blocks.1.1.proj"):
        assert not is_asked(name)
