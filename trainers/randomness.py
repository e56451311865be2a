"""Random numbers of a run; see lora/randomness.py, where merging finds them too."""

from __future__ import annotations

from ..lora.randomness import derived_seed, generator

__all__ = ["derived_seed", "generator"]
