"""LoRA files read when asked, against the same files read at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from likeness.lora.files import write_safetensors
from likeness.lora.lazy import LoraFile, open_lora
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import metadata_of

UNET = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def pair(up: str, down: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {up: draw(8, 2, dtype=dtype), down: draw(2, 8, dtype=dtype)}


def cloneofsimo() -> dict[str, Tensor]:
    return {k: t for i in range(128) for k, t in pair(f"unet:{i}:up", f"unet:{i}:down").items()}


PROJ = "unet.mid_block.attentions.0.proj_in"
NORM = "transformer.single_transformer_blocks.0.norm.linear"
FLUX = "transformer.transformer_blocks.0.attn"
FILES: dict[str, tuple[Mapping[str, Tensor], dict[str, str]]] = {
    "comfy, fp16": (pair(f"{UNET}.lora_up.weight", f"{UNET}.lora_down.weight", torch.float16)
                    | {f"{UNET}.alpha": torch.tensor(1.5)}, {}),
    "kohya, bf16": (pair("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
                         "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", torch.bfloat16), {"a": "b"}),
    "fp8": ({f"{UNET}.diff": draw(4, 4, dtype=torch.float8_e4m3fn)}, {}),
    "cloneofsimo": (cloneofsimo(), {}),
    "fused": ({k: t for p in "qkv"
               for k, t in pair(f"{FLUX}.to_{p}.lora_B.weight", f"{FLUX}.to_{p}.lora_A.weight").items()}
              | {f"{NORM}.lora_B.weight": draw(6, 2), f"{NORM}.lora_A.weight": draw(2, 8)}, {}),
    "rows alone": ({f"lycoris_transformer_blocks_0_attn_to_{p}.lokr_w{n}": draw(2, 4) for p in "qk" for n in (1, 2)}
                   | {"lycoris_single_transformer_blocks_0_proj_mlp.diff": draw(4, 4)}, {}),
    "peft dora": (pair(f"{PROJ}.lora_B.weight", f"{PROJ}.lora_A.weight") | {f"{PROJ}.lora_magnitude_vector": draw(8)},
                  {"lora_adapter_metadata": '{"unet.lora_alpha": 6}'}),
    "tucker": ({f"{UNET}.lora_up.weight": draw(8, 2, 1, 1), f"{UNET}.lora_mid.weight": draw(2, 2, 3, 3),
                f"{UNET}.lora_down.weight": draw(2, 5, 1, 1)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_same_as_read_at_once(kind: str, tmp_path: Path) -> None:
    """Fails if a key, dtype, alpha or number differs, or the outline has another shape than what is read."""
    tensors, metadata = FILES[kind]
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, metadata)
    for layers in (None, {UNET: (8, 8, 1, 1)} if "comfy" in kind else None):
        once, lazy = load_lora(path, layers), open_lora(path, layers)
        assert isinstance(lazy, LoraFile) and list(lazy) == list(once) and metadata_of(lazy) == metadata_of(once)
        for key, tensor in once.items():
            assert lazy[key].dtype == tensor.dtype and torch.equal(lazy[key].float(), tensor.float()), key
            assert lazy.outline[key].shape == tensor.shape and lazy.outline[key].dtype == tensor.dtype
            if key.endswith(".alpha"):
                assert float(lazy.outline[key]) == float(tensor)
            else:
                assert lazy.outline[key].device.type == "meta" and lazy[key].data_ptr() != lazy.outline[key].data_ptr()


def test_hash(tmp_path: Path) -> None:
    """Fails if it is not what sd-scripts writes into a file: of the bytes after the header."""
    path = tmp_path / "a.safetensors"
    save_lora(path, FILES["comfy, fp16"][0])
    content = path.read_bytes()
    expected = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert LoraFile(path).file_hash() == expected == LoraFile(path).metadata["sshs_model_hash"]


def test_refusals(tmp_path: Path) -> None:
    """Fails if what load_lora refuses by names and shapes is opened, or a file that was replaced meanwhile is read as
    if it were the old one."""
    for number, (tensors, says) in enumerate(
        (
            ({"strange.thing": draw(2)}, "no LoRA"),
            ({f"{UNET}.lora_up.weight": draw(4, 2)}, "has lora_up.weight but no"),
            ({**FILES["comfy, fp16"][0], "lora_unet_who_knows.diff": draw(2, 2)}, "name no layer"),
            ({f"{UNET}.diff": torch.ones(2, 2, dtype=torch.int64)}, "int64"),
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        write_safetensors(path, tensors)
        for read in (load_lora, open_lora):
            with pytest.raises(ValueError, match=says):
                read(path)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, FILES["comfy, fp16"][0])
    with pytest.raises(ValueError, match="does not fit this MODEL"):
        open_lora(path, {UNET: (8, 9)})
    lazy = open_lora(path)
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"a\.safetensors was written over"):
        lazy[f"{UNET}.lora_up.weight"]
    path.write_bytes(content[:-3])
    with pytest.raises(ValueError, match="truncated"):
        open_lora(path)
