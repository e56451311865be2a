"""What a user chooses of a merge."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..lora.resize import Truncation
from .ties import MAJORITIES
from .trim import check_share

RANKS = ("exact", "number", "energy", "auto")
SCOPES = ("layer", "model")
_AUTO_ENERGY = 0.99


@dataclass(frozen=True)
class OutputRank:
    """The ranks of the merged LoRA.

    mode: "exact": nothing is lost that float32 holds: the concatenation where the method allows it, Σr of the inputs or
    the layer's own largest rank, whichever is less; else as many directions as the merged ΔW has, which of TIES or DARE
    are nearly all. "number": at most `rank`. "energy": in each layer the smallest that keeps the share `energy` of Σs².
    "auto": the smallest that keeps 99%, and never more than Σr of the inputs.
    Raises ValueError for what is out of range.
    """

    mode: str = "exact"
    rank: int = 32
    energy: float = _AUTO_ENERGY

    def __post_init__(self) -> None:
        if self.mode not in RANKS:
            raise ValueError(f"unknown output rank {self.mode!r}; expected one of {', '.join(RANKS)}")
        self.truncation(None)  # refuses a rank or energy out of range

    def truncation(self, rank_sum: int | None) -> Truncation | None:
        """How to cut a layer whose inputs have Σr = rank_sum (None where one is no low-rank pair); None: not at all."""
        if self.mode == "number":
            return Truncation("rank", rank=self.rank)
        if self.mode == "energy":
            return Truncation("energy", energy=self.energy)
        return Truncation("energy", energy=_AUTO_ENERGY, max_rank=rank_sum or 0) if self.mode == "auto" else None

    @property
    def text(self) -> str:
        """In words, for the report and the metadata."""
        return {"number": f"rank {self.rank}", "energy": f"energy {self.energy:g}"}.get(self.mode, self.mode)


@dataclass(frozen=True)
class MergeOptions:
    """How to merge. What a method does not use is not looked at; ``methods.METHODS`` says which uses what.

    method: a key of METHODS. scale: λ, times which everything merged is taken. density: (0, 1], the share of each
    ΔW's entries that stays. majority: of TIES' election, "total" or "frequency". scope: whether density counts in each
    layer or over the whole model ("layer", "model"). epsilon: DELLA's range of probabilities. outliers: [0, 1), the
    share of the largest entries that breadcrumbs leave out, 1 − γ; β is 1 − density − outliers, or 0. seed: of DARE and
    DELLA. measure: whether the report has cosines and sign conflicts, which cost more than a linear merge.
    Raises ValueError for what is out of range.
    """

    method: str = "linear"
    output: OutputRank = field(default_factory=OutputRank)
    scale: float = 1.0
    density: float = 0.5
    majority: str = "total"
    scope: str = "layer"
    epsilon: float = 0.1
    outliers: float = 0.01
    seed: int = 0
    measure: bool = True

    def __post_init__(self) -> None:
        check_share("density", self.density)
        if self.majority not in MAJORITIES:
            raise ValueError(f"unknown majority {self.majority!r}; expected one of {', '.join(MAJORITIES)}")
        if self.scope not in SCOPES:
            raise ValueError(f"unknown scope {self.scope!r} of the density; expected one of {', '.join(SCOPES)}")
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale λ is {self.scale}; expected a finite number")
        if not 0 <= self.outliers < 1:
            raise ValueError(f"the share of outliers is {self.outliers}; expected from 0 to below 1")
