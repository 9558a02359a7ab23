"""Which examples make up a batch, on one rank of one data center.

Both samplers yield whole batches (lists of indices) and are used as
``DataLoader(dataset, sampler=sampler, batch_size=None)``: the data set then fetches a batch in one
call. They are ``DistributedSampler``s, so Lightning leaves them alone and calls ``set_epoch``.

Every rank of a data center gets the same number of batches. This is not cosmetic: DDP synchronises
gradients in backward and buffers in forward, so a rank with one batch more waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from colearn_hpc.errors import DataError


class IndexBatch(list[int]):
    """The indices of one batch, and the epoch they belong to.

    The epoch travels with the indices because that is the one thing that reaches a worker process
    at the right time, persistent or not: random decoding is then a function of (seed, epoch, index)
    and a resumed run sees the same pixels.
    """

    def __init__(self, indices: Sized | list[int], epoch: int = 0) -> None:
        super().__init__(indices)  # type: ignore[arg-type]
        self.epoch = epoch

    def __reduce__(self) -> tuple[type[IndexBatch], tuple[list[int], int]]:
        return IndexBatch, (list(self), self.epoch)


class TrainBatchSampler(DistributedSampler):
    """Shuffled batches for training; the order is a function of (seed, epoch) alone.

    As in ``DistributedSampler``: one permutation of the data center's examples, filled up with its
    own beginning to a multiple of the ranks (or cut, with ``drop_last``), dealt in turn. Unlike it,
    the permutation comes from the pair (seed, epoch), not from their sum, so that trials with
    seeds 0, 1, 2 do not replay each other's epochs.

    Args:
        dataset: anything with a length.
        batch_size: examples per batch on this rank.
        num_replicas: ranks of this data center.
        rank: this rank in the data center.
        seed: 0 … 2³²−1, the same on all ranks of the data center.
        drop_last: leave out the examples that fill no whole batch on every rank.

    Raises:
        DataError: the arguments leave no batch.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, num_replicas: int, rank: int, seed: int = 0, drop_last: bool = False
    ) -> None:
        _check(batch_size, seed)
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self._start = 0
        self.batch_size = batch_size
        self.examples = _length(dataset)
        if drop_last:
            self.num_samples = self.examples // (num_replicas * batch_size) * batch_size
        else:
            self.num_samples = math.ceil(self.examples / num_replicas)
        self.total_size = self.num_samples * num_replicas
        if self.num_samples == 0:
            raise DataError(
                f"drop_last: {self.examples} training examples do not fill one batch of {batch_size} on each of "
                f"{num_replicas} ranks; use a smaller batch_size, fewer ranks, or drop_last: false."
            )

    def start_at(self, batch: int) -> None:
        """Let the next pass, once, begin with this batch: a resumed epoch need not read what it has trained."""
        self._start = batch

    def __iter__(self) -> Iterator[IndexBatch]:
        first, self._start = self._start * self.batch_size, 0
        order = np.random.RandomState([self.seed, self.epoch]).permutation(self.examples)
        share = np.resize(order, self.total_size)[self.rank :: self.num_replicas].tolist()
        for start in range(first, self.num_samples, self.batch_size):
            yield IndexBatch(share[start : start + self.batch_size], self.epoch)

    def __len__(self) -> int:
        """Batches per epoch on this (and every other) rank of the data center."""
        return math.ceil(self.num_samples / self.batch_size)


class EvalBatchSampler(DistributedSampler):
    """Every example exactly once over the ranks, and equally many batches on every rank.

    ``DistributedSampler`` would repeat examples to even out the ranks and so bend the metric. Here
    each rank's share (they differ by at most one example) is cut into the same number of nearly
    equal batches instead; nothing is repeated, nothing left out. With ``batch_size=1`` and
    ranks that do not divide the examples, some batches hold two.

    Args:
        dataset: anything with a length.
        batch_size: most examples per batch on this rank.
        num_replicas: ranks of this data center.
        rank: this rank in the data center.

    Raises:
        DataError: fewer examples than ranks.
    """

    def __init__(self, dataset: Dataset, batch_size: int, num_replicas: int, rank: int) -> None:
        _check(batch_size, 0)
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self.batch_size = batch_size
        self.examples = _length(dataset)
        if self.examples < num_replicas:
            raise DataError(
                f"evaluation: {self.examples} examples cannot be shared by {num_replicas} ranks without leaving one "
                "idle; use more examples or fewer ranks per data center."
            )
        largest_share = math.ceil(self.examples / num_replicas)
        self.batches = min(math.ceil(largest_share / batch_size), self.examples // num_replicas)

    def __iter__(self) -> Iterator[IndexBatch]:
        share = np.arange(self.rank, self.examples, self.num_replicas)
        for part in np.array_split(share, self.batches):
            yield IndexBatch(part.tolist(), self.epoch)

    def __len__(self) -> int:
        """Batches on this (and every other) rank of the data center."""
        return self.batches


def _length(dataset: Dataset) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _check(batch_size: int, seed: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size: {batch_size} was set; at least 1 is needed.")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed: {seed} is out of range; choose a number from 0 to {2**32 - 1}.")
