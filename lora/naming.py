"""The names that files are written with: from a canonical layer to kohya's and diffusers'. See keys.py for which."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import mmdit_names, suffixes, unet_names
from .mmdit_names import Piece
from .resolve import MODEL


@dataclass(frozen=True)
class DiffusersName:
    """The keys of one diffusers layer, and the rows of ours that it is (None: all)."""

    up: str
    down: str
    piece: Piece | None = None


def structure_of(named: Mapping[str, Mapping[str, Tensor]], res_blocks: Sequence[int] | None) -> tuple[int, ...] | None:
    """The UNet's res blocks a level: as said, else as the layers' names (and the text width) allow, else None."""
    if res_blocks:
        return tuple(res_blocks)
    contexts = {
        int(parts[suffixes.DOWN].shape[1])
        for layer, parts in named.items()
        if layer.endswith("attn2.to_k") and suffixes.DOWN in parts
    }
    names = [layer.removeprefix(MODEL) for layer in named if layer.startswith(MODEL)]
    return unet_names.guess_res_blocks(names, 2048 if 2048 in contexts else None)


def kohya_base(layer: str, structure: tuple[int, ...] | None, layers: Collection[str]) -> str:
    """What sd-scripts calls a canonical layer. layers: all of the LoRA's, which tell SD1's text encoder from SDXL's."""
    if layer.startswith(MODEL):
        name = layer.removeprefix(MODEL)
        # sd-scripts trains SD1 and SD2 in diffusers' UNet, SDXL and later models in the checkpoint's own
        if structure and len(structure) != 3 and (theirs := unet_names.to_diffusers(name, structure)):
            name = theirs
        return f"lora_unet_{name.replace('.', '_')}"
    encoder, _, inner = layer.partition(".transformer.")
    several = structure is None or len(structure) == 3
    numbers = {"clip_l": "1" if several else "", "clip_h": "", "clip_g": "2", "t5xxl": "3"}
    if not inner or encoder not in numbers:
        raise ValueError(f"the layer {layer} has no name in the naming kohya; save with the naming comfy")
    if encoder == "clip_l" and any(other.startswith(("clip_g.", "t5xxl.")) for other in layers):
        return f"lora_te1_{inner.replace('.', '_')}"
    return f"lora_te{numbers[encoder]}_{inner.replace('.', '_')}"


def diffusers_names(layer: str, structure: tuple[int, ...] | None) -> list[DiffusersName]:
    """The diffusers layers that a canonical layer is, in forms that the host reads too; several where it is fused.

    Raises ValueError where there is none.
    """
    if not layer.startswith(MODEL):
        return [_text_encoder(layer)]
    name = layer.removeprefix(MODEL)
    if family := _family(name, structure):
        pieces = mmdit_names.to_diffusers(name, family)
        if pieces:
            # Z-Image files are exchanged with ComfyUI's prefix, which diffusers reads too
            prefix = MODEL if family == "z-image" else "transformer."
            return [
                DiffusersName(f"{prefix}{theirs}.lora_B.weight", f"{prefix}{theirs}.lora_A.weight", piece)
                for theirs, piece in pieces
            ]
    elif structure and (unet := unet_names.to_diffusers(name, structure)):
        if found := re.match(r"^(.+\.attn\d)\.(to_[qkv]|to_out)(?:\.0)?$", unet):
            base = f"unet.{found[1]}.processor.{found[2]}_lora"
        else:
            base = f"unet.{unet}.lora"
        return [DiffusersName(f"{base}.up.weight", f"{base}.down.weight")]
    raise ValueError(
        f"the layer {layer} has no name in the naming diffusers that the host would read"
        + ("" if structure else ", or the UNet's structure is not known (metadata likeness.res_blocks)")
        + "; save with the naming kohya or comfy"
    )


def _family(name: str, structure: tuple[int, ...] | None) -> mmdit_names.Family | None:
    if family := mmdit_names.family_of(name):
        return family
    if unet_names.is_sgm(name) or structure:
        return None
    flux = name.startswith(("img_in", "txt_in", "time_in", "vector_in", "guidance_in"))
    sd3 = name.startswith(("x_embedder", "context_embedder", "t_embedder", "y_embedder"))
    return "flux" if flux else "sd3" if sd3 or name.startswith("final_layer") else None


def _text_encoder(layer: str) -> DiffusersName:
    encoder, _, inner = layer.partition(".transformer.")
    prefix = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}.get(encoder)
    if prefix is None or not re.match(r"text_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.", inner):
        raise ValueError(
            f"the layer {layer} has no name in the naming diffusers that the host would read; "
            "save with the naming kohya or comfy"
        )
    base = f"{prefix}.{inner}.lora_linear_layer"
    return DiffusersName(f"{base}.up.weight", f"{base}.down.weight")
