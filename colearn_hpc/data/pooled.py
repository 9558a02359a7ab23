"""Several shards as one: what vanilla-learning trains on, where one data center holds all data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from colearn_hpc.data.samplers import IndexBatch
from colearn_hpc.data.shard_info import difference
from colearn_hpc.data.shards import ShardDataset, ShardInfo
from colearn_hpc.errors import DataError


class PooledShards(Dataset):
    """The examples of several shards, one shard after the other; fetches whole batches like a single one.

    Args:
        shards: at least one; whose numbers mean the same (:attr:`ShardInfo.meaning`).

    Attributes:
        info: the first shard's description (mean and std included) with the number of all examples.

    Raises:
        DataError: shards of different data sets.
    """

    def __init__(self, shards: Sequence[ShardDataset]) -> None:
        self.shards = list(shards)
        self.info = pooled_info([shard.info for shard in self.shards])
        self._ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        """Number of examples."""
        return int(self._ends[-1])

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """One example, or a whole batch in the order asked for; see :meth:`ShardDataset.__getitem__`."""
        if isinstance(index, int | np.integer):
            x, y = self[[int(index)]]
            return x[0], y[0]
        positions = np.asarray(index, dtype=np.int64).reshape(-1)
        n = len(self)
        if positions.size and (positions.min() < -n or positions.max() >= n):
            raise IndexError(f"{self.info.path} and {len(self.shards) - 1} more: no example {list(index)}; {n} in all")
        positions = np.where(positions < 0, positions + n, positions)
        homes = np.searchsorted(self._ends, positions, side="right")
        parts = []
        for home in np.unique(homes):
            rows = np.flatnonzero(homes == home)
            start = 0 if home == 0 else int(self._ends[home - 1])
            batch = IndexBatch((positions[rows] - start).tolist(), getattr(index, "epoch", 0))
            parts.append((torch.from_numpy(rows), *self.shards[home][batch]))
        if not parts:
            return self.shards[0][[]]
        rows_of_all = torch.cat([rows for rows, _, _ in parts])
        order = torch.argsort(rows_of_all)
        return torch.cat([x for _, x, _ in parts])[order], torch.cat([y for _, _, y in parts])[order]


def pooled(shards: Sequence[ShardDataset]) -> ShardDataset | PooledShards:
    """One shard as it is, several as one data set."""
    return shards[0] if len(shards) == 1 else PooledShards(shards)


def pooled_info(infos: Sequence[ShardInfo]) -> ShardInfo:
    """The description of several shards together.

    Raises:
        DataError: no shard, or shards that do not belong together.
    """
    if not infos:
        raise DataError("data.train: an empty list of shards; name at least one.")
    for info in infos[1:]:
        require_alike(infos[0], info)
    return infos[0] if len(infos) == 1 else replace(infos[0], examples=sum(info.examples for info in infos))


def require_alike(train: ShardInfo, other: ShardInfo) -> None:
    """Raise a DataError unless the numbers of two shards mean the same."""
    if found := difference(train.meaning, other.meaning):
        name, ours, theirs = found
        raise DataError(
            f"{other.path}: {name} is {theirs}, but {train.path} has {ours}; use shards of one data set (one run of "
            "`colearn-hpc data`, or several with the same --classes and --vocabulary)."
        )
