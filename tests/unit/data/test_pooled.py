"""Several shards as one data set, against the same examples concatenated by hand."""

import pytest
import torch

from colearn_hpc.data.datamodule import ShardDataModule
from colearn_hpc.data.pooled import PooledShards
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.errors import DataError


@pytest.fixture
def shards(make_shard):
    return [ShardDataset(make_shard(f"dc{k}.h5", n=5 + k, seed=k)) for k in range(3)]


def test_holds_every_example_once_in_order(shards):
    pooled = PooledShards(shards)
    whole = [shard[list(range(len(shard)))] for shard in shards]
    x, y = pooled[list(range(len(pooled)))]
    assert len(pooled) == pooled.info.examples == 5 + 6 + 7
    assert torch.equal(x, torch.cat([part for part, _ in whole]))
    assert torch.equal(y, torch.cat([part for _, part in whole]))


def test_a_batch_comes_in_the_order_asked_for(shards):
    pooled = PooledShards(shards)
    order = [17, 0, 5, 4, 11, 10, 5, -1]
    x, y = pooled[order]
    assert torch.equal(x, torch.stack([pooled[i][0] for i in order]))
    assert torch.equal(y, torch.stack([pooled[i][1] for i in order]))


def test_outside_and_empty(shards):
    pooled = PooledShards(shards)
    with pytest.raises(IndexError, match="no example"):
        pooled[[18]]
    x, y = pooled[[]]
    assert len(x) == len(y) == 0


def test_the_module_takes_a_list_and_shuffles_over_all(make_shard):
    paths = [str(make_shard(f"dc{k}.h5", n=4, seed=k)) for k in range(3)]
    module = ShardDataModule(paths, batch_size=5)
    assert module.train_examples == 12
    batches = list(module.train_dataloader())
    assert [len(y) for _, y in batches] == [5, 5, 2]
    single = torch.cat([ShardDataset(path)[list(range(4))][0] for path in paths])
    seen = torch.cat([x for x, _ in batches])
    assert sorted(map(str, seen.tolist())) == sorted(map(str, single.tolist()))


def test_shards_of_different_data_sets_are_refused(make_shard):
    paths = [str(make_shard("dc0.h5", classes=3)), str(make_shard("dc1.h5", classes=4))]
    with pytest.raises(DataError, match="classes is"):
        _ = ShardDataModule(paths).info
    with pytest.raises(DataError, match="empty list"):
        _ = ShardDataModule([]).info
