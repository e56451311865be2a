"""LoRAs that depend on the base weight, merged with a real MODEL and CLIP; the host's own patches are the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.lora.keys import to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.merging.align import Source
from likeness.merging.merge import merge_loras
from likeness.merging.options import MergeOptions


@pytest.fixture(scope="module")
def world(comfy: Any, tiny_checkpoint: Path) -> tuple[Any, Any]:
    """(MODEL, CLIP) of tiny-unet, loaded in inference mode as the host does."""
    import comfy.sd

    with torch.inference_mode():
        return tuple(comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:2])


def layers(model: Any, clip: Any) -> dict[str, torch.Tensor]:
    """A few base names -> weights: attention, a convolution, a text encoder."""
    from likeness.nodes.host.base_weights import base_weights

    weights = base_weights(model, clip)
    unet = [k.removesuffix(".weight") for k in model.model.state_dict() if k.endswith(".weight")]
    names = [next(k for k in unet if k.endswith(end)) for end in ("attn1.to_q", "attn2.to_k", "in_layers.2")]
    names.append("text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj")
    return {name: weights.weight(name.removeprefix("text_encoders.")).detach().float().clone() for name in names}


def parts(kind: str, weight: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    rows, columns, kernel = weight.shape[0], weight.shape[1], weight.shape[2:]
    ones = (1,) * len(kernel)
    size = float(weight.norm()) / weight.numel() ** 0.5

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    if kind == "oft":
        return {"oft_blocks": 0.2 * draw(2, rows // 2, rows // 2)}
    out = {"alpha": torch.tensor(3.0)}
    if "loha" in kind:
        out |= {f"hada_w{n}_a": draw(rows, 2) for n in (1, 2)}
        out |= {f"hada_w{n}_b": size**0.5 * draw(2, weight[0].numel()) for n in (1, 2)}
    elif "lokr" in kind:
        out |= {"lokr_w1": draw(2, 2), "lokr_w2": size * draw(rows // 2, columns // 2, *kernel)}
    else:
        out |= {"lora_up.weight": draw(rows, 4, *ones), "lora_down.weight": size * draw(4, columns, *kernel)}
    if "columns" in kind:
        norm = weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, columns, *ones)
        out["dora_scale"] = norm * (1 + 0.3 * draw(1, columns, *ones))
    elif "rows" in kind:
        out["dora_scale"] = weight.flatten(1).norm(dim=1).reshape(rows, 1, *ones) * (1 + 0.3 * draw(rows, 1, *ones))
    return out


def by_host(tensors: dict[str, torch.Tensor], name: str, weight: torch.Tensor, strength: float) -> torch.Tensor:
    """What the host's own loader adds to a weight."""
    import comfy.lora

    patches = comfy.lora.load_lora(dict(tensors), {name: f"{name}.weight"}, log_missing=False)
    (patch,) = patches.values()
    after = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], weight.clone(), f"{name}.weight")
    return after - weight


@pytest.mark.parametrize("kind", ["dora columns", "dora rows", "dora columns loha", "dora rows lokr", "oft"])
def test_the_sum_of_the_hosts_patches(world: tuple[Any, Any], kind: str, tmp_path: Path) -> None:
    """Fails if DoRA's or OFT's change is another than the host makes, of linear layers, convolutions or a text encoder;
    if what is loaded into the MODEL counts as base; or a weight of the merge is not one of the change."""
    from likeness.nodes.host.base_weights import base_weights

    model, clip = world
    weights = layers(model, clip)
    odd = {f"{name}.{s}": t for i, (name, w) in enumerate(weights.items()) for s, t in parts(kind, w, i).items()}
    plain = {f"{name}.{s}": t for i, (name, w) in enumerate(weights.items()) for s, t in parts("", w, 9 + i).items()}
    save_lora(tmp_path / "odd.safetensors", odd, "kohya", "fp32")
    sources = [Source("odd", load_lora(tmp_path / "odd.safetensors"), 0.6), Source("plain", plain, -0.5)]
    patched = model.clone()
    patched.add_patches({f"{name}.weight": ("diff", (torch.ones_like(w),)) for name, w in list(weights.items())[:2]})
    try:
        patched.patch_model()
        first = next(iter(weights))
        assert not torch.allclose(patched.model.get_submodule(first).weight.float(), weights[first])
        out, layers_ = merge_loras(sources, MergeOptions(measure=False), base=base_weights(patched, clip))
    finally:
        patched.unpatch_model()
    deltas = to_deltas(out)
    strength = 1.0 if kind == "oft" else 0.6  # of OFT the host takes the square of a strength
    for name, weight in weights.items():
        first_ = by_host(odd, name, weight, strength) * (0.6 / strength)
        expected = first_ + by_host(plain, name, weight, -0.5)
        found = deltas[name.removeprefix("text_encoders.")].dense().reshape(weight.shape)
        assert float(first_.norm()) > 0.05 * float(weight.norm())
        assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max()), name
    assert len(layers_) == len(weights)


def test_what_is_missing_is_said(world: tuple[Any, Any]) -> None:
    """Fails if a text encoder's DoRA without CLIP, or any without MODEL, ends otherwise than in an advice."""
    from likeness.nodes.host.base_weights import base_weights

    model, clip = world
    name, weight = list(layers(model, clip).items())[-1]
    odd = [Source("odd", {f"{name}.{s}": t for s, t in parts("dora rows", weight, 0).items()})]
    with pytest.raises(ValueError, match=r"odd: its layer clip_l.*has no such layer.*CLIP"):
        merge_loras(odd, base=base_weights(model))
    with pytest.raises(ValueError, match=r"odd: its layer clip_l.*Connect the MODEL"):
        merge_loras(odd)
