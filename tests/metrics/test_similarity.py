"""Subject similarity against a pair-by-pair count in plain Python, and the properties that a cosine has."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.metrics.registry import METRICS
from likeness.metrics.similarity import (
    compare,
    cosine_similarities,
    nearest_similarity,
    subject_similarity,
)


def vectors(seed: int, count: int, width: int = 7) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(generated: Tensor, references: Tensor) -> list[list[float]]:
    """Σab / √Σa² √Σb² number by number, without torch."""
    rows = []
    for a in generated.tolist():
        row = []
        for b in references.tolist():
            dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
            row.append(dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b)))
        rows.append(row)
    return rows


def mean_colour(pictures: Tensor) -> Tensor:
    """A feature network whose cosines can be worked out by hand."""
    return torch.nn.functional.normalize(pictures.mean((2, 3)), dim=1)


def plain(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours, dtype=torch.float32)[:, :, None, None].expand(-1, 3, 8, 8)


sets = st.tuples(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))


@given(sets)
@settings(max_examples=40, deadline=None)
def test_equals_the_pair_by_pair_count(case: tuple[int, int, int]) -> None:
    """Fails where rows and columns are swapped, a mean runs over the wrong axis, or vectors are not normalised."""
    seed, n, m = case
    generated, references = vectors(seed, n), vectors(seed + 1, m)
    expected = brute_force(generated, references)
    result = cosine_similarities(generated, references)
    flat = [x for row in expected for x in row]
    assert result.per_picture.tolist() == pytest.approx([sum(row) / m for row in expected])
    assert result.nearest_per_picture.tolist() == pytest.approx([max(row) for row in expected])
    assert result.mean == pytest.approx(sum(flat) / len(flat))
    assert result.nearest == pytest.approx(sum(max(row) for row in expected) / n)


@given(sets)
@settings(max_examples=40, deadline=None)
def test_order_and_length_do_not_matter(case: tuple[int, int, int]) -> None:
    """Fails where a picture is matched with the reference of the same number instead of with all."""
    seed, n, m = case
    generated, references = vectors(seed, n), vectors(seed + 1, m)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    mixed = cosine_similarities(generated.flip(0) * 3.5, references[order] * 0.01)
    result = cosine_similarities(generated, references)
    assert mixed.mean == pytest.approx(result.mean) and mixed.nearest == pytest.approx(result.nearest)
    torch.testing.assert_close(mixed.per_picture.flip(0), result.per_picture)


@given(sets)
@settings(max_examples=40, deadline=None)
def test_stays_in_range_and_nearest_is_no_less_than_the_mean(case: tuple[int, int, int]) -> None:
    """Fails where rounding leaves [−1, 1], or max and mean are exchanged."""
    seed, n, m = case
    result = cosine_similarities(vectors(seed, n).float(), torch.cat([vectors(seed, n), vectors(seed + 1, m)]).float())
    assert result.cosines.min() >= -1 and result.cosines.max() <= 1
    assert (result.nearest_per_picture >= result.per_picture).all() and result.nearest >= result.mean


def test_identity_opposite_and_right_angle() -> None:
    """Fails for any other scale than the cosine's: same is 1, opposite −1, unrelated 0."""
    same = vectors(3, 1)
    assert cosine_similarities(same, same).mean == pytest.approx(1)
    assert cosine_similarities(same, -2 * same).mean == pytest.approx(-1)
    axes = torch.eye(4)
    assert cosine_similarities(axes[:2], axes[2:]).mean == 0
    assert cosine_similarities(axes, axes).mean == pytest.approx(0.25)
    assert cosine_similarities(axes, axes).nearest == pytest.approx(1)


def test_half_precision_features_are_compared_in_full() -> None:
    """Fails where fp16 sums overflow: 300² · 7 is beyond fp16's 65504."""
    same = torch.full((1, 7), 300.0, dtype=torch.float16)
    assert cosine_similarities(same, same).mean == pytest.approx(1, abs=1e-6)


def test_pictures_by_hand() -> None:
    """Fails where generated and references are taken wrongly from pictures: red to (red, green) is (1 + 0) / 2."""
    red, references = plain((1, 0, 0)), plain((1, 0, 0), (0, 1, 0))
    assert subject_similarity(red, references, mean_colour) == pytest.approx(0.5)
    assert nearest_similarity(red, references, mean_colour) == pytest.approx(1)
    assert compare(plain((1, 1, 0), (0, 0, 1)), references, mean_colour).per_picture.tolist() == pytest.approx(
        [math.sqrt(0.5), 0]
    )


@pytest.mark.parametrize(
    ("generated", "references", "says"),
    [
        (torch.ones(0, 3), torch.ones(1, 3), "generated features must be"),
        (torch.ones(1, 3), torch.ones(0, 3), "reference features must be"),
        (torch.ones(3), torch.ones(1, 3), "must be .pictures, D."),
        (torch.ones(1, 3), torch.ones(1, 4), "same network"),
        (torch.tensor([[1.0, 2], [0, 0]]), torch.ones(1, 2), "picture 1 are zero"),
        (torch.ones(1, 2), torch.tensor([[float("nan"), 1]]), "reference features of picture 0"),
        (torch.ones(1, 2), torch.tensor([[float("inf"), 1]]), "reference features of picture 0"),
    ],
)
def test_what_has_no_cosine_is_refused(generated: Tensor, references: Tensor, says: str) -> None:
    """Fails where an empty set or a dead vector would become a NaN or a silent 0 in a table."""
    with pytest.raises(ValueError, match=says):
        cosine_similarities(generated, references)


def test_the_registry_tells_the_truth() -> None:
    """Fails where a metric's stated range or direction is not what its function does."""
    references = plain((1, 0, 0), (0.9, 0.1, 0))
    for metric in (METRICS["subject_similarity"], METRICS["nearest_similarity"]):
        low, high = metric.range
        alike, unlike = (metric.function(plain(colour), references, mean_colour) for colour in ((1, 0, 0), (0, 0, 1)))
        assert low <= unlike <= high and low <= alike <= high
        assert (alike > unlike) == (metric.direction == "higher")
