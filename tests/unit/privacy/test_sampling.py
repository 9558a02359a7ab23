"""Poisson batches: every rank has its part of every batch, and an epoch can begin anywhere."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted
from torch.utils.data.distributed import DistributedSampler

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.sampling import PoissonBatches, Sampling, private_loader
from colearn_hpc.privacy.site_random import poisson_batch

KEY = bytes(range(32))
DATA = TensorDataset(torch.arange(100), torch.arange(100) * 2)


def sampler(ranks=1, rank=0, batch=10, done=0):
    return PoissonBatches(DATA, Sampling(100, batch), KEY, lambda: done, ranks, rank)


def test_numbers_of_an_epoch():
    assert Sampling(1437, 64).steps_per_epoch == 23
    assert Sampling(1437, 64).rate == 64 / 1437


def test_ranks_deal_out_one_batch():
    whole = [poisson_batch(KEY, step, 100, 0.1) for step in range(10)]
    parts = [list(sampler(3, rank)) for rank in range(3)]
    for step, batch in enumerate(whole):
        dealt = sorted(index for rank in range(3) for index in parts[rank][step] if len(batch) > rank)
        assert dealt == batch


def test_a_rank_without_a_record_gets_a_stand_in():
    """Ranks with fewer batches than others would be waited for, for ever."""
    ranks = [sampler(8, rank, batch=8) for rank in range(8)]
    batches = [list(rank) for rank in ranks]
    assert {len(one) for one in batches} == {13}
    last = ranks[7]
    assert last.stand_ins == {step for step in range(13) if len(poisson_batch(KEY, step, 100, 0.08)) < 8}
    assert last.stand_ins, "for this key some batch is smaller than the ranks are many"
    assert all(batches[7][step] == [0] for step in last.stand_ins)


def test_an_epoch_goes_on_where_it_stopped():
    whole = list(sampler(done=20))
    rest = sampler(done=24)
    rest.start_at(4)
    assert list(rest) == whole[4:]
    assert list(rest) == list(sampler(done=24)), "once"


def test_a_batch_knows_its_epoch():
    here = sampler()
    here.set_epoch(3)
    assert next(iter(here)).epoch == 3


def test_loader_of_single_records():
    loader = DataLoader(DATA, batch_size=10, shuffle=True, num_workers=2)
    private, drawn = private_loader(loader, KEY, lambda: 0, 1, 0)
    assert len(private) == len(loader) == len(drawn)
    for step, (x, y) in enumerate(private):
        assert x.tolist() == (poisson_batch(KEY, step, 100, 0.1) or [0])
        assert torch.equal(y, 2 * x)


def test_loader_of_whole_batches():
    class Whole(DistributedSampler):
        batch_size = 5

    loader = DataLoader(DATA, batch_size=None, sampler=Whole(DATA, 2, 1))
    private, drawn = private_loader(loader, KEY, lambda: 0, 2, 1)
    assert drawn.sampling == Sampling(100, 10)
    assert drawn.batch_size == 5
    batches = [poisson_batch(KEY, step, 100, 0.1)[1::2] or [0] for step in range(10)]
    assert [x.tolist() for x, _ in private] == batches


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Stream()), "needs one DataLoader over a data set of known length"),
        ([1, 2], "needs one DataLoader over a data set of known length, found list"),
        (DataLoader(DATA, sampler=Weighted([1.0] * 100, 100)), "draws by WeightedRandomSampler"),
        (DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 5, True)), "set batch_size instead"),
        (DataLoader(DATA, batch_size=200), "batch=200 .* is larger than the data, 100 examples"),
    ],
)
def test_what_cannot_be_drawn_privately(loader, message):
    with pytest.raises(ConfigurationError, match=message):
        private_loader(loader, KEY, lambda: 0, 1, 0)
