"""A LoRA through a file and back, with nothing lost in silence."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch

from likeness.lora.files import write_safetensors
from likeness.lora.keys import SCHEMES, from_deltas, to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors, metadata_of

NOON = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize("naming", SCHEMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_saved_and_loaded_is_equal(tmp_path: Path, family, deltas, naming: str, dtype: str, tolerance: float) -> None:
    """Fails if saving changed ΔW by more than the dtype rounds, or lost the metadata."""
    layers, res_blocks = family
    before = deltas(layers)
    metadata = {"likeness.trigger": "sks"} | ({"likeness.res_blocks": json.dumps(res_blocks)} if res_blocks else {})
    written = save_lora(tmp_path / "a.safetensors", LoraTensors(from_deltas(before), metadata), naming, dtype, NOON)
    lora = load_lora(tmp_path / "a.safetensors", layers)
    assert lora.metadata == written and written["likeness.trigger"] == "sks" and written["modelspec.title"] == "a"
    after = to_deltas(lora)
    assert set(after) == set(before)
    for layer, delta in before.items():
        size = delta.dense().abs().max()
        assert (after[layer].dense().flatten() - delta.dense().flatten()).abs().max() <= tolerance * size, layer


def test_two_saves_give_equal_bytes(tmp_path: Path, sd15, deltas) -> None:
    """Fails if anything but the LoRA, the name and the date went into the file."""
    for folder in "ab":
        save_lora(tmp_path / folder / "x.safetensors", LoraTensors(from_deltas(deltas(sd15))), date=NOON)
    assert (tmp_path / "a/x.safetensors").read_bytes() == (tmp_path / "b/x.safetensors").read_bytes()


def test_what_does_not_fit_says_which_layer(tmp_path: Path, sd15, sdxl, deltas) -> None:
    """Fails if a LoRA of another model loaded as a silent no-op."""
    path = tmp_path / "a.safetensors"
    save_lora(path, from_deltas(deltas(sdxl)), "comfy")
    with pytest.raises(ValueError, match=r"a\.safetensors: .*no layer; the first is diffusion_model\..*MODEL"):
        load_lora(path, {name: shape for name, shape in sd15.items() if name.startswith("diffusion_model")})
    write_safetensors(path, {"lora_unet_mystery_block_0.lora_up.weight": torch.ones(2, 2), "x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"2 of its 2 keys.*Connect the MODEL"):
        load_lora(path)


def test_a_text_encoder_does_not_count_against_the_model(tmp_path: Path, sd15, deltas) -> None:
    """Fails if a LoRA with text encoder layers were refused because the MODEL has none, or a missing layer were not."""
    path = tmp_path / "a.safetensors"
    save_lora(path, LoraTensors(from_deltas(deltas(sd15)), {"likeness.res_blocks": "[2, 2, 2, 2]"}), "kohya")
    model = {name: shape for name, shape in sd15.items() if name.startswith("diffusion_model")}
    assert any(key.startswith("text_encoders.clip_l.") for key in load_lora(path, model))
    del model["diffusion_model.input_blocks.11.0.in_layers.2"]
    with pytest.raises(ValueError, match=r"2 of its 54 keys.*down_blocks_3_resnets_1_conv1.*the MODEL has no"):
        load_lora(path, model)


@pytest.mark.parametrize("naming", SCHEMES)
def test_an_alpha_out_of_the_metadata_counts_once(tmp_path: Path, naming: str) -> None:
    """Fails if a peft file, saved again, keeps the alphas of its metadata beside those that are in the tensors now."""
    base = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{base}.lora_A.weight": torch.randn(4, 8), f"{base}.lora_B.weight": torch.randn(8, 4)}
    config = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4})}
    write_safetensors(tmp_path / "peft.safetensors", pair, config)
    lora = load_lora(tmp_path / "peft.safetensors")
    save_lora(tmp_path / "ours.safetensors", lora, naming, "fp32")
    (before,), (after,) = (to_deltas(one).values() for one in (lora, load_lora(tmp_path / "ours.safetensors")))
    assert torch.allclose(before.dense(), 2 * pair[f"{base}.lora_B.weight"] @ pair[f"{base}.lora_A.weight"], atol=1e-5)
    assert torch.allclose(before.dense(), after.dense(), atol=1e-5)


def test_unknown_keys_come_along_when_asked(tmp_path: Path, sd15, deltas) -> None:
    """Fails if keys that name no layer are lost, or the file is refused, where the user wants to look at them."""
    strange = {"lora_unet_mystery_0.lora_up.weight": torch.ones(2, 2), "emb_params": torch.ones(1)}
    write_safetensors(tmp_path / "a.safetensors", from_deltas(deltas(sd15)) | strange)
    lora = load_lora(tmp_path / "a.safetensors", keep_unknown=True)
    assert set(strange) <= set(lora) and len(lora) == 3 * len(sd15) + 2
    write_safetensors(tmp_path / "b.safetensors", strange)
    assert set(load_lora(tmp_path / "b.safetensors", keep_unknown=True)) == set(strange)


def test_what_should_not_be_saved_is_not(tmp_path: Path, sd15, deltas) -> None:
    """Fails if NaN, overflow in half precision or an empty LoRA made a file that looks fine."""
    lora = from_deltas(deltas(sd15))
    key = next(iter(lora))
    for value, dtype, says in ((float("nan"), "fp32", "NaN"), (1e6, "fp16", "too large")):
        with pytest.raises(ValueError, match=says):
            save_lora(tmp_path / "a.safetensors", lora | {key: torch.full_like(lora[key], value)}, "comfy", dtype)
    with pytest.raises(ValueError, match="empty"):
        save_lora(tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match="unknown dtype"):
        save_lora(tmp_path / "a.safetensors", lora, "comfy", "fp8")
    assert not list(tmp_path.iterdir()) and metadata_of(lora) == {}


def cloneofsimo(inside: list[tuple[int, int]], widths: list[int]) -> dict[str, torch.Tensor]:
    """A file that numbers its layers: for each block of that width, one layer for each (rows, columns) in widths."""
    tensors, index = {}, 0
    for width in widths:
        for rows, columns in inside:
            up = torch.full((rows * width, 2), float(index))
            tensors |= {f"unet:{index}:up": up, f"unet:{index}:down": torch.ones(2, columns * width)}
            index += 1
    return tensors


ATTENTION, FEED_FORWARD = [(1, 1)] * 4, [(8, 1)]
GATED = ATTENTION + FEED_FORWARD + ATTENTION
DOWN, UP = [4, 4, 8, 8, 16, 16], [16, 16, 16, 8, 8, 8, 4, 4, 4]


@pytest.mark.parametrize(
    ("inside", "widths", "index", "layer"),
    [
        (
            ATTENTION + FEED_FORWARD + ATTENTION,
            [*DOWN, *UP, 16],
            4,
            "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
        ),
        (ATTENTION * 2 + FEED_FORWARD, [*DOWN, *UP, 16], 8, "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj"),
        (GATED, [*DOWN, *UP, 16], 9, "input_blocks.2.1.transformer_blocks.0.attn1.to_q"),
        (ATTENTION * 2, [*DOWN, *UP, 16], 127, "middle_block.1.transformer_blocks.0.attn2.to_out.0"),
        (ATTENTION * 2, [*DOWN, 16, *UP], 127, "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0"),
        (ATTENTION * 2, [*DOWN, *UP, 16], 48, "output_blocks.3.1.transformer_blocks.0.attn1.to_q"),
    ],
)
def test_numbered_layers_find_their_names(tmp_path: Path, inside, widths, index: int, layer: str) -> None:
    """Fails if cloneofsimo's counting were undone in another order than diffusers' modules have."""
    tensors = cloneofsimo(inside, widths)
    tensors |= {f"text_encoder:{i}:{r}": torch.ones(2, 2) for i in range(48) for r in ("up", "down")}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    found = to_deltas(load_lora(tmp_path / "a.safetensors"))
    assert float(found[f"diffusion_model.{layer}"].up[0, 0]) == index
    assert "clip_l.transformer.text_model.encoder.layers.11.self_attn.out_proj" in found
    assert len(found) == len(widths) * len(inside) + 48


def test_an_incomplete_numbered_file_is_refused(tmp_path: Path) -> None:
    """Fails if a missing number shifted every layer after it."""
    tensors = cloneofsimo(ATTENTION * 2, [*DOWN, *UP, 16])
    del tensors["unet:7:up"], tensors["unet:7:down"]
    write_safetensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ValueError, match="layer 7 is missing"):
        load_lora(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "a.safetensors", cloneofsimo([(1, 1)] * 3, DOWN))
    with pytest.raises(ValueError, match="numbers 18 UNet layers"):
        load_lora(tmp_path / "a.safetensors")
