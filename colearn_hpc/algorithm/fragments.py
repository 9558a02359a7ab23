"""Fragments: equation 2 for one part of the model at a time, so that the link is used evenly.

With P fragments a round ends with the mean of one of them, and each has its mean once in P rounds. The outer step of a
fragment is taken on that fragment alone. In the paper's terms the rounds between two means of one fragment have H
steps together, so one round has H / P.

Source: Douillard et al. 2025 (Streaming DiLoCo, arXiv 2501.18512), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from colearn_hpc.algorithm.shared_model import FlatEntry


def fragment_due(round_index: int, count: int) -> int:
    """The fragment whose mean ends round ``round_index``, of ``count``.

    The paper averages fragment p after step t where (t - t_p) mod H = 0, with the offset t_p = ⌊p·H / P⌋. Rounds are
    the P equal parts of H, so fragment 1 is the first and fragment 0 the last. A fragment's first mean comes after its
    offset, so fragment 1 has then been trained for one round only.
    """
    return (round_index + 1) % count


def fragment_slices(entries: Sequence[FlatEntry], count: int) -> tuple[slice, ...]:
    """The flat vector in ``count`` pieces of about the same length, cut between tensors.

    The end of piece p is the end of a tensor that is closest to (p + 1)/count of the vector. No piece is empty.

    Args:
        entries: those of a :class:`~colearn_hpc.algorithm.shared_model.FlatModel` that are averaged in fragments, in
            order; its parameters, for example.
        count: P.

    Raises:
        ValueError: fewer tensors that are not empty than fragments.
    """
    ends = sorted({entry.offset + entry.length for entry in entries if entry.length})
    if not 1 <= count <= len(ends):
        raise ValueError(f"{count} fragments of a model with {len(ends)} tensors; use 1 to {len(ends)} fragments")
    first, cuts = min(entry.offset for entry in entries), [0]
    for fragment in range(1, count + 1):
        wanted = first + (ends[-1] - first) * fragment / count
        left = count - fragment  # tensors that the later fragments need
        cuts.append(min(range(cuts[-1] + 1, len(ends) - left + 1), key=lambda cut: abs(ends[cut - 1] - wanted)))
    places = [first, *(ends[cut - 1] for cut in cuts[1:])]
    return tuple(slice(start, stop) for start, stop in pairwise(places))
