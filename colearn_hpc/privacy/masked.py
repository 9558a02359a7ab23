"""Whole numbers under masks, as an encoding: what leaves a site looks random, and sums are those of bare numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor

from colearn_hpc.algorithm.encoding import Ground, Slices, WholeNumbers, WholeSlices
from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.masks import Masks, Whole


def _nothing(stop: int | None) -> None:
    """Nothing has to be on disk."""


@dataclass(frozen=True)
class MaskedNumbers(WholeNumbers):
    """:class:`WholeNumbers` that nobody but their site sees.

    Attributes:
        masks: of this site, for this vector; None: it gives nothing.
        kept: waits until so many of the numbers are on disk (None: all), for they must be before they are sent.
    """

    masks: Masks | None = None
    kept: Callable[[int | None], object] = _nothing

    def again(self) -> None:
        """The very same numbers go out under the very same masks: nobody sees anything new."""
        if self.masks is not None:
            self.masks.again()

    def begin(self, ground: Ground) -> tuple[Slices, Slices]:
        return MaskedSlices(self, ground, True), MaskedSlices(self, ground, False)


class MaskedSlices(WholeSlices):
    """:class:`Slices` of masked numbers."""

    copies = True

    def __init__(self, masked: MaskedNumbers, ground: Ground, parameters: bool) -> None:
        super().__init__(masked, ground, parameters)
        self._masks, self._kept, self._start = masked.masks, masked.kept, masked.start

    def write(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        """Raises PrivacyError where this site has nothing to send any more, or the disk does not take it."""
        if self._masks is None:
            raise PrivacyError("this data center has gone on past this sum, and sends nothing for it any more")
        self._kept(self._start + place.stop)
        message = room[: len(values)].copy_(values)
        self._masks.add(unsigned(message), self._start + place.start)
        return message

    def mean(self, rows: Sequence[Tensor], mine: int, place: slice, room: Tensor) -> Tensor:
        if mine >= 0:  # the own row's masks are missing in the sum as any other's would be
            own = self.write(rows[mine], place, room)
            rows = [own if index == mine else row for index, row in enumerate(rows)]
        return super().mean(rows, mine, place, room)


def unsigned(numbers: Tensor) -> Whole:
    """The same memory as a NumPy vector without signs; sums wrap around alike."""
    return cast("Whole", numbers.numpy().view(np.dtype(f"<u{numbers.element_size()}")))
