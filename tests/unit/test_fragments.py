"""Fragments: which is due when, where the flat vector is cut, and what is in each."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from colearn_hpc.algorithm.fragments import fragment_due, fragment_slices
from colearn_hpc.algorithm.shared_model import FlatEntry, FlatModel


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 5])
def test_due_is_the_papers_condition(count, steps):
    """Fragment p after step t where (t - t_p) mod H = 0, if a round has ``steps`` of H."""
    interval = count * steps
    offsets = [p * interval // count for p in range(count)]
    for i in range(3 * count):
        t = (i + 1) * steps
        assert [fragment_due(i, count)] == [p for p in range(count) if (t - offsets[p]) % interval == 0]


def entries_of(lengths, first=0):
    offsets = [first + sum(lengths[:i]) for i in range(len(lengths))]
    return [FlatEntry(str(i), offset, length) for i, (offset, length) in enumerate(zip(offsets, lengths, strict=True))]


def test_the_vector_is_cut_between_tensors():
    assert fragment_slices(entries_of([10, 10, 10, 10]), 2) == (slice(0, 20), slice(20, 40))
    assert fragment_slices(entries_of([100, 1, 1, 1]), 3) == (slice(0, 100), slice(100, 101), slice(101, 103))
    assert fragment_slices(entries_of([1, 1, 0, 100], first=7), 3) == (slice(7, 8), slice(8, 9), slice(9, 109))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.data())
def test_pieces_cover_the_vector_and_none_is_empty(lengths, data):
    filled = sum(length > 0 for length in lengths)
    if not filled:
        return
    count = data.draw(st.integers(1, filled))
    pieces = fragment_slices(entries_of(lengths), count)
    assert len(pieces) == count and pieces[0].start == 0 and pieces[-1].stop == sum(lengths)
    assert all(a.stop == b.start for a, b in pairwise(pieces))
    assert all(piece.start < piece.stop for piece in pieces)


def test_pieces_of_a_model_are_about_equal():
    model = FlatModel.of(nn.Sequential(*[nn.Linear(20, 20) for _ in range(8)]))
    lengths = [piece.stop - piece.start for piece in fragment_slices(model.entries, 4)]
    assert lengths == [model.size // 4] * 4


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fragment_slices(entries_of([3, 0]), 2), "2 fragments of a model with 1 tensors"),
        (lambda: fragment_slices(entries_of([3]), 0), "use 1 to 1"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act()
