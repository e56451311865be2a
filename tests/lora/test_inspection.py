"""What Inspect says of a LoRA, against numpy on the dense ΔW, for every kind and naming that users have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from likeness.lora.files import write_safetensors
from likeness.lora.inspection import Inspection, inspect_lora, to_json
from likeness.lora.inspection_plot import inspection_plot
from likeness.lora.inspection_table import inspection_table
from likeness.lora.keys import SCHEMES, from_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.metadata import metadata_summary
from likeness.lora.model import LoraTensors
from likeness.lora.resize import Truncation, resize_lora

NAMES = {"sd15": "Stable Diffusion 1", "sdxl": "Stable Diffusion XL", "sd3": "Stable Diffusion 3", "flux": "Flux"}


def layer(inspection: Inspection, end: str) -> object:
    (found,) = [one for one in inspection.layers if one.name.endswith(end)]
    return found


@pytest.mark.parametrize("naming", SCHEMES)
@pytest.mark.parametrize("architecture", list(NAMES))
def test_figures_of_a_file(tmp_path: Path, families, deltas, architecture: str, naming: str) -> None:
    """Fails if a norm, a rank or a spectrum is of something else than scale · up · down, in any naming; or the
    architecture is not found."""
    layers, res_blocks = families[architecture]
    before = deltas(layers, rank=3, alpha=5.0)
    metadata = {"likeness.res_blocks": json.dumps(res_blocks)} if res_blocks else {}
    save_lora(tmp_path / "a.safetensors", LoraTensors(from_deltas(before), metadata), naming, "fp32")
    found = inspect_lora(load_lora(tmp_path / "a.safetensors"))
    assert found.architecture == NAMES[architecture] and not found.unknown_keys
    assert {one.name for one in found.layers} == set(before)
    for one in found.layers:
        s = np.linalg.svd(before[one.name].dense().flatten(1).double().numpy(), compute_uv=False)[:3]
        assert np.allclose(one.values, s, rtol=1e-5) and one.known and one.kind == "LoRA" and not one.note
        assert one.norm == pytest.approx(np.sqrt((s**2).sum()), rel=1e-5)
        p = s / s.sum()
        assert one.effective == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
        assert one.stable == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
        assert one.shape == (before[one.name].shape[0], int(np.prod(before[one.name].shape[1:])))
    for groups in (found.roles, found.blocks):
        assert sum(one.layers for one in groups) == len(before)
        assert sum(one.norm**2 for one in groups) == pytest.approx(sum(one.norm**2 for one in found.layers))


def test_kinds_that_have_no_difference_of_their_own() -> None:
    """Fails if figures are made up where ΔW depends on the base weight, or such a layer is left out."""
    base = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_"
    tensors = {
        f"{base}q.oft_blocks": torch.randn(2, 4, 4),
        f"{base}k.lora_up.weight": torch.randn(8, 2),
        f"{base}k.lora_down.weight": torch.randn(2, 8),
        f"{base}k.dora_scale": torch.randn(8, 1),
        f"{base}v.diff": torch.randn(8, 8),
        f"{base}v.diff_b": torch.randn(8),
        "diffusion_model.out.0.diff": torch.randn(8),
        "diffusion_model.out.2.alpha": torch.tensor(1.0),
    }
    found = inspect_lora(tensors)
    assert {one.name[-4:]: one.kind for one in found.layers} == {
        "to_q": "OFT", "to_k": "DoRA", "to_v": "full difference", "ut.0": "bias or norm"
    }  # fmt: skip
    oft, dora, full = (layer(found, end) for end in ("to_q", "to_k", "to_v"))
    assert oft.norm is None and not oft.values and "depends on the base weight" in oft.note
    assert "before it is normalised" in dora.note and dora.rank == 2 and dora.norm is not None
    assert full.norm == pytest.approx(float(tensors[f"{base}v.diff"].norm()), rel=1e-5) and full.rank is None
    assert inspection_plot(inspect_lora({f"{base}q.oft_blocks": torch.randn(2, 4, 4)})).shape == (1, 900, 1400, 3)


def test_unknown_names_are_listed_and_measured(tmp_path: Path, sd15, deltas) -> None:
    """Fails if keys that mean nothing vanish, or a layer of a name that nobody knows is not measured."""
    strange = {
        "lora_unet_mystery_0.lora_up.weight": torch.ones(2, 1),
        "lora_unet_mystery_0.lora_down.weight": torch.ones(1, 2),
        "emb_params": torch.ones(1),
    }
    write_safetensors(tmp_path / "a.safetensors", from_deltas(deltas(sd15)) | strange)
    found = inspect_lora(load_lora(tmp_path / "a.safetensors", keep_unknown=True))
    assert found.unknown_keys == ("emb_params",)
    mystery = layer(found, "mystery_0")
    assert not mystery.known and mystery.norm == pytest.approx(2.0) and "no known architecture" in mystery.note
    text = inspection_table(found)
    assert "`emb_params`" in text and "lora_unet_mystery_0 (unknown)" in text
    assert found.architecture == "Stable Diffusion 1"


def test_a_host_lora_in_any_naming_needs_no_loader(deltas, sd15) -> None:
    """Fails if a LORA_MODEL of another node, in a file's own naming and without metadata, is not understood."""
    kohya = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.ones(4, 1),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.ones(1, 4),
    }
    (one,) = inspect_lora(kohya).layers
    assert one.name == "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    assert len(inspect_lora(from_deltas(deltas(sd15))).layers) == len(sd15)


def test_half_a_layer_is_reported() -> None:
    """Fails if one broken layer hides all others."""
    base = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_"
    tensors = {f"{base}q.lora_up.weight": torch.ones(4, 1), f"{base}k.lora_up.weight": torch.ones(4, 1)}
    tensors |= {f"{base}k.lora_down.weight": torch.ones(1, 4)}
    found = inspect_lora(tensors)
    assert "but no lora_down" in layer(found, "to_q").note and layer(found, "to_k").norm == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no LoRA"):
        inspect_lora({"emb_params": torch.ones(3)})


def test_nan_is_named() -> None:
    """Fails if NaN in memory ends in an error of LAPACK, or is passed off as a figure."""
    base = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    for end in ("diff", "lokr_w1", "lora_up.weight"):
        bad = {f"{base}.{end}": torch.full((4, 4), float("nan"))}
        bad |= {f"{base}.lokr_w2": torch.ones(2, 2)} if end == "lokr_w1" else {}
        bad |= {f"{base}.lora_down.weight": torch.ones(4, 4)} if end == "lora_up.weight" else {}
        (one,) = inspect_lora(bad).layers
        assert "NaN" in one.note and one.norm is None
        with pytest.raises(ValueError, match=rf"{base} holds NaN or infinity \({end}\)"):
            resize_lora(bad, Truncation())


def test_files_of_other_programs(tmp_path: Path) -> None:
    """Fails if a file of cloneofsimo's trainer, peft or LyCORIS is not understood."""
    numbered = {f"unet:{i}:{role}": torch.ones(8, 1) if role == "up" else torch.ones(1, 8)
                for i in range(128) for role in ("up", "down")}  # fmt: skip
    peft = {"base_model.model.transformer_blocks.0.attn.to_q.lora_A.default.weight": torch.ones(1, 8),
            "base_model.model.transformer_blocks.0.attn.to_q.lora_B.default.weight": torch.ones(8, 1)}  # fmt: skip
    lycoris = {"lycoris_single_transformer_blocks_0_proj_mlp.lokr_w1": torch.ones(2, 2),
               "lycoris_single_transformer_blocks_0_proj_mlp.lokr_w2": torch.ones(4, 4)}  # fmt: skip
    for tensors, count, name, kind in (
        (numbered, 128, "a UNet of the Stable Diffusion family", "LoRA"),
        (peft, 1, "Stable Diffusion 3", "LoRA"),
        (lycoris, 1, "Flux", "LoKr"),
    ):
        write_safetensors(tmp_path / "a.safetensors", tensors)
        found = inspect_lora(load_lora(tmp_path / "a.safetensors"))
        assert len(found.layers) == count and found.architecture.startswith(name), found.architecture
        assert all(one.norm == pytest.approx(8.0) and one.kind == kind and one.known for one in found.layers)


def test_layers_that_learnt_nothing() -> None:
    """Fails if zeros end in NaN, in a table or in a plot that cannot be drawn."""
    base = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    found = inspect_lora({f"{base}.lora_up.weight": torch.zeros(4, 2), f"{base}.lora_down.weight": torch.ones(2, 4)})
    (one,) = found.layers
    assert (one.norm, one.effective, one.stable, one.rank_99, one.values) == (0.0, 0.0, 0.0, 0, ())
    assert torch.isfinite(inspection_plot(found)).all() and "nan" not in inspection_table(found)


def test_json_and_table_say_the_same(deltas, sd15) -> None:
    """Fails if the JSON is none (NaN), or a layer, a role or the trigger word is missing in either."""
    metadata = {"likeness.trigger": "sks", "ss_tag_frequency": json.dumps({"a": {"sks dog": 3, "grass": 1}})}
    found = inspect_lora(LoraTensors(from_deltas(deltas(sd15)), metadata))
    said = json.loads(to_json(found), parse_constant=lambda name: pytest.fail(name))
    text = inspection_table(found)
    assert said["about"]["trigger"] == "sks" and said["about"]["captions"] == "sks dog (3), grass (1)"
    assert "| file: trigger | sks |" in text and said["metadata"] == metadata
    for one in said["layers"]:
        assert f"| {one['name']} |" in text and len(one["values"]) == 2
    assert [one["name"] for one in said["roles"]] == ["self-attention", "cross-attention", "feed-forward", "other"]
    assert all(f"| {one['name']} | {one['layers']} |" in text for one in [*said["roles"], *said["blocks"]])


def test_summary_of_strange_metadata() -> None:
    """Fails if a file with nonsense in its metadata cannot be looked at."""
    for frequency in ("{", "[]", "1", '{"a": 1}', '{"a": {"b": "x"}}', '{"a": {"b": null}}', '{"a": {"b": 1e999}}'):
        assert metadata_summary({"ss_tag_frequency": frequency}) == {}
    assert metadata_summary({"ss_network_dim": "None", "modelspec.title": "  "}) == {}
    text = inspection_table(inspect_lora(LoraTensors({"diffusion_model.x.diff": torch.ones(2, 2)},
                                                     {"modelspec.title": "a | b\n# c"})))  # fmt: skip
    assert "| file: title | a \\| b # c |" in text


def test_the_plot_shows_what_was_measured() -> None:
    """Fails if the heat map is upside down, or roles share one: row 1 (rank 1) ends before row 2 (rank 4)."""
    base = "diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn1.to_q"
    tensors = {}
    for block, rank in ((1, 1), (2, 4)):
        tensors[f"{base.format(block)}.lora_up.weight"] = torch.eye(8)[:, :rank]
        tensors[f"{base.format(block)}.lora_down.weight"] = torch.eye(8)[:rank]
    picture = inspection_plot(inspect_lora(tensors), 700, 700)[0]
    grey = torch.tensor([0xE9, 0xE9, 0xEE]) / 255
    missing = ((picture - grey).abs().amax(-1) < 2 / 255).nonzero()
    assert len(missing) > 1000
    top, left, bottom, right = *missing.amin(0).tolist(), *missing.amax(0).tolist()
    middle, below = (left + right) // 2, bottom + (bottom - top) // 2
    assert top > 280 and bottom < 600 and left > 150  # the upper half of the lower panel, right of value 1
    assert picture[below, middle].tolist() == pytest.approx([0.987, 0.991, 0.750], abs=0.01)  # as bright as can be
