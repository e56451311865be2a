"""What a layer does, and in which block it stands, by its canonical name."""

from __future__ import annotations

import re

from .resolve import MODEL, TEXT_ENCODERS

# A path segment with "attn" or "attention" in it: attn1 (SD), img_attn (Flux), self_attn (Wan, CLIP), attention
# (Lumina), SelfAttention (T5)…
# "attentions" is diffusers' name of a whole transformer, feed-forward and all. Flux's linear1 makes q, k and v too.
ATTENTION = re.compile(r"(?:^|\.)\w*(?:attn|[Aa]ttention)(?!s)\w*(?:\.|$)|\bsingle_blocks\.\d+\.linear1$")

# ff (SD), mlp (SD3, CLIP), img_mlp (Flux), ffn (Wan), feed_forward (Lumina), DenseReluDense (T5); inside a numbered
# block, for embedders have an mlp too. Flux's linear2 is the attention's output and the feed-forward's in one.
FEED_FORWARD = re.compile(
    r"\.\d+\.(?:.*\.)?(?:\w*_)?(?:ff|ffn|mlp|feed_forward|DenseReluDense)(?:_\w+|[A-Z])?\d*(?:\.|$)"
    r"|\bsingle_blocks\.\d+\.linear[12]$"
)

SELF, CROSS, JOINT = "self-attention", "cross-attention", "joint attention"
ROLES = (SELF, CROSS, JOINT, "feed-forward", "other")
"""Joint: over pictures and text at once, as in SD3, Flux and Qwen-Image."""
_CROSS = re.compile(r"(?:^|\.)(?:attn2|cross_attn\w*|EncDecAttention)(?:\.|$)")
_SELF = re.compile(r"(?:^|\.)(?:attn1|self_attn\w*|SelfAttention)(?:\.|$)|\bx_block\.attn2\.")
_BLOCK = re.compile(r"^(.*?)(?<=\.)(\d+)(?:\.|$)")


def role_of(layer: str) -> str:
    """One of ROLES. A name that no architecture has is sorted by the words in it."""
    if ATTENTION.search(layer):
        if _SELF.search(layer):  # before cross: SD3.5's attn2 is pictures alone
            return SELF
        return CROSS if _CROSS.search(layer) else SELF if layer.startswith(TEXT_ENCODERS) else JOINT
    return "feed-forward" if FEED_FORWARD.search(layer) else "other"


def block_of(layer: str) -> str:
    """The numbered block: `input_blocks.4`, `middle_block`, `single_blocks.12`, `clip_l.3`; else the first word.

    Layers outside numbered blocks, such as `time_embed.0`, have that word alone.
    """
    encoder = next((prefix for prefix in TEXT_ENCODERS if layer.startswith(prefix)), "")
    name = layer.removeprefix(MODEL).removeprefix("transformer.")  # diffusers' name of some rows of a layer
    found = _BLOCK.match(name)
    if encoder:
        return f"{encoder}{found[2]}" if found else encoder.rstrip(".")
    if found and name.startswith("middle_block."):
        return "middle_block"
    blocks = re.search(r"block|layer|refiner", found[1]) if found else None
    return f"{found[1]}{found[2]}" if found and blocks else re.split(r"[.]", name)[0]
