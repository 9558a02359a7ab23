"""What carries the words: :class:`Site` inside one data center, :class:`Meetings` between the data centers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol, TypeVar

from colearn_hpc.protocol.messages import Brought, Outcome, Topic

T = TypeVar("T")


class Site(Protocol):
    """Inside one data center. All methods but those that say so are collective over its ranks.

    Attributes:
        name, host: the data center's name, this rank's host.
        rank, size: center_rank (0 leads), and the number of ranks.
        broken: why the ranks cannot go on together, empty while they can.
        meanwhile: called again and again while this rank waits.
    """

    name: str
    host: str
    rank: int
    size: int
    broken: str
    meanwhile: Callable[[], object]

    def gather(self, content: T) -> list[T] | None:
        """Every rank's content, by center_rank, on the leader; None elsewhere."""

    def bcast(self, content: T) -> T:
        """The leader's content."""

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number that any rank brings."""

    def call_leader(self, text: str) -> None:
        """Send the leader a word that nobody waits for. Not collective."""

    def calls(self) -> list[str]:
        """On the leader: words that have come. Not collective; never blocks."""

    def break_(self, why: str) -> None:
        """Call the other ranks out of what they wait in. Not collective; never blocks."""

    def regroup(self, content: T, patience: float | None = None) -> list[T]:
        """Meet after a break, whatever each rank was doing; what each brought.

        Raises:
            RoundTimeoutError: some rank did not come.
        """


class Meetings(Protocol):
    """Between the data centers, as far as no tensors travel. Called on leaders, but for :meth:`give_up`.

    Attributes:
        index, names: of this data center, and all names in the order of the mean.
        replays: the next meeting is answered from memory, and asks nobody (see ``journal.py``).
        separate: the data centers share no folder and no launcher. Each writes a run folder of its own, stops and fails
            alone, and brings what it would decide; what the first one present brings counts.
        may_preside: indices of those whose decisions count; None: of all.
        roster: indices of those that have not left the run for good.
        meanwhile: called again and again while this leader waits.
    """

    index: int
    names: tuple[str, ...]
    separate: bool
    may_preside: frozenset[int] | None
    roster: tuple[int, ...]
    meanwhile: Callable[[], object]

    @property
    def agreed(self) -> Mapping[str, str]:
        """What the members agreed on before they met, as readable pairs (a federation's roster); the run's contract
        has it."""

    @property
    def from_round(self) -> int | None:
        """The first round that this holds for; None: the one that a data center begins with."""

    @property
    def somebody_joins(self) -> bool:
        """Whether a data center joins the run with that round."""

    @property
    def joined(self) -> int | None:
        """The round with which this data center joined, or is to join, a run that was under way; None: it did not."""

    @property
    def replays(self) -> bool: ...

    def meet(self, topic: Topic, brought: Brought, patience: float | None, may_miss: bool) -> Outcome:
        """Wait for all members.

        Raises:
            RoundTimeoutError: a data center that is needed did not come.
        """

    def tell(self, text: Callable[[], str], now: bool = False) -> None:
        """Let the other leaders know how far this data center is, at most every few seconds. Never blocks."""

    def listen(self) -> None:
        """Take in what the others have said. Never blocks."""

    def ask_to_stop(self, reason: str) -> None:
        """Ask every data center to stop at its next safe point. Never blocks."""

    @property
    def stop_asked(self) -> str:
        """Why another data center has asked to stop; empty if none has."""

    def finish(self, patience: float | None) -> list[str]:
        """The run is over; the names of those that were left out, and did not come to hear it."""

    def give_up(self, code: int) -> NoReturn:
        """End all ranks that this process can reach, at once. On any rank."""
