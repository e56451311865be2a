"""Merge LoRAs, Merge Options and Apply Merged in this process; the host's own LoRA code says what a file's ΔW is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.lora.model import LoraTensors

BLOCKS = (
    "diffusion_model.input_blocks.1.1.transformer_blocks.0",
    "diffusion_model.output_blocks.3.1.transformer_blocks.0",
)
LAYERS = {f"{block}.{layer}": shape for block in BLOCKS for layer, shape in (("attn1.to_q", (12, 10)),)}
LAYERS["text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"] = (8, 8)
HOW = {"method": "linear", "weights": "1", "density": 0.5, "output_rank": "exact", "rank": 4, "seed": 0}


def lora(seed: int, rank: int, alpha: float | None, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    out = {}
    for name, (rows, columns) in LAYERS.items():
        out[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=chance).to(dtype)
        out[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=chance).to(dtype)
        if alpha is not None:
            out[f"{name}.alpha"] = torch.tensor(alpha)
    return out


def of_the_host(loras: dict[float, dict[str, torch.Tensor]], layer: str) -> torch.Tensor:
    """Σ strength · ΔW as the host's loader patches it."""
    import comfy.lora

    patches = []
    for strength, tensors in loras.items():
        loaded = comfy.lora.load_lora(dict(tensors), {layer: f"{layer}.weight"})
        patches.append((strength, loaded[f"{layer}.weight"], 1.0, None, None))
    return comfy.lora.calculate_weight(patches, torch.zeros(LAYERS[layer]), f"{layer}.weight").double()


def test_one_lora_is_the_sum_of_patches(comfy: Any) -> None:
    """Fails if weights reach the wrong LoRA, a rule or λ is not applied, or a file's weight is not multiplied in."""
    from likeness.nodes.lora_files import LikenessSaveLoRA
    from likeness.nodes.merge_loras import LikenessMergeLoRAs
    from likeness.nodes.merge_options import LikenessMergeOptions

    one, two, three = lora(1, 2, 1.0), lora(2, 3, None), lora(3, 4, 4.0)
    LikenessSaveLoRA.execute(LoraTensors(three), "merge/three", "kohya", "fp32")
    text = r"^diffusion_model\.output 1 0.5 2"
    (options,) = LikenessMergeOptions.execute(
        layer_weights=text, scale=2.0, energy=0.9, majority="total", scope="layer", epsilon=0.1, outliers=0.01,
        dtype="fp32", measure=True,
    ).result  # fmt: skip
    merged, report, plot, found = LikenessMergeLoRAs.execute(
        **HOW | {"weights": "1, 0.8, -0.5"}, files="merge/thr* 3", options=options, lora_1=one, lora_4=two
    ).result
    for layer in LAYERS:
        there = (1.0, 0.5, 2.0) if "output" in layer else (1.0, 1.0, 1.0)
        weights = [w * f * 2 for w, f in zip((1, 0.8, -1.5), there, strict=True)]
        expected = of_the_host(dict(zip(weights, (one, two, three), strict=True)), layer)
        assert torch.allclose(of_the_host({1.0: merged}, layer), expected, atol=1e-5 * float(expected.abs().max()))
        assert merged[f"{layer}.lora_down.weight"].shape[0] <= 9
    assert "| lora_4 | 0.8 |" in report and "| merge/three | -1.5 |" in report and "## Blocks" in report
    about = json.loads(found)
    assert [one["name"] for one in about["loras"]] == ["lora_1", "lora_4", "merge/three"] and len(about["layers"]) == 3
    assert [block["name"] for block in about["blocks"]] == ["clip_l.0", "input_blocks.1", "output_blocks.3"]
    assert plot.shape == (1, 900, 1400, 3) and 0 <= plot.min() < plot.max() <= 1
    assert json.loads(merged.metadata["likeness.merged_from"])["loras"][2]["weight"] == -1.5


def test_half_precision_and_names(comfy: Any) -> None:
    """Fails if dtype is not heeded, alpha is rounded, or LoRAs of one name cannot be told apart."""
    from likeness.nodes.merge_loras import LikenessMergeLoRAs

    one, two = (LoraTensors(lora(n, 2, 1.0), {"likeness.trigger": "sks"}) for n in (1, 2))
    merged, report, _, _ = LikenessMergeLoRAs.execute(**HOW, options={"dtype": "bf16"}, lora_1=one, lora_2=two).result
    assert {t.dtype for key, t in merged.items() if not key.endswith("alpha")} == {torch.bfloat16}
    assert {t.dtype for key, t in merged.items() if key.endswith("alpha")} == {torch.float32}
    assert "| sks (lora_1) |" in report and "| sks (lora_2) |" in report
    large = {key: tensor * (300 if "alpha" not in key else 1) for key, tensor in one.items()}
    with pytest.raises(ValueError, match="too large for torch"):
        LikenessMergeLoRAs.execute(**HOW | {"weights": "1e9"}, options={"dtype": "fp16"}, lora_1=large)


@pytest.mark.parametrize("method", ["ties", "della", "breadcrumbs"])
def test_every_option_reaches_the_method(comfy: Any, method: str) -> None:
    """Fails if the node's widgets are not those that merge_loras gets."""
    from likeness.merging.align import Source
    from likeness.merging.merge import merge_loras
    from likeness.merging.options import MergeOptions, OutputRank
    from likeness.nodes.merge_loras import LikenessMergeLoRAs

    one, two = lora(1, 2, 1.0), lora(2, 3, None)
    shown = {"method": method, "weights": "1 -2", "density": 0.3, "output_rank": "energy", "rank": 2, "seed": 7}
    more = {"scale": 1.5, "majority": "frequency", "epsilon": 0.2, "outliers": 0.1, "energy": 0.8}
    merged = LikenessMergeLoRAs.execute(**shown, options=more, lora_1=one, lora_2=two).result[0]
    energy = more.pop("energy")
    options = MergeOptions(method, OutputRank("energy", 2, energy), density=0.3, seed=7, **more)
    expected, _ = merge_loras([Source("lora_1", one, 1.0), Source("lora_2", two, -2.0)], options)
    assert set(merged) == set(expected) and all(torch.equal(merged[key], expected[key]) for key in expected)


def test_what_cannot_be_merged_is_said(comfy: Any) -> None:
    """Fails if a wrong input reaches the numerics, or the message names neither LoRA."""
    from likeness.nodes.merge_loras import LikenessMergeLoRAs
    from likeness.nodes.merge_options import LikenessMergeOptions

    one = lora(1, 2, 1.0)
    cases = {
        "there is no LoRA to merge": {},
        "2 weights for 1 LoRAs": {"weights": "1 2", "lora_1": one},
        "line 1 of the files: 'nothing'": {"files": "nothing"},
        "lora_2: 1 keys name no layer; the first is strange": {
            "lora_1": one,
            "lora_2": {"strange": torch.ones(1)} | one,
        },
        "slerp merges 2 LoRAs, and was given 1": {"method": "slerp", "lora_1": one},
    }
    for words, inputs in cases.items():
        with pytest.raises(ValueError, match=words):
            LikenessMergeLoRAs.execute(**HOW | inputs)
    rules = {"layer_weights": "( 1", "dtype": "fp32", "energy": 0.9}
    with pytest.raises(ValueError, match="line 1 of the layer weights"):
        LikenessMergeOptions.execute(**rules)


def test_a_changed_file_is_read_again(comfy: Any) -> None:
    """Fails if the host's cache would answer with what an older file gave."""
    from likeness.nodes.lora_files import LikenessSaveLoRA
    from likeness.nodes.merge_loras import LikenessMergeLoRAs

    seen = set()
    for number in (1, 2):
        (path,) = LikenessSaveLoRA.execute(LoraTensors(lora(1, number, None)), "again/one", "comfy", "fp32").result
        assert Path(path).is_file()
        seen.add(LikenessMergeLoRAs.fingerprint_inputs(**HOW, files="again/"))
    assert len(seen) == 2
    assert "no LoRA" in LikenessMergeLoRAs.fingerprint_inputs(**HOW, files="not there")
