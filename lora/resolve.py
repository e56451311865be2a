"""Which layer does a file mean? From any scheme's name of a layer to the canonical one.

The canonical name is the host's module path: `diffusion_model.…` for the diffusion model, `clip_l.…`, `clip_g.…`,
`clip_h.…`, `t5xxl.…` for text encoders. Where the MODEL's layers are known they decide; else the name itself does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from . import mmdit_names, unet_names
from .mmdit_names import Family, Piece
from .undot import undot

MODEL = "diffusion_model."
TEXT_ENCODERS = ("clip_l.", "clip_g.", "clip_h.", "t5xxl.")
"""How the canonical names of their layers begin."""
_FLAT = {
    "lora_unet__": "kohya",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya",
    "lycoris_": "lycoris",
    "unet_": "kohya",
}
_DOTTED = {
    "model.diffusion_model.": "comfy",
    MODEL: "comfy",
    "unet.base_model.model.": "peft",
    "base_model.model.": "peft",
    "unet.": "diffusers",
    "transformer.": "diffusers",
    "": "diffusers",
}
_TEXT_FLAT = re.compile(r"^lora_te([123]?)_(.+)$")
_TEXT_DOTTED = re.compile(r"^text_encoder(?:_([23]))?\.(?:base_model\.model\.)?(.+)$")


@dataclass(frozen=True)
class Target:
    """A canonical layer, or (piece) some rows of it, and the scheme in which it was named."""

    layer: str
    scheme: str
    piece: Piece | None = None
    theirs: str = ""  # diffusers' name of a piece, without prefix


def tensor_name(layer: str) -> str:
    """The base under which the host looks for this canonical layer: text encoders stand below `text_encoders.`."""
    return f"text_encoders.{layer}" if layer.startswith(TEXT_ENCODERS) else layer


def layer_name(base: str) -> str:
    """The canonical layer of a comfy base; the inverse of ``tensor_name``."""
    return base.removeprefix("text_encoders.")


def host_name(target: Target) -> str:
    """The base under which the host looks for some rows of a layer: diffusers' name of them."""
    if not target.theirs:
        return f"{target.layer}_qkv"  # linear1_qkv
    family = mmdit_names.family_of(target.layer.removeprefix(MODEL))
    return f"{MODEL if family == 'z-image' else 'transformer.'}{target.theirs}"


class Resolver:
    """Finds layers by any name; made once for one file.

    bases: every base of the file, which together tell the architecture where `layers` does not.
    layers: the canonical layers of the MODEL (and CLIP), where known: then only they are found.
    res_blocks: the res blocks a level of the UNet that the file was made for, where it says so; see unet_names.
    """

    def __init__(
        self,
        bases: Iterable[str],
        layers: Collection[str] | None = None,
        res_blocks: Sequence[int] | None = None,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        bases = list(bases)
        known = [name.removeprefix(MODEL) for name in layers or () if name.startswith(MODEL)]
        self._widths = widths or {}
        self._layers = (
            set(layers or ()) if known else None
        )  # a mapping of text encoders alone says nothing of the model
        self._text_layers = {name for name in layers or () if name.startswith(TEXT_ENCODERS)}
        self._flat = {name.replace(".", "_"): name for name in known}
        self._family = _family(bases, known, self._widths)
        self._res_blocks = tuple(res_blocks) if res_blocks else unet_names.res_blocks_of(known)
        if self._res_blocks is None and not known:
            self._res_blocks = _guess_levels(bases)

    def find(self, base: str) -> Target | None:
        """The layer that a base means, or None where there is none."""
        if self._layers is not None and base in self._layers:
            return Target(base, "comfy")
        return self._text_encoder(base) or self._diffusion_model(base)

    def _text_encoder(self, base: str) -> Target | None:
        layer = layer_name(base)
        if layer.startswith(TEXT_ENCODERS):
            return self._text_target(layer, "comfy")
        if found := _TEXT_FLAT.match(base):
            number, inner, scheme = found[1], undot(found[2]), "kohya"
        elif found := _TEXT_DOTTED.match(base):
            number, inner, scheme = found[1] or "1", found[2], "diffusers"
        else:
            return None
        if inner is None:
            return None
        if inner.startswith("encoder.layers."):  # without the `text_model.` that newer libraries drop
            inner = f"text_model.{inner}"
        if inner.startswith(("encoder.block.", "encoder.final_layer_norm", "shared")):
            return self._text_target(f"t5xxl.transformer.{inner}", scheme)
        if number == "3":
            return None
        open_clip = self._widths.get(base) in (1024, 4096)  # SD2's text encoder; SD1's is 768 wide
        first = ("clip_h", "clip_l") if open_clip else ("clip_l", "clip_h")
        for name in ("clip_g",) if number == "2" else first:
            if target := self._text_target(f"{name}.transformer.{inner}", scheme):
                return target
        return None

    def _text_target(self, layer: str, scheme: str) -> Target | None:
        return Target(layer, scheme) if not self._text_layers or layer in self._text_layers else None

    def _diffusion_model(self, base: str) -> Target | None:
        for prefix, scheme in _FLAT.items():
            if base.startswith(prefix):
                flat = base[len(prefix) :]
                if flat in self._flat:
                    return Target(MODEL + self._flat[flat], scheme)
                name = undot(flat)
                return self._named(name, scheme) if name else None
        prefix, scheme = next((p, s) for p, s in _DOTTED.items() if base.startswith(p))
        name = base[len(prefix) :].replace(".processor.", ".")
        if re.search(r"attn\d*\.to_out$", name):  # older diffusers left the 0 out
            name += ".0"
        theirs = self._family == "z-image" and self._piece(name) is not None  # diffusers' names, ComfyUI's prefix
        if scheme == "comfy" and self._layers is None and not unet_names.is_diffusers(name) and not theirs:
            name, piece = _linear1_qkv(name)
            return Target(MODEL + name, scheme, piece)
        return self._named(name, scheme)

    def _named(self, name: str, scheme: str) -> Target | None:
        """A dotted name without prefix, the checkpoint's own or diffusers'."""
        name, piece = _linear1_qkv(name)
        known = self._layers is not None or unet_names.is_sgm(name) or name.startswith(_OWN_ROOTS)
        if self._exists(name) and (known or (self._family == "z-image" and self._piece(name) is None)):
            return Target(MODEL + name, scheme, piece)
        if unet_names.is_diffusers(name) and self._res_blocks and not self._family:
            top = None
            if self._layers is not None:
                own = re.compile(r"^output_blocks\.(\d+)\.2\.conv$")
                names = [n for n in self._flat.values() if own.match(n)]
                levels = [unet_names.to_diffusers(n, self._res_blocks) for n in names]
                top = [int(level.split(".")[1]) for level in levels if level]
            sgm = unet_names.to_sgm(name, self._res_blocks, top)
            return Target(MODEL + sgm, scheme) if sgm and self._exists(sgm) else None
        found = self._piece(name)
        if found and self._exists(found.layer):
            whole = found.total is None and found.swap == "never"
            return Target(MODEL + found.layer, scheme, None if whole else found, "" if whole else name)
        return None

    def _piece(self, name: str) -> Piece | None:
        """What a diffusers name means in this family."""
        return mmdit_names.to_checkpoint(name, self._family) if self._family else None

    def _exists(self, name: str) -> bool:
        return self._layers is None or MODEL + name in self._layers


_OWN_ROOTS = (*mmdit_names.ROOTS, "img_in", "txt_in", "time_in.", "vector_in.", "guidance_in.", "final_layer.")


def _linear1_qkv(name: str) -> tuple[str, Piece | None]:
    """Flux files that change only the first three sevenths of linear1 say so in the name."""
    if name.endswith(".linear1_qkv"):
        layer = name.removesuffix("_qkv")
        return layer, Piece(layer, 0, 3, 7)
    return name, None


def family_of_bases(bases: Iterable[str]) -> Family | None:
    """Which transformer the layers of a file belong to, by their names alone, in any scheme."""
    return _family(list(bases), (), {})


def _family(bases: Sequence[str], known: Sequence[str], widths: Mapping[str, int]) -> Family | None:
    """Which transformer it is, as the MODEL's layers say, else as the file's own names and widths do."""
    if known:
        return mmdit_names.family_of_all(known)
    if any(re.search(r"to_qkv_mlp_proj|double_stream_modulation_", base) for base in bases):
        return "flux2"
    if any(re.search(r"(?:layers|_refiner)[._]\d+[._]attention[._](?:to_|qkv|out)", base) for base in bases):
        return "z-image"
    if any("single_transformer_blocks" in base or "single_blocks" in base for base in bases):
        return "flux"
    if any("double_blocks" in base for base in bases):
        return "flux"
    transformer = [b for b in bases if re.search(r"(?:^|transformer[._]|model\.|lycoris_)transformer_blocks[._]", b)]
    if any(re.search(r"(img|txt)_(mlp|mod)", base) for base in transformer):
        return "qwen-image"
    if transformer:
        attention = [widths.get(b) for b in transformer if re.search(r"attn[._](?:to|add)_[qkv]", b)]
        if 3072 not in attention:
            return "sd3"
        # Flux and Qwen-Image have one width; Flux ends after 19 blocks, Qwen-Image after 60
        numbers = [int(found[1]) for b in transformer if (found := re.search(r"transformer_blocks[._](\d+)", b))]
        return "qwen-image" if max(numbers) > 18 else "flux"
    return "sd3" if any("joint_blocks" in base for base in bases) else None


def _guess_levels(bases: Sequence[str]) -> tuple[int, ...] | None:
    """SD1.5's structure or SDXL's, for a file with diffusers names and nothing else known.

    SDXL has attention in down blocks 1 and 2 and up blocks 0 and 1, and three levels; SD1.5 in 0-2 and 1-3, and four.
    The number of the block is the same for both, but where an upsampler stands is not.
    """
    text = "\n".join(base.replace(".", "_") for base in bases)
    if re.search(r"(?:down|up)_blocks_3_|down_blocks_0_attentions|up_blocks_2_attentions", text):
        return unet_names.SD15
    if re.search(r"up_blocks_0_attentions|attentions_\d+_transformer_blocks_[2-9]|add_embedding", text):
        return unet_names.SDXL
    return unet_names.SD15 if re.search(r"(?:down|up|mid)_block|conv_(?:in|out)|time_emb", text) else None
