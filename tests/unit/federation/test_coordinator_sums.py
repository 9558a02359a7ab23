"""The coordinator's mean has the bits of ``algorithm/slice_sums.py``, and what is measured those of an MPI world."""

import numpy as np
import pytest
import torch

from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.algorithm.slice_sums import SliceSums, Squares
from colearn_hpc.algorithm.slices import chunks, measure
from colearn_hpc.between import Vector
from colearn_hpc.federation.coordinator.sums import ChunkSums

WEIGHTS = [(1.0,), (1.0, 1.0), (1.0, 1.0, 1.0), (3.0, 1.0), (1437.0, 22.0, 90001.0), (float((1 << 29) - 1), 3.0, 1.0)]


def rows_of(count, size, dtype, seed):
    """Values over nine decades, with zeros of both signs and the largest numbers among them."""
    draw = np.random.default_rng(seed)
    rows = (draw.standard_normal((count, size)) * 10.0 ** draw.uniform(-6, 3, (count, size))).astype(dtype)
    rows[:, :4] = [0.0, -0.0, np.finfo(dtype).max / 4, np.finfo(dtype).tiny]
    return rows


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_same_bits_as_torch(weights, dtype):
    if dtype == "f8" and max(weights) > 1e5:
        pytest.skip("a float64 times such a weight is rounded, by a fused multiply-add another way")
    rows = rows_of(len(weights), 100_003, "f4", 7).astype(dtype)  # exact products, in float64 too
    ours = ChunkSums().mean(list(rows), weights)
    theirs = weighted_mean([torch.from_numpy(row) for row in rows], weights)
    assert ours.dtype == rows.dtype and ours.tobytes() == theirs.numpy().tobytes()


@pytest.mark.parametrize("centers", [1, 2, 3, 5])
def test_what_is_measured_over_slices_is_what_the_leaders_add_up(centers):
    """Each leader measures its own slices, and all add up in the order of the leaders."""
    size, parameters = 300_001, 250_007
    mean, previous, own = (torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in range(3))
    found, rest, distance = measure(mean, previous, Vector(own), parameters, centers)
    total, others, apart = Squares(), Squares(), 0.0
    for k in range(centers):
        sums, mine, theirs, d = SliceSums(1 << 15), Squares(), Squares(), 0.0
        for chunk in chunks(size, parameters, centers):
            place = chunk.place(k)
            if chunk.parameters:
                d += sums.distances([own[place]], mean[place])[0] if chunk.length(k) else 0.0
                mine += sums.squares(mean[place], previous[place])
            else:
                theirs += sums.squares(mean[place], None)
        total, others, apart = total + mine, others + theirs, apart + d
    assert (found, rest, distance) == (total, others, apart)
    assert distance == pytest.approx(float((own - mean)[:parameters].double().square().sum()), rel=1e-4)


def test_what_is_not_given_is_not_measured():
    mean = torch.ones(10)
    found, _, distance = measure(mean, None, None, 10, 2)
    assert found == Squares(after=10.0) and distance != distance
