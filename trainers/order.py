"""In which order examples are seen: a pure function of the seed and the number of the batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence

import torch

from .randomness import generator


class Order:
    """Batches of examples that may be stacked, shuffled anew each epoch.

    In an epoch every example comes ``repeats`` times. A batch holds one bucket only; the last one of a bucket is
    filled up with a second shuffle of the same bucket, so that every batch has the size that was asked for.

    With ``subjects``, each subject comes as often as the one with the most pictures: its pictures come several times,
    and what is left over falls to others of them in the next epoch.

    Args:
        buckets: of each example, what it must share with the others of its batch (the latents' shape).
        repeats: of each example, at least 1.
        batch_size: B.
        seed: the run's.
        subjects: of each example, whose it is; None: as many as there are.
    """

    def __init__(
        self,
        buckets: Sequence[Hashable],
        repeats: Sequence[int],
        batch_size: int,
        seed: int,
        subjects: Sequence[int] | None = None,
    ) -> None:
        self._buckets = list(buckets)
        of_subject: dict[int, list[int]] = {}
        for index, times in enumerate(repeats):
            of_subject.setdefault(subjects[index] if subjects is not None else 0, []).extend([index] * times)
        self._subjects = list(of_subject.values())
        self._wanted = max((len(indices) for indices in self._subjects), default=0)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []
        self._starts = [0]  # number of each epoch's first batch, as far as known
        self.batches_per_epoch = self._count(0)
        self._alike = all(self._wanted % len(indices) == 0 for indices in self._subjects)

    def batch(self, number: int) -> list[int]:
        """The examples of batch ``number``, counted from 0 over all epochs."""
        epoch, place = self._place(number)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _place(self, number: int) -> tuple[int, int]:
        """(epoch, place in it) of a batch. Where leftovers change buckets, epochs differ in length."""
        if self._alike:
            return divmod(number, self.batches_per_epoch)
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + self._count(len(self._starts) - 1))
        epoch = bisect_right(self._starts, number) - 1
        return epoch, number - self._starts[epoch]

    def _members(self, epoch: int) -> list[list[int]]:
        """The examples of an epoch, by bucket."""
        members: dict[Hashable, list[int]] = {}
        for indices in self._subjects:
            times, more = divmod(self._wanted, len(indices))
            extra = [indices[(epoch * more + place) % len(indices)] for place in range(more)]
            for index in indices * times + extra:
                members.setdefault(self._buckets[index], []).append(index)
        return list(members.values())

    def _count(self, epoch: int) -> int:
        return sum(-(-len(bucket) // self._batch_size) for bucket in self._members(epoch))

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = generator(self._seed, "order", epoch)
        batches: list[list[int]] = []
        for bucket in self._members(epoch):
            wanted = -(-len(bucket) // self._batch_size) * self._batch_size
            queue: list[int] = []
            while len(queue) < wanted:
                queue += [bucket[place] for place in torch.randperm(len(bucket), generator=chance).tolist()]
            batches += [queue[start : start + self._batch_size] for start in range(0, wanted, self._batch_size)]
        return [batches[place] for place in torch.randperm(len(batches), generator=chance).tolist()]
