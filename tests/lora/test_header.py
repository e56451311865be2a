"""A header alone tells the architecture that the whole file tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from likeness.lora.files import read_header, read_safetensors
from likeness.lora.header import architecture_by_shapes
from likeness.lora.inspection import inspect_lora
from likeness.lora.keys import SCHEMES, from_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors


@pytest.mark.parametrize("naming", SCHEMES)
@pytest.mark.parametrize("architecture", ["sd15", "sdxl", "sd3", "flux"])
def test_a_header_tells_what_the_file_tells(
    tmp_path: Path, families: Any, deltas: Any, naming: str, architecture: str
) -> None:
    """Fails if a shape, the metadata or the architecture differs from what reading every tensor gives."""
    layers, res_blocks = families[architecture]
    if naming == "diffusers":  # it has names for blocks alone, and none for some text encoders
        layers = {name: shape for name, shape in layers.items() if "blocks" in name and "linear1" not in name}
    path = tmp_path / "a.safetensors"
    metadata = {"likeness.res_blocks": json.dumps(res_blocks)} if res_blocks else {}
    save_lora(path, LoraTensors(from_deltas(deltas(layers)), metadata), naming)
    shapes, said = read_header(path)
    tensors, everything = read_safetensors(path)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()} and said == everything
    assert architecture_by_shapes(shapes, res_blocks) == inspect_lora(load_lora(path)).architecture != "unknown"


def test_of_a_large_file_a_few_layers_are_enough() -> None:
    """Fails if the text's layers, last in the file, are not looked at; or if LoHa's and peft's have no width."""
    base = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_{}"
    many = {f"{base.format(i % 3, 'ff_net_2')}_{i}.lora_down.weight": (2, 8) for i in range(2000)}
    for width, name in ((768, "Stable Diffusion 1"), (1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL")):
        text = base.format(1, "attn2_to_k")
        for parts in (
            {"lora_up.weight": (320, 4), "lora_down.weight": (4, width)},
            {f"hada_w{n}_{x}": shape for n in (1, 2) for x, shape in (("a", (320, 4)), ("b", (4, width)))},
        ):
            assert architecture_by_shapes(many | {f"{text}.{s}": shape for s, shape in parts.items()}) == name
    assert architecture_by_shapes({}) == architecture_by_shapes({"a": (1,), "b.lora_down.weight": ()}) == "unknown"
