"""What the leaders of the data centers say to each other: messages, no collectives.

A collective needs everybody, and a data center may be restarting, silent, or left out. So a meeting is a message from
every leader to the first one, and one answer to each: who was there, and with what. The first leader alone decides
whom to wait for; that is the decision that must not be taken twice.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colearn_hpc.errors import RoundTimeoutError
from colearn_hpc.mpi import pacing
from colearn_hpc.mpi.status import Status

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("colearn_hpc")

_ARRIVAL, _OUTCOME, _NEWS, _LEFT_OUT = 1, 2, 3, 4  # tags
FINISHED = "finished"  # the purpose that who was left out finds when the others have gone home


@dataclass(frozen=True)
class Outcome:
    """What a meeting found.

    Attributes:
        purpose: where in the run those who were not left out are.
        statuses: by leader, one Status per rank of its data center; None for who was left out.
    """

    purpose: str
    statuses: tuple[list[Status] | None, ...]

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the data centers that were there."""
        return tuple(k for k, statuses in enumerate(self.statuses) if statuses is not None)


@dataclass
class News:
    """What another leader last said of itself, unasked."""

    text: str = "nothing heard yet"
    waiting_at: str = ""
    heard: float = 0.0


class Leaders:
    """This leader's conversation with the others.

    Args:
        comm: one rank per data center, in order. Collective over the leaders.
        names: the data centers' names.

    Attributes:
        members: on the first leader, who is waited for.
        idle: called while this leader waits.
    """

    def __init__(self, comm: MPI.Intracomm, names: Sequence[str]) -> None:
        self.comm = comm.Dup()
        self.index, self.names = self.comm.Get_rank(), list(names)
        self.members = set(range(len(names)))
        self.idle: Callable[[], Any] = bool
        self.news = {k: News(heard=time.monotonic()) for k in self.members}
        self._inbox: dict[int, list[Status]] = {}
        self._outgoing: list[MPI.Request] = []
        self._told = 0.0
        self._past: deque[str] = deque(maxlen=8)  # purposes of the last meetings

    # --- meetings -------------------------------------------------------------------------------------

    def meet(self, statuses: list[Status], patience: float | None, may_miss: bool) -> Outcome:
        """Wait until all members have come. One call per leader, in no order.

        Args:
            statuses: one per rank of this data center, all of one purpose.
            patience: seconds after which who is missing is given up; None: never.
            may_miss: then the others go on without them; otherwise it is an error.

        Raises:
            RoundTimeoutError: on whoever has lost patience. A first leader that is missing cannot be done without.
        """
        purpose = statuses[0].purpose
        self.tell(lambda: "waiting", purpose, now=True)
        preside = self._preside if self.index == 0 else self._attend
        outcome = preside(statuses, patience, may_miss)
        self._past.append(outcome.purpose)
        for k in outcome.present:
            self.news[k] = News(f"went on from {outcome.purpose}", heard=time.monotonic())
        return outcome

    def _attend(self, statuses: list[Status], patience: float | None, may_miss: bool) -> Outcome:
        purpose = statuses[0].purpose
        self._send(statuses, 0, _ARRIVAL)
        # The first leader, once it has come, gives up before the others: it is the one to say who is missing ...
        waiting = pacing.Patience(patience)
        while not self.comm.iprobe(source=0, tag=_OUTCOME):
            self._pass_time(waiting, purpose)
            # ... and its own patience began when it came, up to one whole patience after this one's.
            later = 0.0 if self.news[0].waiting_at != purpose else (patience or 0.0) + pacing.GRACE
            # Whoever was left out waits for the end of the others' round, as long as the first leader is heard of.
            gone = time.monotonic() - self.news[0].heard > pacing.SILENCE + (patience or 0.0)
            if waiting.over(later + 0.5 * self.index) and (gone or not self._left_out()):
                raise RoundTimeoutError(self._gave_up(purpose, patience))
        while self._left_out():
            self.comm.recv(source=0, tag=_LEFT_OUT)  # this outcome is the answer to it
        outcome: Outcome = self.comm.recv(source=0, tag=_OUTCOME)
        return outcome

    def _left_out(self) -> bool:
        """Whether the first leader has gone on without this data center, and not been met since."""
        return self.comm.iprobe(source=0, tag=_LEFT_OUT)

    def _preside(self, mine: list[Status], patience: float | None, may_miss: bool) -> Outcome:
        purpose = mine[0].purpose
        self._inbox[0] = mine
        waiting = pacing.Patience(patience)
        while missing := self.members - self._receive():
            if may_miss and waiting.over():
                log.warning("%s: going on without %s", purpose, self._text(missing))
                for k in missing:
                    self._send(purpose, k, _LEFT_OUT)
                self.members -= missing
                break
            if waiting.over():
                raise RoundTimeoutError(self._gave_up(purpose, patience))
            self._pass_time(waiting, purpose)
        # A data center that was left out earlier and has come since, takes part from here on.
        returned = set(self._inbox) - self.members if may_miss else set()
        for k in sorted(returned):
            log.warning("%s: %s is back; it missed %s", purpose, self.names[k], self._inbox[k][0].purpose)
        self.members |= returned
        here = {k: self._inbox.pop(k) for k in sorted(self.members)}
        for k in returned:
            why = f"missed {here[k][0].purpose}"
            here[k] = [Status(purpose, s.center, s.content, s.error, s.stopping, absent=why) for s in here[k]]
        outcome = Outcome(purpose, tuple(here.get(k) for k in range(len(self.names))))
        for k in here:
            if k:
                self._send(outcome, k, _OUTCOME)
        return outcome

    def finish(self, patience: float | None) -> list[str]:
        """Tell who was left out, and is not back, that the run is over. Called by the first leader.

        Args:
            patience: seconds to wait for them.

        Returns:
            The names of those that did not come: their processes would hold up the end of all others.
        """
        missing = set(range(len(self.names))) - self.members
        for k in missing:
            self._send(Outcome(FINISHED, (None,) * len(self.names)), k, _OUTCOME)
        waiting = pacing.Patience(patience)
        while missing - self._receive() and not waiting.over():
            self._pass_time(waiting, FINISHED)
        return [self.names[k] for k in sorted(missing - set(self._inbox))]

    # --- news -----------------------------------------------------------------------------------------

    def tell(self, text: Callable[[], str], waiting_at: str = "", now: bool = False) -> None:
        """Tell the other leaders how far this data center is, at most every few seconds. Never blocks."""
        if not now and time.monotonic() - self._told < pacing.NEWS_INTERVAL:
            return
        self._told, news = time.monotonic(), (text(), waiting_at)
        for k in range(len(self.names)):
            if k != self.index:
                self._send(news, k, _NEWS)

    def listen(self) -> None:
        """Take in what the others have told. Never blocks."""
        from mpi4py import MPI

        found = MPI.Status()
        while self.comm.iprobe(tag=_NEWS, status=found):
            text, waiting_at = self.comm.recv(source=found.Get_source(), tag=_NEWS)
            if waiting_at in self._past:
                continue  # it came to a meeting that is over
            before = self.news[found.Get_source()].text
            if "restart" in text and text != before:
                log.warning("%s: %s", self.names[found.Get_source()], text)
            self.news[found.Get_source()] = News(text, waiting_at, time.monotonic())
        self._outgoing = [request for request in self._outgoing if not request.Test()]

    def _receive(self) -> set[int]:
        from mpi4py import MPI

        found = MPI.Status()
        while self.comm.iprobe(tag=_ARRIVAL, status=found):
            self._inbox[found.Get_source()] = self.comm.recv(source=found.Get_source(), tag=_ARRIVAL)
        return set(self._inbox)

    def _send(self, message: Any, leader: int, tag: int) -> None:
        self._outgoing.append(self.comm.isend(message, leader, tag))

    def _pass_time(self, waiting: pacing.Patience, purpose: str) -> None:
        self.listen()
        self.idle()
        missing = self._missing(purpose)
        # One voice is enough: the first of those who wait.
        if waiting.report_due() and self.index == min(set(self.news) - missing, default=self.index):
            log.warning("%s: waiting for %s since %.0f s", purpose, self._text(missing), waiting.seconds)
        waiting.sleep()

    def _missing(self, purpose: str) -> set[int]:
        if self.index == 0:
            return self.members - set(self._inbox)
        return {k for k, news in self.news.items() if k != self.index and news.waiting_at != purpose}

    def _text(self, missing: set[int]) -> str:
        return ", ".join(f"{self.names[k]} ({self._last_heard(k)})" for k in sorted(missing)) or "the first leader"

    def _last_heard(self, k: int) -> str:
        news = self.news[k]
        age = time.monotonic() - news.heard
        if age < pacing.SILENCE:
            return f"{news.text}, {age:.0f} s ago" if news.text else f"{age:.0f} s ago"
        return f"silent since {age:.0f} s, last: {news.text}"

    def _gave_up(self, purpose: str, patience: float | None) -> str:
        return (
            f"{purpose}: {self._text(self._missing(purpose))} did not arrive within {patience:g} s (round_timeout); "
            'look at its log, allow more time, or set on_failure="continue_without"'
        )
