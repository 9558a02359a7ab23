"""A mean that stands still: who is awaited, and when to give up.

A link that is cut is mended by TCP when it is back soon; if it is not, MPI itself may wait for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from colearn_hpc.between import Idle
from colearn_hpc.errors import RoundTimeoutError
from colearn_hpc.protocol import pacing

log = logging.getLogger("colearn_hpc")


def stall_watch(names: Sequence[str], timeout: float | None) -> Idle:
    """What to do while the mean does not move, for :meth:`~colearn_hpc.between.UnderWay.finish`.

    Args:
        names: of the data centers that take part.
        timeout: the round's, in seconds; None: ``pacing.STALL``.
    """
    limit = max(pacing.GRACE, min(pacing.STALL, timeout or pacing.STALL))
    said = 0.0

    def watch(waited: float, awaited: Callable[[], set[int]]) -> None:
        nonlocal said
        if waited < said:
            said = 0.0  # it has moved since
        if waited < min(limit, said + pacing.LATER_REPORTS if said else pacing.FIRST_REPORT):
            return
        missing = ", ".join(names[k] for k in sorted(awaited()))
        if not missing:
            return  # it has just come
        what = f"the mean stands still: nothing was exchanged with {missing} for {waited:.0f} s"
        if waited >= limit:
            raise RoundTimeoutError(f"{what}; is the network between the data centers up?")
        said = waited
        log.warning("%s", what)

    return watch
