"""Partitions are disjoint, complete, never empty, reproducible; the paper's is equal."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc.data.partition import PARTITIONS, by_class, by_group, dirichlet, iid, partition
from colearn_hpc.errors import DataError

seeds = st.integers(0, 2**32 - 1)


def assert_partition(parts, n, centers):
    assert len(parts) == centers
    assert all(part.dtype == np.int64 and part.size > 0 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))


@given(centers=st.integers(1, 12), extra=st.integers(0, 100), seed=seeds)
def test_iid_is_equal_disjoint_and_complete(centers, extra, seed):
    parts = iid(centers + extra, centers, seed)
    assert_partition(parts, centers + extra, centers)
    sizes = [part.size for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 5), min_size=8, max_size=80),
    centers=st.integers(1, 8),
    alpha=st.floats(1e-4, 1e4),
    seed=seeds,
)
def test_dirichlet_is_disjoint_complete_and_never_empty(labels, centers, alpha, seed):
    assert_partition(dirichlet(labels, centers, alpha, seed), len(labels), centers)


@given(labels=st.lists(st.integers(0, 30), min_size=1, max_size=80), seed=seeds, data=st.data())
def test_by_class_keeps_every_class_in_one_center(labels, seed, data):
    present = len(set(labels))
    centers = data.draw(st.integers(1, present))
    parts = by_class(labels, centers, seed)
    assert_partition(parts, len(labels), centers)
    classes = [set(np.asarray(labels)[part].tolist()) for part in parts]
    assert sum(len(held) for held in classes) == present
    assert max(map(len, classes)) - min(map(len, classes)) <= 1


@given(groups=st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=80), seed=seeds, data=st.data())
def test_by_group_keeps_every_group_in_one_center(groups, seed, data):
    present = set(groups)
    names = data.draw(st.lists(st.sampled_from("abcdefxyz"), min_size=1, max_size=min(len(present), 9), unique=True))
    parts = by_group(groups, names, seed)
    assert_partition(parts, len(groups), len(names))
    held = [{groups[i] for i in part} for part in parts]
    assert sum(len(own) for own in held) == len(present)
    assert max(map(len, held)) - min(map(len, held)) <= 1
    assert all(name in own for name, own in zip(names, held, strict=True) if name in present)


def test_dirichlet_skew_grows_as_alpha_falls():
    labels = np.repeat(np.arange(10), 500)

    def largest_share(alpha):
        counts = np.array([np.bincount(labels[p], minlength=10) for p in dirichlet(labels, 5, alpha, 0)])
        return (counts.max(axis=0) / counts.sum(axis=0)).mean()

    assert largest_share(0.05) > 0.75 > 0.3 > largest_share(100.0)


def test_the_seed_decides():
    labels = np.arange(100) % 7
    for rule in PARTITIONS:
        first, again, other = (partition(rule, labels, "xyz", seed, 1.0, labels.astype(str)) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_draws_are_those_of_every_numpy_version():
    """A re-pack after an upgrade must give each data center the same examples: digests taken once with NumPy 2.4."""
    labels = np.arange(1000) % 10

    def digest(parts):
        return hashlib.sha256(b"|".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()[:16]

    assert [part.tolist() for part in iid(10, 3, 0)] == [[2, 4, 8, 9], [1, 6, 7], [0, 3, 5]]
    assert digest(dirichlet(labels, 5, 0.5, 3)) == "4ef8a6641aaff171"
    assert digest(by_class(labels, 5, 3)) == "3d04438df3cd5f1d"
    assert digest(by_group([f"g{i}" for i in labels], "vwxyz", 3)) == "3d04438df3cd5f1d"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(4, 5, 0), "only 4 examples"),
        (lambda: iid(4, 0, 0), "at least one data center"),
        (lambda: iid(4, 2, -1), "seed"),
        (lambda: by_class([0, 1, 0], 3, 0), "only 2 classes"),
        (lambda: dirichlet([0, 1], 3, 1.0, 0), "only 2 examples"),
        (lambda: dirichlet([0, 1, 2], 3, 0.0, 0), "positive"),
        (lambda: dirichlet([0, 1, 2], 3, float("nan"), 0), "positive"),
        (lambda: dirichlet(np.zeros((4, 2)), 2, 1.0, 0), "one class per example"),
        (lambda: by_class(np.zeros((4, 2)), 2, 0), "one class per example"),
        (lambda: by_group("aab", "xyz", 0), "centers: 3 was set, but there are only 2 groups"),
        (lambda: partition("dirichlet", [0, 1], "x", 0), "alpha is not set"),
        (lambda: partition("by-group", [0, 1], "x", 0), "nothing tells which examples belong together"),
        (lambda: partition("uniform", [0, 1], "x", 0), "'uniform' is not known"),
    ],
)
def test_impossible_partitions_say_why(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_iid_takes_several_labels_per_example():
    assert_partition(partition("iid", np.zeros((9, 4)), "xy", 0), 9, 2)
    assert_partition(partition("by-group", np.zeros((9, 4)), "xy", 0, groups="abcabcabc"), 9, 2)
