"""What a data center has heard from the others since its last resume point, so that it can be told again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from colearn_hpc.errors import PeerError
from colearn_hpc.mpi.leaders import Outcome
from colearn_hpc.mpi.mean import Taken


@dataclass(frozen=True)
class Mean:
    """A mean that was taken.

    Attributes:
        taken: what is known about it.
        result: itself, shape (n,); the vector that was committed, not a copy.
        pending: what the codec still owes, shape (parameters,).
    """

    taken: Taken
    result: Tensor
    pending: Tensor | None


class Journal:
    """Outcomes of meetings and means, in order.

    After a restart from its last resume point, a data center comes to the same meetings again, without the others, who
    have long gone on. It is told what it was told before.

    Attributes:
        kept: whether a restart may want it; until then nothing is written down.
        gap: something was heard that cannot be told again.
    """

    def __init__(self) -> None:
        self.kept = False
        self.gap = False
        self._entries: list[tuple[str, Outcome | Mean]] = []
        self._replay: deque[tuple[str, Outcome | Mean]] = deque()

    @property
    def replaying(self) -> bool:
        """Whether the next meeting or mean is told from here."""
        return bool(self._replay)

    @property
    def whole(self) -> bool:
        """Whether all that was heard since the last resume point can be told again."""
        return self.kept and not self.gap

    @property
    def means(self) -> int:
        """How many means stand in it. The memory of the last but one is used again for the next."""
        return sum(isinstance(entry, Mean) for _, entry in self._entries)

    def note(self, purpose: str, entry: Outcome | Mean) -> None:
        """Write down what was heard."""
        if self.kept:
            self._entries.append((purpose, entry))

    def again(self, purpose: str) -> Outcome | Mean:
        """What was heard at ``purpose``, which must be next."""
        before, entry = self._replay.popleft()
        if before != purpose:
            raise PeerError(
                f"after its restart this data center came to `{purpose}` where it had come to `{before}` before; "
                "please report this"
            )
        return entry

    def clear(self) -> None:
        """A resume point was written: nothing before it will be asked for again."""
        self._entries.clear()
        self.gap = False

    def rewind(self, to_start: bool = True) -> None:
        """Begin to tell again; or, for another failure, stop it."""
        self._replay = deque(self._entries if to_start else ())
