"""What data centers say to each other: ready?, mean, decision, failure.

Everything between data centers goes through an :class:`Exchange`. Its methods are collective, and say over
whom; no caller may guard them by a condition that those ranks do not share.

Data centers finish minutes or hours apart, and a blocking MPI call burns a core all that time. So every
step that can be reached at different times begins with a *meeting*: first inside each data center
(``center_link.py``), then among the leaders (``leaders.py``), both by messages tested between sleeps. Only when all
have arrived do blocking collectives run. A rank that failed brings its error to the meeting instead of its status:
that is how one rank's failure ends everyone with one message, and hangs nobody.

What a meeting or a mean found is kept in a journal (``journal.py``) for a data center that has to begin again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from colearn_hpc.errors import (
    ABORT_CODE,
    CenterBrokenError,
    FingerprintError,
    Interrupted,
    LeftOut,
    PeerError,
    RoundTimeoutError,
)
from colearn_hpc.mpi import pacing
from colearn_hpc.mpi.center_link import CenterLink
from colearn_hpc.mpi.copies import copy_to_all
from colearn_hpc.mpi.journal import Journal
from colearn_hpc.mpi.leaders import FINISHED, Leaders, Outcome
from colearn_hpc.mpi.messages import describe, difference, different_points, joined_errors
from colearn_hpc.mpi.notices import StopNotices
from colearn_hpc.mpi.status import Status
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.mpi.transfer import Transfer

log = logging.getLogger("colearn_hpc")
T = TypeVar("T")


class Exchange:
    """The conversation of all ranks of a run.

    Args:
        center: this process's data center. Collective over the world (communicators are duplicated, so
            that no message can meet a user's own).
        timeout: seconds that a leader waits for the others at a meeting; None waits for ever.
        lanes: how many ranks of each data center share the transfer of a mean; None: one per node.

    Attributes:
        link: the conversation inside the data center.
        journal: what this data center has heard since its last resume point.
        transfer: the means.
        may_miss: go on without a data center that does not arrive at a round's end in time.
        verdict: the agreed text of the failure that ended the run.
    """

    def __init__(self, center: DataCenter, timeout: float | None = None, lanes: int | None = 1) -> None:
        self.center = center
        self.timeout = timeout
        self.verdict = ""
        self.may_miss = False
        self._waiting, self._looked = False, 0.0
        self._committed = False  # the others count on this data center until the round's mean is in place
        self._world = center.world.Dup()
        self.link = CenterLink(center)
        self.journal = Journal()
        self.transfer = Transfer(center, self.link, self.journal, lanes, timeout)
        self._leaders = (
            Leaders(center.leaders, [c.name for c in center.topology.centers]) if center.leaders is not None else None
        )
        self.stops = StopNotices(center, self.link)
        self.link.idle = self._idle
        if self._leaders is not None:
            self._leaders.idle = self._idle

    @property
    def doing(self) -> str:
        """What this rank waits in: "waiting" for others or "exchanging"; nothing where it does not wait."""
        return "exchanging" if self.transfer.waiting else "waiting" if self._waiting else ""

    # --- meetings -------------------------------------------------------------------------------------

    def meet(self, purpose: str, content: Any = None) -> list[Status]:
        """Wait for all ranks, then learn what each brings. Collective over the world.

        Args:
            purpose: where in the run this is; the same text on all ranks.
            content: for the others; small and picklable.

        Returns:
            One :class:`Status` per world rank; who was left out of this round has one with ``absent``, without content.

        Raises:
            CenterBrokenError: a rank of this data center failed.
            LeftOut: the others have finished without this data center.
            PeerError: some rank failed; all ranks get the same message.
            RoundTimeoutError: on the first leader that lost patience, when ``timeout`` passed.
        """
        return self._meet(Status(purpose, self.center.name, content), self.timeout)

    def arrive(self, purpose: str, content: Any, absent: str = "") -> list[Status]:
        """:meth:`meet` at a round's end: from here to :meth:`commit` the others count on this data center.

        With ``may_miss``, whoever has not come when ``timeout`` has passed is left out of the round. It is here again
        when it next arrives: its statuses then say ``absent``, and what it learns is about the others' round.

        Args:
            purpose: the round.
            content: for the others; small and picklable.
            absent: why this data center only listens, and gives nothing to the mean.
        """
        return self._meet(Status(purpose, self.center.name, content, absent=absent), self.timeout, arriving=True)

    def finish(self) -> None:
        """The run is over. Called on every rank; only the first leader may have something to do.

        Who was left out and is still silent would keep all others from ending: after another ``timeout`` it is ended.
        """
        if self._leaders is None or not self.center.is_first:
            return
        if silent := self._leaders.finish(self.timeout):
            log.warning("the run is finished without %s, which is still silent; ending it", ", ".join(silent))
            time.sleep(0.2)
            self._world.Abort(0)

    def commit(self) -> None:
        """The round's mean is in place on all ranks of this data center."""
        self._committed = False

    def decide(self, purpose: str, decision: Callable[[], T]) -> T:
        """Let the first leader decide, and everyone learn what. Collective over the world.

        A decision compared on two ranks can differ in the last bit; then they part ways and wait for each
        other for ever. ``decision`` is called on the first leader only; if it fails there, the caller's
        :meth:`fail` tells the others.
        """
        content = decision() if self.center.is_first and not self.journal.replaying else None
        return self.meet(purpose, content)[self.center.topology.centers[0].leader].content

    def stop(self) -> NoReturn:
        """Leave the run until it is resumed; this data center has written its resume point. Collective over the world.

        The others come here from their own next safe point, or are at a round's end and wait for this data center:
        then their meeting ends with this, before the mean.

        Raises:
            Interrupted: on all ranks.
        """
        self._meet(Status("stop", self.center.name, stopping=self.stops.reason or "a signal"), None)
        raise AssertionError("a meeting with somebody stopping ends the run")

    def progress(self, text: Callable[[], str], now: bool = False) -> None:
        """Let the leaders who may be waiting know how far this data center is, now and then. Cheap enough for every
        batch: ``text`` is called only when it is to be sent.

        A mean that is under way goes on, every time.
        """
        self.transfer.advance()
        moment = time.monotonic()
        if not now and moment - self._looked < pacing.LOOK_INTERVAL:
            return
        self._looked = moment
        self.stops.poll()
        if self._leaders is not None:
            self._leaders.tell(text, now=now)
            self._leaders.listen()

    def _meet(self, status: Status, patience: float | None, arriving: bool = False) -> list[Status]:
        if self.journal.replaying:
            outcome = self.journal.again(status.purpose)
            assert isinstance(outcome, Outcome), "a mean is noted under its own name"
        else:
            outcome = self._outcome(status, patience, arriving)
            self.journal.note(status.purpose, outcome)
        return self._judged(outcome)

    def _outcome(self, status: Status, patience: float | None, arriving: bool) -> Outcome:
        statuses, outcome = self.link.gather(status), None
        self._committed |= arriving  # all ranks of this data center are here: none is in its user's code any more
        if statuses is not None:
            assert self._leaders is not None, "center_rank 0 is the leader"
            self._waiting = True
            outcome = self._leaders.meet(statuses, patience, arriving and self.may_miss)
            self._waiting = False
        found = self.link.bcast(outcome)
        assert found is not None, "the leader brings an outcome"
        return found

    def _idle(self) -> None:
        """What must not wait while this rank does."""
        self.stops.poll()  # a rank that is signalled while it waits tells those who still train
        self.transfer.advance()

    def _judged(self, outcome: Outcome) -> list[Status]:
        """The statuses by world rank, unless somebody failed or stops."""
        if outcome.purpose == FINISHED:
            raise LeftOut
        self.transfer.present = outcome.present
        statuses: list[Status] = []
        for center, found in zip(self.center.topology.centers, outcome.statuses, strict=True):
            left_out = Status(outcome.purpose, center.name, absent="did not arrive in time")
            statuses += found if found is not None else [left_out] * len(center.world_ranks)
        statuses = [statuses[i] for i in self._by_world_rank()]
        if any(s.error for s in statuses):
            self.verdict = joined_errors(statuses, len(self.center.topology.centers))
            raise PeerError(self.verdict)
        if reasons := list(dict.fromkeys(s.stopping for s in statuses if s.stopping)):
            # Everyone is here and leaves, so a mean can come to its end; nobody may leave while messages are under way.
            self.transfer.abandon()
            # The most telling one: who was signalled, where that rank itself is here to say so.
            raise Interrupted(max(reasons, key=len))
        if len({s.purpose for s in statuses if not s.absent}) > 1:
            raise PeerError(different_points(statuses))
        return statuses

    def _by_world_rank(self) -> list[int]:
        order = [rank for center in self.center.topology.centers for rank in center.world_ranks]
        return sorted(range(len(order)), key=order.__getitem__)

    # --- failures -------------------------------------------------------------------------------------

    def break_center(self, error: BaseException) -> None:
        """Call the other ranks of this data center out of what they are doing. Never blocks."""
        self.link.break_(describe(error))

    def regroup(self, content: T, patience: float | None = None) -> list[T]:
        """Meet inside the data center after a failure. Collective over the data center, whatever each rank was doing.

        Returns:
            What each rank brought, by center_rank.

        Raises:
            RoundTimeoutError: some rank did not come.
        """
        self.journal.rewind(to_start=False)
        contents = self.link.regroup(content, patience)
        self.stops.regrouped()
        return contents

    def fail(self, error: BaseException, text: str = "") -> None:
        """Tell all others that this data center failed. To be called once, from the handler of ``error``.

        Joins the others' next meeting with the error, which then ends them all. If they do not come within
        10 s (they may be deep in an epoch, or stuck in a collective with this rank), the error is
        printed and the world aborted. Returns at once when all ranks raise ``error`` anyway.

        Args:
            error: what happened on this rank.
            text: what happened to the data center, where its ranks have agreed on that (:meth:`regroup`).
        """
        if getattr(error, "everywhere", False):
            return
        if not isinstance(error, RoundTimeoutError):  # after a timeout this rank has left its meeting half-way
            try:
                if not text:
                    self.break_center(error)
                    mine = "" if isinstance(error, CenterBrokenError) else describe(error)
                    text = next(filter(None, self.regroup(mine, pacing.GRACE)), "a rank failed")
                self._meet(Status("failure", self.center.name, error=text), pacing.GRACE)
            except PeerError:
                # Now all know. An exception of any class takes the mark, ours or not.
                with contextlib.suppress(AttributeError):
                    error.everywhere = True  # type: ignore[attr-defined]
                return
            except RoundTimeoutError:
                pass
        self.abort(text or describe(error))

    def abort(self, text: str) -> NoReturn:
        """Print ``text``, and end all ranks at once, wherever they are."""
        message = f"data center {self.center.name} ({self.center.host}): {text}"
        print(f"colearn-hpc: error: {message}", file=sys.stderr, flush=True)
        time.sleep(0.2)  # the launcher forwards what was printed by a path of its own
        self._world.Abort(ABORT_CODE)
        raise AssertionError("aborted")

    @property
    def can_replay(self) -> bool:
        """Whether a restart from the last resume point would find its way."""
        return self.journal.whole and not self._committed and self.journal.means <= 1

    # --- before round 0 -------------------------------------------------------------------------------

    def compare(self, purpose: str, fingerprint: Mapping[str, str]) -> None:
        """Check that all ranks run the same thing. Collective over the world.

        Raises:
            FingerprintError: on all ranks, naming the first difference and the data center that has it.
        """
        items = [f"{key} = {value}" for key, value in fingerprint.items()]
        digest = hashlib.sha256("\n".join(items).encode()).hexdigest()
        if len({s.content for s in self.meet(purpose, digest)}) == 1:
            return
        statuses = self.meet(f"{purpose} (difference)", items)
        mine = statuses[0].content
        for status in statuses:
            if status.content != mine:
                raise FingerprintError(
                    difference(statuses[0].center, mine, status.center, status.content)
                ).on_all_ranks()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first leader's tensors into everyone's, in place. Collective over the world.

        Any dtype; CPU or GPU tensors. Every rank must bring the same shapes (see :meth:`compare`).
        """
        copy_to_all(self._world, self.center.topology.centers[0].leader, tensors)
