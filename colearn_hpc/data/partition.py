"""Who holds which examples: pure functions from labels to index arrays.

Every rule returns one sorted ``int64`` array per data center. The arrays are disjoint, together
they hold every index exactly once, and none is empty. The same arguments give the same arrays with
any NumPy version, because the draws come from ``RandomState``, whose stream is frozen by policy
(``default_rng`` makes no such promise, and a data center that re-packs after an upgrade must not get
its neighbour's examples).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from colearn_hpc.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

PARTITIONS = ("by-class", "by-group", "dirichlet", "iid")


def iid(n: int, centers: int, seed: int) -> list[NDArray[np.int64]]:
    """Equal, disjoint, random parts: the paper's ("split at random into 5 equal disjoint parts").

    Args:
        n: number of examples.
        centers: number of data centers, K.
        seed: of the permutation, 0 … 2³²−1.

    Returns:
        K sorted index arrays whose sizes differ by at most one.

    Raises:
        DataError: fewer examples than data centers, or an impossible seed.
    """
    _require_enough(n, centers, "examples")
    return _sorted_parts(np.array_split(_rng(seed).permutation(n), centers), n)


def dirichlet(labels: ArrayLike, centers: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Skewed parts: each class is shared out in proportions drawn from Dirichlet(α, …, α).

    Small α: each class sits in few data centers; large α: close to :func:`iid`. A data center that
    the draw left empty is given one example of the largest one, since a participant without data
    cannot take part. Source: Hsu, Qi, Brown, 2019 (arXiv:1909.06335), not in the paper.

    Args:
        labels: (N,) class of each example.
        centers: number of data centers, K.
        alpha: concentration, > 0.
        seed: of the draws, 0 … 2³²−1.

    Returns:
        K sorted index arrays.

    Raises:
        DataError: α ≤ 0, labels with more than one dimension, or fewer examples than data centers.
    """
    classes = _single_labels(labels, "dirichlet")
    _require_enough(classes.size, centers, "examples")
    if not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"dirichlet: alpha must be a positive number, found {alpha!r}; 0.5 is a common choice.")
    rng = _rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(centers)]
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        shares = rng.dirichlet(np.full(centers, alpha))
        # A tiny alpha underflows to 0/0 in the draw: its limit is "one center takes the class".
        if not np.isfinite(shares).all():
            shares = np.eye(centers)[rng.randint(centers)]
        # Rounded, not floored, borders: flooring would favour the last center in every class.
        borders = np.clip(np.rint(np.cumsum(shares)[:-1] * members.size), 0, members.size).astype(np.int64)
        for part, piece in zip(parts, np.split(members, borders), strict=True):
            part.append(piece)
    return _sorted_parts(_fill_empty([np.concatenate(part) for part in parts], rng), classes.size)


def by_class(labels: ArrayLike, centers: int, seed: int) -> list[NDArray[np.int64]]:
    """The hardest skew: every class sits in exactly one data center.

    The classes present are shuffled and dealt in turn, so the number of classes per data center
    differs by at most one.

    Args:
        labels: (N,) class of each example.
        centers: number of data centers, K.
        seed: of the shuffle, 0 … 2³²−1.

    Returns:
        K sorted index arrays.

    Raises:
        DataError: labels with more than one dimension, or fewer classes than data centers.
    """
    classes = _single_labels(labels, "by-class")
    present = np.unique(classes)
    _require_enough(present.size, centers, "classes")
    dealt = _rng(seed).permutation(present)
    return _sorted_parts([np.flatnonzero(np.isin(classes, dealt[k::centers])) for k in range(centers)], classes.size)


def by_group(groups: Sequence[str], names: Sequence[str], seed: int) -> list[NDArray[np.int64]]:
    """Data that come from somebody: all examples of a speaker, a patient or a hospital sit in one data center.

    A group that is called like a data center is that data center's own. The others are shuffled and dealt, each to the
    first of those that have the fewest groups. The field calls this the natural partition (LEAF, Caldas et al., 2018,
    arXiv:1812.01097); it is not in the paper.

    Args:
        groups: N names, the group of each example.
        names: of the K data centers.
        seed: of the shuffle, 0 … 2³²−1.

    Returns:
        K sorted index arrays.

    Raises:
        DataError: fewer groups than data centers.
    """
    present, group_of = np.unique(list(groups), return_inverse=True)
    _require_enough(present.size, len(names), "groups")
    place = {name: k for k, name in enumerate(names)}
    center_of = np.array([place.get(str(group), -1) for group in present])
    for group in _rng(seed).permutation(np.flatnonzero(center_of < 0)):
        held = np.bincount(center_of[center_of >= 0], minlength=len(names))
        center_of[group] = int(np.argmin(held))
    return _sorted_parts([np.flatnonzero(center_of[group_of] == k) for k in range(len(names))], group_of.size)


def held_out(labels: ArrayLike, fraction: float) -> NDArray[np.bool_]:
    """A share of each class, for test. It follows no seed of the user's, so that results share one test set.

    Args:
        labels: (N,) classes: the share is taken of each; (N, L) for several labels an example: of all.
        fraction: in [0, 1); of n examples round(fraction · n) are chosen.

    Returns:
        (N,) true where an example is held out.
    """
    classes = np.asarray(labels)
    groups = [np.arange(len(classes))]
    if classes.ndim == 1:
        groups = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    rng = _rng(0)
    chosen = np.zeros(len(classes), dtype=np.bool_)
    for members in groups:
        chosen[rng.permutation(members)[: round(fraction * members.size)]] = True
    return chosen


def partition(
    rule: str,
    labels: ArrayLike,
    names: Sequence[str],
    seed: int,
    alpha: float | None = None,
    groups: Sequence[str] | None = None,
) -> list[NDArray[np.int64]]:
    """Partition by the name that the command line uses.

    Args:
        rule: one of :data:`PARTITIONS`.
        labels: (N,) classes, or (N, L) for several labels an example (``iid`` and ``by-group`` only).
        names: of the K data centers.
        seed: 0 … 2³²−1.
        alpha: for ``dirichlet``.
        groups: N names, for ``by-group``.

    Raises:
        DataError: an unknown rule, or the rule cannot be followed.
    """
    centers = len(names)
    if rule == "iid":
        return iid(len(np.asarray(labels)), centers, seed)
    if rule == "dirichlet":
        if alpha is None:
            raise DataError("partition dirichlet: alpha is not set; 0.5 is a common choice.")
        return dirichlet(labels, centers, alpha, seed)
    if rule == "by-class":
        return by_class(labels, centers, seed)
    if rule == "by-group":
        if groups is None:
            raise DataError(
                "partition by-group: nothing tells which examples belong together; set --group-list FILE, or "
                "--group-by where the source has it."
            )
        return by_group(groups, names, seed)
    raise DataError(f"partition: {rule!r} is not known; choose one of {', '.join(PARTITIONS)}.")


def _rng(seed: int) -> np.random.RandomState:
    if not 0 <= seed < 2**32:
        raise DataError(f"seed: {seed} is out of range; choose a number from 0 to {2**32 - 1}.")
    return np.random.RandomState(seed)


def _require_enough(found: int, centers: int, noun: str) -> None:
    if centers < 1:
        raise DataError(f"centers: {centers} was set; at least one data center is needed.")
    if found < centers:
        raise DataError(
            f"centers: {centers} was set, but there are only {found} {noun}, so a data center would be empty; "
            f"use at most {found} data centers or another partition."
        )


def _single_labels(labels: ArrayLike, rule: str) -> NDArray[np.int64]:
    classes = np.asarray(labels)
    if classes.ndim != 1:
        raise DataError(
            f"partition {rule}: needs one class per example, found labels of shape {classes.shape}; use iid or "
            "by-group."
        )
    return classes


def _fill_empty(parts: list[NDArray[np.int64]], rng: np.random.RandomState) -> list[NDArray[np.int64]]:
    for k, part in enumerate(parts):
        if part.size == 0:
            donor = int(np.argmax([p.size for p in parts]))
            position = rng.randint(parts[donor].size)
            parts[k] = parts[donor][position : position + 1]
            parts[donor] = np.delete(parts[donor], position)
    return parts


def _sorted_parts(parts: list[NDArray[np.int64]], n: int) -> list[NDArray[np.int64]]:
    result = [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]
    # Conservation: an example lost or doubled here would never be noticed later.
    assert np.array_equal(np.sort(np.concatenate(result)), np.arange(n)), "partition is not complete and disjoint"
    assert all(part.size for part in result), "a data center is empty"
    return result
