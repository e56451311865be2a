"""Files of every naming and kind into one; the sum of what the host's own loader makes of each is the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from likeness.lora.lazy import open_lora
from likeness.lora.load import load_lora
from likeness.merging.align import Source
from likeness.merging.merge import merge_loras
from likeness.merging.options import MergeOptions

ATTENTION = "down_blocks.{}.attentions.{}.transformer_blocks.0"
FIRST = ATTENTION.format(0, 0)
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def world(comfy: Any) -> SimpleNamespace:
    """A narrow SD1.5 on the meta device, with the host's own table of names."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unets
    import comfy.lora
    import comfy.model_base
    import comfy.model_detection
    import comfy.ops

    network = unets.UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, use_spatial_transformer=True, legacy=False,
        num_heads=4, num_head_channels=-1, num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1, context_dim=768, device="meta", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    model = comfy.model_base.BaseModel.__new__(comfy.model_base.BaseModel)
    torch.nn.Module.__init__(model)
    model.diffusion_model = network
    config = comfy.model_detection.detect_unet_config(network.state_dict(), "")
    model.model_config = SimpleNamespace(unet_config=config)
    state = {f"clip_l.transformer.{CLIP}.weight": torch.empty(16, 16, device="meta")}
    names = comfy.lora.model_lora_keys_unet(model, {})
    names = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: state), names)
    shapes = {key: tuple(t.shape) for key, t in {**model.state_dict(), **state}.items()}
    return SimpleNamespace(names=names, shapes=shapes)


def by_host(world: SimpleNamespace, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """weight's key -> what the host adds to it."""
    import comfy.lora

    patches = comfy.lora.load_lora(dict(tensors), world.names, log_missing=False)
    loaded = sum(len(getattr(patch, "loaded_keys", [0])) for patch in patches.values())
    assert loaded >= len([key for key in tensors if not key.endswith("alpha")])
    out = {}
    for key, patch in patches.items():
        zero = torch.zeros(world.shapes[key])
        out[key] = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], zero, key)
    return out


def flat(name: str) -> str:
    return name.replace(".", "_")


def made(world: SimpleNamespace) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Kind -> (the file, the same in names that the host knows)."""
    chance = torch.Generator().manual_seed(5)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=chance).to(dtype)

    def pair(up: str, down: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
        ones = (1,) * (len(shape) - 2)
        return {up: draw(shape[0], rank, *ones, dtype=dtype), down: draw(rank, *shape[1:], dtype=dtype)}

    def kohya(base: str, shape: tuple[int, ...], rank: int, alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
        out = pair(f"{base}.lora_up.weight", f"{base}.lora_down.weight", shape, rank, dtype)
        return out | {f"{base}.alpha": torch.tensor(alpha)}

    q, conv = f"lora_unet_{flat(FIRST)}_attn1_to_q", "lora_unet_down_blocks_0_resnets_0_conv1"
    files: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    plain: dict[str, dict[str, Tensor]] = {
        "kohya, with convolution and text encoder": (
            kohya(q, (32, 32), 4, 2.0, torch.float16) | kohya(conv, (32, 32, 3, 3), 2, 5.0, torch.float16)
            | kohya(f"lora_te_{flat(CLIP)}", (16, 16), 3, 1.0, torch.float16)
        ),
        "diffusers": {
            k: t for i, to in enumerate(("to_q", "to_v", "to_out"))
            for k, t in pair(f"unet.{FIRST}.attn1.processor.{to}_lora.up.weight",
                             f"unet.{FIRST}.attn1.processor.{to}_lora.down.weight",
                             (32, 32), 1 + i, torch.float32).items()
        },
        "comfy, peft's factors": pair(
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_B.weight",
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_A.weight",
            (32, 768), 40, torch.bfloat16,  # more than the layer's own rank
        ),
        "LoHa": {
            **{f"{q}.hada_w{n}_{f}": draw(*((32, 2) if f == "a" else (2, 32))) for n in (1, 2) for f in "ab"},
            **{f"{conv}.hada_w{n}_{f}": draw(*((32, 3) if f == "a" else (3, 288))) for n in (1, 2) for f in "ab"},
            f"{q}.alpha": torch.tensor(1.0),
        },
        "LoKr": {
            f"{q}.lokr_w1": draw(4, 4), f"{q}.lokr_w2_a": draw(8, 2), f"{q}.lokr_w2_b": draw(2, 8),
            f"{q}.alpha": torch.tensor(4.0), f"{conv}.lokr_w1": draw(4, 2), f"{conv}.lokr_w2": draw(8, 16, 3, 3),
        },
        "full": {f"{q}.diff": draw(32, 32), f"lora_unet_{flat(FIRST)}_attn1_to_out_0.diff_b": draw(32)},
    }  # fmt: skip
    files |= {kind: (tensors, tensors) for kind, tensors in plain.items()}
    theirs = f"unet.base_model.model.{FIRST}.attn2.to_v"
    peft = pair(f"{theirs}.lora_B.weight", f"{theirs}.lora_A.weight", (32, 768), 2, torch.float16)
    twin = f"unet.{FIRST}.attn2.processor.to_v"
    files["peft"] = peft, {key.replace(theirs, twin): tensor for key, tensor in peft.items()}
    numbered, named = {}, {}
    blocks = [ATTENTION.format(i, j) for i in range(3) for j in range(2)]
    blocks += [f"up_blocks.{i}.attentions.{j}.transformer_blocks.0" for i in (1, 2, 3) for j in range(3)]
    blocks += ["mid_block.attentions.0.transformer_blocks.0"]
    inside = [f"{attention}.{to}" for attention in ("attn1", "attn2") for to in ("to_q", "to_k", "to_v", "to_out")]
    for number, (block, name) in enumerate((block, name) for block in blocks for name in inside):
        base = f"unet.{block}.{name.replace('.to_', '.processor.to_')}"
        shape = world.shapes[world.names[base]]
        up, down = draw(shape[0], 1), draw(1, shape[1])
        numbered |= {f"unet:{number}:up": up, f"unet:{number}:down": down}
        named |= {f"{base}.lora_B.weight": up, f"{base}.lora_A.weight": down}
    files["cloneofsimo"] = numbered, named
    return files


def test_files_of_every_kind_merge_to_the_sum_of_the_hosts_changes(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if of any kind a layer is lost, placed elsewhere, of another strength, or merged twice; read at once and
    layer by layer. cloneofsimo's ninth is attn1.to_k of the second block, as its walk through the UNet has it."""
    files = made(world)
    assert "unet:9:up" in files["cloneofsimo"][0]
    expected: dict[str, Tensor] = {}
    weights = {kind: 0.9 - 0.3 * i for i, kind in enumerate(files)}  # some are negative
    for kind, (tensors, twin) in files.items():
        save_file(tensors, tmp_path / f"{flat(kind)}.safetensors")
        for key, change in by_host(world, twin).items():
            expected[key] = expected.get(key, torch.zeros_like(change)) + weights[kind] * change
    assert len(expected) > 130 and {len(shape.shape) for shape in expected.values()} == {1, 2, 4}
    for read in (load_lora, open_lora):
        sources = [Source(kind, read(tmp_path / f"{flat(kind)}.safetensors"), weights[kind]) for kind in files]
        merged, layers = merge_loras(sources, MergeOptions(measure=False))
        found = by_host(world, merged)
        assert set(found) == set(expected) and len(layers) == len(expected)
        for key, change in expected.items():
            assert float((found[key] - change).abs().max()) <= 2e-5 * float(change.abs().max()), key
