"""The discretised exponential that orders the components of a LoRA, cut at its quantile.

With F(x) = 1 − e^{−νx} the distribution function of the exponential and T = −ln(1 − q)/ν its q-quantile, component
x = 0, 1, … weighs the probability of [x, x + 1) below T:

    f(x; ν) = F(min(x + 1, T)) − F(min(x, T)),   D = ⌈T⌉ components,   Σ_x f(x; ν) = q.

For x < D − 1 that is e^{−νx} − e^{−ν(x+1)}, counted from 0. The last component has what is left up to the quantile,
e^{−ν(D−1)} − (1 − q), and not the whole interval. So the sum is q for every ν; a component's weight goes to 0 before
it is dropped, and grows from 0 when it is added; and f is continuous in ν through a change of D, with the derivative
that autograd finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILE = 0.9
"""q."""
_TAIL = 1 - QUANTILE
_REACH = -math.log(_TAIL)
"""ν·T."""
_INSIDE = 1e-9
"""Of ν_of_rank, relative: that far inside the rank, so that rounding does not add one."""


def nu_of_rank(rank: float) -> float:
    """The ν whose quantile is at ``rank`` (≥ 1): −ln(1 − q)/rank."""
    return _REACH / rank * (1 + _INSIDE)


def rank_of_nu(nu: float) -> int:
    """D = ⌈−ln(1 − q)/ν⌉, at least 1."""
    return max(1, math.ceil(_REACH / nu))


def weights(nu: Tensor, ranks: Sequence[int]) -> tuple[Tensor, ...]:
    """f of every layer, all at once: a handful of operations, however many layers there are.

    Args:
        nu: (L,) above 0.
        ranks: L counts of components. Where one is above D, the weights from D on are exactly 0.

    Returns:
        L tensors, (ranks[l],) each, of one graph.
    """
    counts = torch.tensor(ranks)
    place = torch.cat([torch.arange(rank) for rank in ranks]).to(nu.dtype)
    each = torch.repeat_interleave(nu, counts)
    below, above = ((-each * edge).exp().clamp_min(_TAIL) for edge in (place, place + 1))
    return torch.split(below - above, list(ranks))


def softplus(raw: Tensor) -> Tensor:
    """ν = ln(1 + e^raw) > 0."""
    return F.softplus(raw)


def inverse_softplus(nu: float) -> float:
    """The raw value of a ν > 0."""
    return math.log(math.expm1(nu))
