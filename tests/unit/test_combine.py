"""Ways of combining rows: eq. 2 to the bit, robust ones against NumPy and against poison."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc.algorithm.combine import Median, TrimmedMean, WeightedMean
from colearn_hpc.algorithm.slice_sums import SliceSums

ROBUST = [TrimmedMean(1), TrimmedMean(2), Median()]


def rows_of(count, size=101, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn((count, size), generator=generator, dtype=dtype))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=6), st.integers(0, 99))
def test_the_mean_has_the_bits_of_slice_sums_whatever_the_slices(weights, seed):
    rows = rows_of(len(weights), seed=seed)
    expected = SliceSums(101).mean(rows, weights, torch.empty(101))
    combine, found = WeightedMean(), torch.empty(101)
    for start, stop in ((0, 3), (3, 80), (80, 101)):
        target = found[start:stop]
        assert combine.combine([row[start:stop] for row in rows], weights, target) is target
    assert torch.equal(found, expected)
    assert combine == WeightedMean() and repr(combine) == "WeightedMean()"


@pytest.mark.parametrize("count", [5, 6, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_robust_means_are_numpys(count, dtype):
    rows = rows_of(count, dtype=dtype)
    table = np.sort(torch.stack(rows).double().numpy(), axis=0)
    for combine, expected in (
        (Median(), np.median(table, axis=0)),
        (TrimmedMean(1), table[1:-1].mean(0)),
        (TrimmedMean(2), table[2:-2].mean(0)),
    ):
        found = combine.combine(rows, [1.0] * count, torch.empty(101, dtype=dtype))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("combine", ROBUST)
@pytest.mark.parametrize("poison", [1e30, -1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_poisoned_row_moves_the_mean_and_no_robust_one(combine, poison, place):
    rows = rows_of(5)
    honest = torch.stack(rows[:place] + rows[place + 1 :])
    rows[place] = torch.full((101,), poison)
    found = combine.combine(rows, [2.0] * 5, torch.empty(101))
    assert (found >= honest.amin(0)).all() and (found <= honest.amax(0)).all()
    mean = WeightedMean().combine(rows, [2.0] * 5, torch.empty(101))
    assert not (mean.abs() < 100).any()


@pytest.mark.parametrize("combine", ROBUST)
def test_two_of_five_that_collude(combine):
    """Two withstand it: the median and a trim of two. A trim of one does not, as it says."""
    rows = rows_of(3) + [torch.full((101,), 1e6)] * 2
    found = combine.combine(rows, [1.0] * 5, torch.empty(101))
    assert bool((found < 10).all()) == (combine != TrimmedMean(1))


@pytest.mark.parametrize("combine", ROBUST)
def test_slices_and_overwriting_change_no_bit(combine):
    rows = rows_of(7)
    whole = combine.combine(rows, [1.0] * 7, torch.empty(101))
    parts = [
        combine.combine([row[s] for row in rows], [1.0] * 7, torch.empty(101)[s]) for s in (slice(40), slice(40, None))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert combine.combine(rows, [1.0] * 7, rows[3]) is rows[3] and torch.equal(rows[3], whole)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: TrimmedMean(0), "trim must be .* found 0"),
        (lambda: TrimmedMean(2).combine(rows_of(4), [1.0] * 4, torch.empty(101)), "at least 5 data centers, found 4"),
        (lambda: Median().combine(rows_of(2), [1.0] * 2, torch.empty(101)), "at least 3 data centers, found 2"),
        (lambda: Median().combine(rows_of(3), [1, 2, 1], torch.empty(101)), 'weighting="uniform"'),
        (lambda: Median().combine([], [], torch.empty(101)), "no participants"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act()
