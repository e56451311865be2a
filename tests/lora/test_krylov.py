"""A few singular values of a large matrix against numpy's SVD of all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likeness.lora import krylov


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("shape", [(280, 300), (420, 260)])
@pytest.mark.parametrize("kind", ["falling", "flat", "low rank", "factors", "zero"])
def test_as_good_as_the_best(shape: tuple[int, int], kind: str) -> None:
    """Fails if what is left is more than 1.002 times what the best of that rank leaves (Eckart–Young), values are not
    those of the factors, a direction counts twice where there are fewer than asked, or a second call differs."""
    rank, (m, n) = 8, shape
    up, down = draw(m, 40), draw(40, n, seed=1) * torch.logspace(0, -1, 40)[:, None]
    matrix = {
        "falling": up @ down,
        "flat": draw(m, n),
        "low rank": up[:, :3] @ down[:3],
        "factors": up @ down,
        "zero": torch.zeros(m, n),
    }[kind]
    assert krylov.pays(shape, rank)
    given = (up, down) if kind == "factors" else matrix
    found = krylov.leading(given, rank)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    best, norm = np.sqrt((values[rank:] ** 2).sum()), np.linalg.norm(values)
    new_up, new_down = found.factors(rank)
    assert found.shape == shape and new_up.shape == (m, rank) and new_down.shape == (rank, n)
    left = np.linalg.norm((matrix.double() - new_up.double() @ new_down.double()).numpy())
    assert left <= 1.002 * best + 1e-5 * norm
    assert np.linalg.norm(found.values.numpy()) <= norm * (1 + 1e-6)
    assert np.sqrt(max(0.0, norm**2 - float((found.values**2).sum()))) == pytest.approx(left, abs=2e-3 * norm, rel=1e-4)
    if kind == "low rank":
        assert int((found.values > 0).sum()) == 3
    again = krylov.leading(given, rank)
    assert torch.equal(again.values, found.values) and torch.equal(again.factors(rank)[0], new_up)


def test_where_it_pays() -> None:
    """Fails if small layers, or ranks near a layer's own, are approximated."""
    assert krylov.pays((1280, 640), 64) and not krylov.pays((1280, 640), 65) and not krylov.pays((255, 9000), 1)
