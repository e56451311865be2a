"""Likeness: teach a diffusion model your subject inside ComfyUI. The host loads this file; everything else is lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import LikenessExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> LikenessExtension:
    """Called by the host once; only then are the nodes imported."""
    from .nodes import LikenessExtension

    return LikenessExtension()
