"""Equations 2, 3 and 4 against literal tables and a float64 reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from colearn_hpc.algorithm import compiled
from colearn_hpc.algorithm.encoding import Ground, Plain
from colearn_hpc.algorithm.learning_rate import ConstantLR, CyclicalLR, EpochPosition, ExponentialLR
from colearn_hpc.algorithm.local_epochs import FixedEpochs, IncreasingEpochs, RoundOutcome
from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    first_non_finite,
    is_finite,
    relative_change,
    weighted_mean,
)
from colearn_hpc.algorithm.slice_sums import SliceSums


def position(epoch, local_epochs=5, done=0):
    return EpochPosition(round=0, epoch_in_round=epoch, local_epochs=local_epochs, epochs_done=done)


# --- equation 3 ---------------------------------------------------------------------------------------


def test_cyclical_rate_is_the_papers_table():
    """η = 0.01, r = 1/4, T = 5, j = 1 … 5, computed by hand: 0.01 · 4^(-j/5)."""
    rates = [0.01 * CyclicalLR().factor(position(e)) for e in range(5)]
    assert rates == pytest.approx([0.0075785828, 0.0057434918, 0.0043527528, 0.0032987698, 0.0025], rel=1e-8)


def test_switch_counts_from_zero():
    rates = [0.01 * CyclicalLR(first_j=0).factor(position(e)) for e in range(5)]
    assert rates == pytest.approx([0.01, 0.0075785828, 0.0057434918, 0.0043527528, 0.0032987698], rel=1e-8)


def test_cycle_restarts_and_does_not_care_for_the_run():
    assert CyclicalLR().factor(position(1, done=17)) == CyclicalLR().factor(position(1, done=0))


def test_exponential_rate_is_a_staircase_over_the_run():
    schedule = ExponentialLR()
    factors = [schedule.factor(position(0, done=done)) for done in range(5)]
    assert factors == pytest.approx([1, 1, 0.94, 0.94, 0.94**2])
    smooth = ExponentialLR(gamma=0.5, every=2, staircase=False)
    assert smooth.factor(position(3, done=3)) == pytest.approx(0.5**1.5)


def test_constant_rate():
    assert ConstantLR().factor(position(3)) == 1.0


@pytest.mark.parametrize("settings", [{"decay": 0}, {"decay": 1.1}, {"first_j": 2}])
def test_impossible_cycles(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CyclicalLR(**settings)


@pytest.mark.parametrize("settings", [{"gamma": 0}, {"gamma": 2}, {"every": 0}])
def test_impossible_decays(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ExponentialLR(**settings)


# --- equation 4 ---------------------------------------------------------------------------------------


def outcome(local_epochs, change):
    return RoundOutcome(round=0, local_epochs=local_epochs, relative_change=change, epochs_done=0, learning_rate=0.1)


@pytest.mark.parametrize(
    ("local_epochs", "change", "then"),
    [(5, 0.011, 5), (5, 0.01, 10), (5, 0.0, 10), (10, 0.009, 20), (20, math.inf, 20), (20, math.nan, 20)],
)
def test_increasing_epochs(local_epochs, change, then):
    assert IncreasingEpochs(initial=5, epsilon=0.01).next(outcome(local_epochs, change)) == then


def test_increasing_epochs_are_bounded():
    rule = IncreasingEpochs(initial=5, epsilon=0.01, maximum=12)
    assert [rule.first(), rule.next(outcome(5, 0)), rule.next(outcome(10, 0))] == [5, 10, 12]


def test_fixed_epochs_never_change():
    assert FixedEpochs(7).first() == FixedEpochs(7).next(outcome(7, 0.0)) == 7


@pytest.mark.parametrize(
    "settings", [{"initial": 0}, {"initial": 2.5}, {"initial": True}, {"initial": 5, "maximum": 4}]
)
def test_impossible_epochs(settings):
    with pytest.raises(ValueError, match="local_epochs"):
        IncreasingEpochs(**settings)


def test_negative_epsilon():
    with pytest.raises(ValueError, match="epsilon"):
        IncreasingEpochs(5, epsilon=-0.1)


# --- equation 2 and the norm --------------------------------------------------------------------------


def test_relative_change_on_ten_million_parameters():
    """float32 accumulation would be off in the fourth digit here; float64 agrees with NumPy's."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(10_000_000, generator=generator)
    new = old + 1e-3 * torch.randn(10_000_000, generator=generator)
    a, b = new.numpy().astype(np.float64), old.numpy().astype(np.float64)
    assert relative_change(new, old) == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-12)


def test_relative_change_at_the_edges():
    zero, one = torch.zeros(3), torch.ones(3)
    assert (relative_change(zero, zero), relative_change(one, zero), relative_change(one, one)) == (0, math.inf, 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31))
def test_mean_is_numpys(participants, size, seed):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((participants, size)) * 10.0 ** rng.integers(-20, 20)).astype(np.float32)
    weights = rng.integers(1, 1000, participants).astype(float)
    found = weighted_mean([torch.from_numpy(row) for row in rows], list(weights)).numpy()
    exact = (rows.astype(np.float64) * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(found, exact.astype(np.float32), rtol=1e-6, atol=float(np.abs(rows).max()) * 1e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9), st.integers(1, 9))
def test_mean_of_equals_is_the_value_to_the_bit(values, participants):
    row = torch.tensor(values)
    assert torch.equal(weighted_mean([row] * participants, [1.0] * participants), row)


def test_mean_may_overwrite_a_row():
    rows = [torch.ones(5), torch.full((5,), 3.0)]
    assert weighted_mean(rows, [1, 1], out=rows[0]) is rows[0] and rows[0].tolist() == [2.0] * 5


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, math.nan]])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        weighted_mean([torch.ones(2)] * 2, weights)


class Everything(nn.Module):
    """Trainable, tied, frozen, half, complex and scalar tensors, float and integer buffers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(1000), requires_grad=False)
        self.narrow = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.scalar = nn.Parameter(torch.tensor(4.0))
        self.phase = nn.Parameter(torch.tensor([1 + 2j]))
        self.norm = nn.BatchNorm1d(3)


def test_what_is_exchanged():
    model = FlatModel.of(Everything())
    names = [entry.name for entry in model.entries]
    assert names[:3] == ["narrow", "scalar", "phase"] and "tied.weight" not in names and "frozen" not in names
    assert names[-2:] == ["norm.running_mean", "norm.running_var"]
    # weight 9, two biases 3 each, narrow 2, scalar 1, phase 2 reals, BatchNorm weight and bias 6; then its two buffers
    assert (model.parameter_size, model.size) == (9 + 6 + 2 + 1 + 2 + 6, 26 + 6)
    assert sum(entry.length for entry in model.entries) == model.size


def test_pack_and_unpack_are_inverse():
    module = Everything()
    model = FlatModel.of(module)
    vector = torch.arange(model.size, dtype=torch.float32)
    model.unpack(vector)
    assert torch.equal(model.pack(), vector)
    assert module.phase.tolist() == [complex(vector[3], vector[4])]
    assert (module.frozen == 1).all() and int(module.norm.num_batches_tracked) == 0


def test_one_double_makes_the_vector_double():
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double()])
    assert FlatModel.of(module).pack().dtype == torch.float64


def test_wrong_length_is_refused():
    with pytest.raises(ValueError, match="packs into"):
        FlatModel.of(nn.Linear(2, 2)).unpack(torch.zeros(5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_is_found_and_named(value):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].bias[1] = value
    model = FlatModel.of(module)
    vector = model.pack()
    assert not is_finite(vector) and first_non_finite(vector, model) == "1.bias"
    assert is_finite(torch.tensor([3e38, 3e38])), "a finite vector whose sum overflows"


def test_distances_from_a_mean():
    rows = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]), torch.full((2,), 1e30)]
    assert SliceSums(2).distances(rows, torch.tensor([0.0, 1.0])) == pytest.approx([9 + 9, 0, 2e60])


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from([0, 1, 100_000]), dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99)
)
def test_distances_of_slices(n, dtype, seed):
    rows, mean = (
        torch.randn((3, n), generator=torch.Generator().manual_seed(seed), dtype=dtype),
        torch.ones(n, dtype=dtype),
    )
    exact = [float((row.double() - mean.double()).square().sum()) for row in rows]
    assert SliceSums(n + 1).distances(list(rows), mean) == pytest.approx(exact, rel=1e-4)


# --- sums in machine code -----------------------------------------------------------------------------


@pytest.fixture
def compiled_sums(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(compiled, "_sums", {})
    return compiled.prepare_sums


@pytest.mark.parametrize("n", [0, 1, 127, 128, 1024, 1025, 40_001])
@pytest.mark.parametrize("weights", [[1.0] * 5, [1.0] * 8, [3.0, 1.0], [9001.0, 8999.0, 7.0], [0.1, 1 / 3, 0.7]])
@pytest.mark.parametrize("size", [1e-42, 1.0, 1e38])
def test_compiled_sums_have_the_same_bits(n, weights, size, compiled_sums):
    """With weights that are no float32's numbers too, which go by torch: it adds their products unrounded."""
    rows = torch.randn((len(weights), n), generator=torch.Generator().manual_seed(n)).mul_(size).clamp_(-3e38, 3e38)
    if n > 1:
        rows[0, 0], rows[-1, 1], rows[0, -1] = math.inf, math.nan, -0.0
    plain = SliceSums(n + 1).mean(list(rows), weights, torch.empty(n))
    apart = SliceSums(n + 1).distances(list(rows[:, 2:]), plain[2:])
    compiled_sums(len(weights))
    assert compiled.sums(len(weights)), "not torch twice"
    fast = SliceSums(n + 1).mean(list(rows), weights, torch.empty(n))
    assert torch.equal(fast.view(torch.int32), plain.view(torch.int32))
    assert SliceSums(n + 1).distances(list(rows[:, 2:]), plain[2:]) == pytest.approx(apart, rel=1e-5)
    into = rows.clone()
    assert torch.equal(SliceSums(n + 1).mean(list(into), weights, into[1]).view(torch.int32), plain.view(torch.int32))


def test_compiled_sums_are_for_float32_on_the_processor(compiled_sums):
    compiled_sums(2)
    rows, sums = torch.randn((2, 50), dtype=torch.float64), SliceSums(50)
    mean = sums.mean(list(rows), [1.0, 1.0], torch.empty(50, dtype=torch.float64))
    assert torch.equal(mean, (rows[0] + rows[1]) / 2)
    assert sums.distances(list(rows), mean) == pytest.approx([float((row - mean).square().sum()) for row in rows])


def test_sums_for_which_numba_does_not_work_go_by_torch(compiled_sums, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_compile_sums", lambda rows: 1 / 0)
    compiled_sums(2)
    compiled_sums(2)
    assert compiled.sums(2) is None and caplog.text.count("sums go without numba") == 1
    rows = torch.ones((2, 3))
    assert torch.equal(SliceSums(3).mean(list(rows), [1.0, 1.0], torch.empty(3)), rows[0])


@pytest.mark.parametrize(("size", "prepared"), [(1000, []), (5000, [3])])
def test_small_vectors_do_not_wait_for_numba(monkeypatch, size, prepared):
    found = []
    monkeypatch.setattr(compiled, "SUMS_WORTH", 5000)
    monkeypatch.setattr(compiled, "prepare_sums", found.append)
    Plain().begin(Ground(torch.empty(size), None, [1.0] * 3, 10))
    assert sorted(set(found)) == prepared
