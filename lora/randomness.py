"""Random numbers that depend on the seed and on what they are for, never on what was drawn before.

Everything random at step k comes from ``generator(seed, "step", k)``, so to resume is to load and go on.
It stands in this room because trainers and merging both need it, and neither imports the other.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of a run: the BLAKE2b hash of (seed, purpose)."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose of a run. On the CPU whatever the device is, so that devices agree."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
