"""Batches: equally many on all ranks; training order from (seed, epoch) alone; evaluation without repeats."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler

from colearn_hpc.data.samplers import EvalBatchSampler, IndexBatch, TrainBatchSampler
from colearn_hpc.errors import DataError


def ranks(sampler, n, batch_size, count, **options):
    return [sampler(range(n), batch_size, count, rank, **options) for rank in range(count)]


@given(n=st.integers(1, 200), batch_size=st.integers(1, 40), count=st.integers(1, 7), epoch=st.integers(0, 1000))
def test_training_covers_all_with_equal_batches_on_all_ranks(n, batch_size, count, epoch):
    per_rank = []
    for sampler in ranks(TrainBatchSampler, n, batch_size, count):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(batch.epoch == epoch for batch in batches)
        per_rank.append(batches)
    # The same number of examples in each step, too: DDP averages over ranks without weights.
    assert len({tuple(len(batch) for batch in batches) for batches in per_rank}) == 1
    seen = [index for batches in per_rank for batch in batches for index in batch]
    assert set(seen) == set(range(n))
    assert len(seen) - n < count


@given(n=st.integers(1, 200), batch_size=st.integers(1, 40), count=st.integers(1, 7))
def test_dropping_the_rest_leaves_only_full_batches_without_repeats(n, batch_size, count):
    if n < batch_size * count:
        with pytest.raises(DataError, match="drop_last"):
            TrainBatchSampler(range(n), batch_size, count, 0, drop_last=True)
        return
    seen = [b for sampler in ranks(TrainBatchSampler, n, batch_size, count, drop_last=True) for b in sampler]
    assert {len(batch) for batch in seen} == {batch_size}
    flat = [index for batch in seen for index in batch]
    assert len(flat) == len(set(flat)) > n - batch_size * count


@given(n=st.integers(1, 300), batch_size=st.integers(1, 40), count=st.integers(1, 7))
def test_evaluation_takes_each_example_once_with_equal_batch_counts(n, batch_size, count):
    if n < count:
        with pytest.raises(DataError, match="fewer ranks"):
            EvalBatchSampler(range(n), batch_size, count, 0)
        return
    per_rank = [list(sampler) for sampler in ranks(EvalBatchSampler, n, batch_size, count)]
    assert len({len(batches) for batches in per_rank}) == 1
    assert sorted(i for batches in per_rank for batch in batches for i in batch) == list(range(n))
    sizes = [len(batch) for batches in per_rank for batch in batches]
    assert min(sizes) >= 1 and max(sizes) <= max(batch_size, 2)
    assert len(per_rank[0]) == len(EvalBatchSampler(range(n), batch_size, count, 0))


def order(seed, epoch, n=50):
    sampler = TrainBatchSampler(range(n), 8, 1, 0, seed)
    sampler.set_epoch(epoch)
    return [index for batch in sampler for index in batch]


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    assert order(0, 5) == order(0, 5)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    # DistributedSampler adds the two, so that trial 1 replays trial 0 one epoch later; ours must not.
    assert all(orders[i] != orders[j] for i in range(9) for j in range(i))


def test_lightning_sees_distributed_samplers():
    assert issubclass(TrainBatchSampler, DistributedSampler) and issubclass(EvalBatchSampler, DistributedSampler)


def test_the_epoch_travels_with_the_batch():
    copy = pickle.loads(pickle.dumps(IndexBatch([3, 1], 7)))
    assert (copy, copy.epoch) == ([3, 1], 7)


@pytest.mark.parametrize(("batch_size", "seed"), [(0, 0), (-3, 0), (1, -1), (1, 2**32)])
def test_impossible_settings(batch_size, seed):
    with pytest.raises(DataError):
        TrainBatchSampler(range(5), batch_size, 1, 0, seed)
