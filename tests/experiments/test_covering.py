"""All pairs, against counting by brute force."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.experiments.covering import all_pairs, lower_bound, uncovered


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=7))
def test_every_pair_of_values_is_in_some_row(sizes: list[int]) -> None:
    """Fails if a pair is forgotten or a value lies outside its factor: every pair is looked for in every row."""
    rows = all_pairs(sizes, tries=3)
    assert all(len(row) == len(sizes) and all(0 <= v < n for v, n in zip(row, sizes, strict=True)) for row in rows)
    for one, other in combinations(range(len(sizes)), 2):
        for v, w in product(range(sizes[one]), range(sizes[other])):
            assert any(row[one] == v and row[other] == w for row in rows)


@pytest.mark.parametrize(
    ("sizes", "known"),  # the smallest sizes there are: orthogonal arrays, and tables of covering arrays
    [([3, 3, 3, 2], 9), ([3] * 4, 9), ([2] * 3, 4), ([2] * 10, 6), ([5, 4], 20), ([4] * 5, 16), ([3] * 13, 15)],
)
def test_the_array_is_near_the_smallest_that_is_known(sizes: list[int], known: int) -> None:
    """Fails if rows are wasted: a greedy array should be within 60% of the smallest, and far below the grid."""
    rows = all_pairs(sizes)
    assert max(known, lower_bound(sizes)) <= len(rows) <= 1.6 * known
    assert len(set(rows)) == len(rows)


def test_the_studys_grid_needs_nine_runs_in_place_of_54() -> None:
    """Fails if ties are broken so that the lower bound of this small design is missed."""
    assert len(all_pairs([3, 3, 3, 2])) == 9


def test_what_is_uncovered_is_named_and_the_same_seed_gives_the_same_array() -> None:
    """Fails if `uncovered` counts nothing: an array less one row must miss something."""
    rows = all_pairs([3, 3, 2], seed=1)
    assert rows == all_pairs([3, 3, 2], seed=1)
    assert not uncovered(rows, [3, 3, 2])
    assert len(uncovered([(0, 0, 0)], [3, 3, 2])) == 9 + 6 + 6 - 3


def test_nothing_to_pair_is_an_error() -> None:
    """Fails if an empty factor is taken for one that is covered."""
    for sizes in ([], [3, 0]):
        with pytest.raises(ValueError, match="at least one value"):
            all_pairs(sizes)
