"""Linear combination: task arithmetic (Ilharco et al. 2022, arXiv 2212.04089, §2) with a weight for each."""

from __future__ import annotations

from torch import Tensor


def linear(gram: Tensor, weights: Tensor) -> Tensor:
    """(n,) coefficients of ΔW = Σ wᵢΔWᵢ: the weights themselves. gram: (n, n), not used. weights: (n,), any sign.

    What applying all LoRAs one after another with these strengths gives. peft's ``task_arithmetic`` is the same on ΔW;
    its ``add_weighted_adapter(combination_type="linear")`` puts √|w| on both factors and so adds cross terms.
    """
    return weights
