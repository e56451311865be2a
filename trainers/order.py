"""In which order examples are seen: a pure function of the seed and the number of the batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from .randomness import generator


class Order:
    """Batches of examples that may be stacked, shuffled anew each epoch.

    In an epoch every example comes ``repeats`` times. A batch holds one bucket only; the last one of a bucket is
    filled up with a second shuffle of the same bucket, so that every batch has the size that was asked for.

    Args:
        buckets: of each example, what it must share with the others of its batch (the latents' shape).
        repeats: of each example, at least 1.
        batch_size: B.
        seed: the run's.
    """

    def __init__(self, buckets: Sequence[Hashable], repeats: Sequence[int], batch_size: int, seed: int) -> None:
        members: dict[Hashable, list[int]] = {}
        for index, (bucket, times) in enumerate(zip(buckets, repeats, strict=True)):
            members.setdefault(bucket, []).extend([index] * times)
        self._members = list(members.values())
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []
        self.batches_per_epoch = sum(-(-len(bucket) // batch_size) for bucket in self._members)

    def batch(self, number: int) -> list[int]:
        """The examples of batch ``number``, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = generator(self._seed, "order", epoch)
        batches: list[list[int]] = []
        for bucket in self._members:
            wanted = -(-len(bucket) // self._batch_size) * self._batch_size
            queue: list[int] = []
            while len(queue) < wanted:
                queue += [bucket[place] for place in torch.randperm(len(bucket), generator=chance).tolist()]
            batches += [queue[start : start + self._batch_size] for start in range(0, wanted, self._batch_size)]
        return [batches[place] for place in torch.randperm(len(batches), generator=chance).tolist()]
