"""ΔW = scale · up · down, against the sums written out."""

from __future__ import annotations

import pytest
import torch

from likeness.lora.delta import LowRankDelta


def test_dense_of_a_matrix_is_the_sum_written_out() -> None:
    """Fails if scale, order or transposition of the factors is wrong."""
    up, down = torch.randn(3, 2), torch.randn(2, 5)
    delta = LowRankDelta(up, down, 0.5, "linear")
    expected = torch.zeros(3, 5)
    for o in range(3):
        for i in range(5):
            expected[o, i] = 0.5 * sum(up[o, r] * down[r, i] for r in range(2))
    assert torch.allclose(delta.dense(), expected, atol=1e-6)
    assert (delta.rank, delta.alpha, delta.shape) == (2, 1.0, (3, 5))


def test_dense_of_a_convolution_acts_like_the_two_convolutions() -> None:
    """Fails if the kernel's axes are laid out wrongly: ΔW as one convolution must equal down then up."""
    delta = LowRankDelta(torch.randn(4, 2, 1, 1), torch.randn(2, 3, 3, 3), 2.0, "conv")
    x = torch.randn(1, 3, 6, 6)
    two = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, delta.down), delta.up) * 2.0
    assert torch.allclose(torch.nn.functional.conv2d(x, delta.dense()), two, atol=1e-4)


@pytest.mark.parametrize(
    ("up", "down", "kind", "says"),
    [
        ((3, 2), (4, 5), "linear", "rank 2"),
        ((3, 2), (2, 5), "conv", "4 dimensions"),
        ((3, 2, 3, 3), (2, 5, 1, 1), "conv", "1×1"),
    ],
)
def test_factors_that_do_not_belong_together_are_refused(up, down, kind, says) -> None:
    """Fails if a mismatched pair gets through to where the error names no layer."""
    with pytest.raises(ValueError, match=says):
        LowRankDelta(torch.zeros(up), torch.zeros(down), 1.0, kind)
