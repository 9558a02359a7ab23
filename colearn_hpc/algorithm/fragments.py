"""Fragments: equation 2 for one part of the model at a time, so that the link is used evenly.

With P fragments and an interval H, each fragment is averaged once in H steps, and some fragment once in H / P steps. So
the bytes of a mean are spread over the interval. The outer step of a fragment is taken on that fragment alone.

Source: Douillard et al. 2025 (Streaming DiLoCo, arXiv 2501.18512), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from colearn_hpc.algorithm.shared_model import FlatEntry


@dataclass(frozen=True)
class Fragments:
    """When each fragment is due: fragment p after step t where (t - t_p) mod H = 0, with the offset t_p = ⌊p·H / P⌋.

    A fragment that is due for the first time after its offset has been trained for less than an interval. The paper
    counts optimizer steps; local epochs are counted alike. Its means arrive some steps later (overlap), and it deals
    out layers; here a fragment is one piece of the flat vector, see :func:`fragment_slices`.

    Args:
        count: P.
        interval: H, steps or local epochs between two means of one fragment.

    Raises:
        ValueError: ``count`` below 1, or ``interval`` below ``count``: then two fragments would be due at once.
    """

    count: int
    interval: int

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("interval", self.interval)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of fragments must be a whole number, at least 1; found {value!r}")
        if self.interval < self.count:
            raise ValueError(
                f"interval={self.interval} is below count={self.count}: two fragments would be due at once; use at "
                f"most {self.interval} fragments, or a longer interval"
            )

    def offset(self, fragment: int) -> int:
        """t_p."""
        return fragment * self.interval // self.count

    def due(self, done: int) -> int | None:
        """The fragment to be averaged when ``done`` steps (or local epochs) of the run are done; None: no one is.

        A run that ends is to average all the others once more, or they would be left where their last means were.
        """
        phase = done % self.interval
        fragment = -(-phase * self.count // self.interval)
        return fragment if done > 0 and fragment < self.count and self.offset(fragment) == phase else None


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
