from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.trainers.order import Order
from likeness.trainers.randomness import derived_seed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(0, 2**32),
    st.integers(0, 5),
)
def test_each_epoch_shows_every_example(
    examples: list[tuple[int, int]], batch_size: int, seed: int, epoch: int
) -> None:
    """Fails if an epoch skips a repeat, mixes buckets, makes a short batch, or depends on what was asked before."""
    buckets, repeats = [bucket for bucket, _ in examples], [times for _, times in examples]
    order = Order(buckets, repeats, batch_size, seed)
    numbers = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
    batches = [order.batch(number) for number in numbers]
    seen = Counter(index for batch in batches for index in batch)
    assert all(seen[index] >= times for index, times in enumerate(repeats))
    assert all(len(batch) == batch_size and len({buckets[index] for index in batch}) == 1 for batch in batches)
    sizes = Counter()
    for bucket, times in examples:
        sizes[bucket] += times
    assert sum(seen.values()) == sum(-(-size // batch_size) * batch_size for size in sizes.values())
    again = Order(buckets, repeats, batch_size, seed)
    assert [again.batch(number) for number in reversed(numbers)] == batches[::-1]


def test_seeds_of_purposes_differ() -> None:
    """Fails if two purposes or steps share their random numbers."""
    seeds = {derived_seed(s, p, k) for s in range(5) for p in ("step", "order") for k in range(200)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, "a", 11) != derived_seed(11, "a", 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 2**32))
def test_balanced_subjects_are_seen_equally(counts: list[int], buckets: int, seed: int) -> None:
    """Fails if a subject of few pictures is seen less in an epoch, or the same pictures always make up the difference.

    Batches of one, so that none is filled up.
    """
    subjects = [subject for subject, count in enumerate(counts) for _ in range(count)]
    order = Order([n % buckets for n in range(len(subjects))], [1] * len(subjects), 1, seed, subjects)
    most, epochs = max(counts), math.lcm(*counts)
    for first in range(0, 3 * most * len(counts), most * len(counts)):
        seen = Counter(subjects[order.batch(number)[0]] for number in range(first, first + most * len(counts)))
        assert set(seen.values()) == {most} and len(seen) == len(counts)
    if epochs <= 60:
        each = Counter(order.batch(number)[0] for number in range(epochs * most * len(counts)))
        for subject in range(len(counts)):
            assert len({each[index] for index, whose in enumerate(subjects) if whose == subject}) == 1


def test_balanced_batches_do_not_depend_on_what_was_asked_before() -> None:
    """Fails if epochs of different lengths are counted wrong: a resumed run would see other pictures."""
    arguments = (["a", "b", "a", "b", "a"], [1, 2, 1, 1, 1], 2, 5, [0, 0, 0, 0, 1])
    forwards = [Order(*arguments).batch(number) for number in range(60)]
    order = Order(*arguments)
    assert [order.batch(number) for number in reversed(range(60))] == forwards[::-1]
