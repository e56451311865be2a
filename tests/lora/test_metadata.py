"""Metadata against the standards: safetensors' bytes for the hashes, sd-scripts' and modelspec's keys."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone

import pytest
import safetensors.torch
import torch

from likeness.lora.metadata import (
    build_metadata,
    complete_metadata,
    legacy_hash,
    model_hash,
    peft_alphas,
    rank_and_alpha,
    res_blocks_of,
    tag_frequency,
)

NOON = datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=timezone.utc)


def tensors(rows: int = 4) -> dict[str, torch.Tensor]:
    return {
        "lora_unet_a.lora_up.weight": torch.randn(rows, 2).half(),
        "lora_unet_a.lora_down.weight": torch.randn(2, 3).half(),
        "lora_unet_a.alpha": torch.tensor(1.5),
    }


@pytest.mark.parametrize("rows", [4, 400_000])  # the second is longer than the megabyte at which the old hash starts
def test_hashes_are_those_of_sd_scripts(rows: int) -> None:
    """Fails if a hash covers the wrong bytes: computed here from the file that safetensors itself makes."""
    lora, metadata = tensors(rows), {"ss_a": "1", "ss_b": "2", "modelspec.title": "not in the hash"}
    content = safetensors.torch.save(lora, {"ss_a": "1", "ss_b": "2"})
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert model_hash(lora) == hashlib.sha256(body).hexdigest()
    assert legacy_hash(lora, metadata) == hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]


def test_a_run_says_everything_about_itself() -> None:
    """Fails if a key that other programs look for is missing or has another form."""
    run = build_metadata(
        family="sd1",
        prediction="eps",
        res_blocks=(2, 2, 2, 2),
        trigger="sks",
        class_noun="dog",
        captions=["a picture of sks dog, red", "red", "blue"],
        resolution=(512, 768),
        rank=4,
        alpha=2.0,
        steps=100,
        learning_rate=1e-4,
        seed=3,
        config={"b": 1, "a": [1, 2]},
    )
    assert run["ss_base_model_version"] == "sd_v1" and run["ss_v2"] == "False"
    assert (run["ss_network_dim"], run["ss_network_alpha"], run["ss_steps"]) == ("4", "2.0", "100")
    assert json.loads(run["ss_tag_frequency"]) == {"subject": {"red": 2, "a picture of sks dog": 1, "blue": 1}}
    assert run["modelspec.architecture"] == "stable-diffusion-v1/lora" and run["modelspec.prediction_type"] == "epsilon"
    assert run["modelspec.resolution"] == "512x768" and run["modelspec.trigger_phrase"] == "sks dog"
    assert json.loads(run["likeness.config"]) == {"a": [1, 2], "b": 1} and res_blocks_of(run) == (2, 2, 2, 2)
    whole = complete_metadata(tensors(), run, title="mine", naming="kohya", date=NOON)
    assert whole["modelspec.sai_model_spec"] == "1.0.0" and whole["modelspec.date"] == "2026-01-02T12:00:00+00:00"
    assert whole["modelspec.title"] == whole["ss_output_name"] == "mine" and whole["ss_network_dim"] == "4"
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in whole.items())


def test_what_nobody_said_is_left_out_or_measured() -> None:
    """Fails if unknown facts were written as "None", or rank and alpha of another's LoRA were not found."""
    assert not any(value in ("None", "") for value in build_metadata().values())
    whole = complete_metadata(tensors(), {}, title="x", date=NOON)
    assert (whole["ss_network_dim"], whole["ss_network_alpha"]) == ("2", "1.5")
    assert rank_and_alpha({}) == (None, None) and tag_frequency(["", " , "]) == {}


def test_a_wrong_structure_is_refused() -> None:
    """Fails if a damaged likeness.res_blocks led to wrong names instead of an error."""
    assert res_blocks_of({}) is None
    for text in ("2,2", "[]", '"2"', "[0]", "[2.5]", "7"):
        with pytest.raises(ValueError, match="expected a list"):
            res_blocks_of({"likeness.res_blocks": text})


def test_peft_alpha_is_found_in_a_diffusers_file() -> None:
    """Fails if a diffusers file with alpha ≠ rank were read at the wrong strength."""
    lora = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(4, 8)}
    (base,) = (key.removesuffix(".lora_A.weight") for key in lora)
    config = {"unet.lora_alpha": 8, "unet.r": 4}
    assert peft_alphas({"lora_adapter_metadata": json.dumps(config)}, lora) == {base: 8.0}
    config["unet.use_rslora"] = True
    assert peft_alphas({"lora_adapter_metadata": json.dumps(config)}, lora) == {base: 16.0}
    config["unet.alpha_pattern"] = {"attentions.0.proj_in": 2}
    assert peft_alphas({"lora_adapter_metadata": json.dumps(config)}, lora) == {base: 4.0}
    assert peft_alphas({}, lora) == peft_alphas({"lora_adapter_metadata": "{"}, lora) == {}


def test_files_of_other_algorithms_say_so() -> None:
    """Fails if a LoHa, LoKr, OFT or DoRA file is announced as the plain LoRA that it is not."""
    for suffix, algo in (
        ("hada_w1_a", "loha"),
        ("lokr_w1", "lokr"),
        ("oft_blocks", "diag-oft"),
        ("dora_scale", "locon"),
    ):
        written = complete_metadata({f"lora_unet_x.{suffix}": torch.ones(2, 2)}, {"ss_network_module": "a"}, title="t")
        assert written["ss_network_module"] == "lycoris.kohya"
        assert json.loads(written["ss_network_args"])["algo"] == algo
