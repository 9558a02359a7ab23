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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from colearn_hpc.algorithm.shared_model import weighted_mean
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
from colearn_hpc.mpi.compression import Compression
from colearn_hpc.mpi.copies import copy_to_all
from colearn_hpc.mpi.journal import Journal, Mean
from colearn_hpc.mpi.leaders import FINISHED, Leaders, Outcome
from colearn_hpc.mpi.mean import CHUNK, MeanUnderWay, Taken, begin_mean
from colearn_hpc.mpi.messages import describe, difference, different_points, joined_errors
from colearn_hpc.mpi.notices import StopNotices
from colearn_hpc.mpi.pipeline import Source, Vector
from colearn_hpc.mpi.stall import stall_watch
from colearn_hpc.mpi.status import Status
from colearn_hpc.mpi.topology import DataCenter

log = logging.getLogger("colearn_hpc")
T = TypeVar("T")


class Exchange:
    """The conversation of all ranks of a run.

    Args:
        center: this process's data center. Collective over the world (communicators are duplicated, so
            that no message can meet a user's own).
        timeout: seconds that a leader waits for the others at a meeting; None waits for ever.

    Attributes:
        link: the conversation inside the data center.
        present: indices of the data centers that took part in the last meeting.
        journal: what this data center has heard since its last resume point.
        may_miss: go on without a data center that does not arrive at a round's end in time.
        doing: "waiting" or "exchanging" while this rank does.
        bytes_sent: payload this process sent to other data centers so far.
        verdict: the agreed text of the failure that ended the run.
    """

    def __init__(self, center: DataCenter, timeout: float | None = None) -> None:
        self.center = center
        self.timeout = timeout
        self.doing = ""
        self.bytes_sent = 0
        self.verdict = ""
        self.present = tuple(range(len(center.topology.centers)))
        self.may_miss = False
        self._under_way: MeanUnderWay | None = None
        self._committed = False  # the others count on this data center until the round's mean is in place
        self._world = center.world.Dup()
        self.link = CenterLink(center)
        self._leaders = (
            Leaders(center.leaders, [c.name for c in center.topology.centers]) if center.leaders is not None else None
        )
        self.stops = StopNotices(center, self.link)
        self.link.idle = self._idle
        if self._leaders is not None:
            self._leaders.idle = self._idle
        self.journal = Journal()

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
        """Let the leaders who may be waiting know how far this data center is. Cheap enough for every batch:
        ``text`` is called only when it is to be sent.

        A mean that is under way goes on.
        """
        self._idle()
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
            self.doing = "waiting"
            outcome = self._leaders.meet(statuses, patience, arriving and self.may_miss)
            self.doing = ""
        found = self.link.bcast(outcome)
        assert found is not None, "the leader brings an outcome"
        return found

    def _idle(self) -> None:
        """What must not wait while this rank does."""
        self.stops.poll()  # a rank that is signalled while it waits tells those who still train
        if self._under_way is not None:
            self._under_way.advance()  # MPI moves nothing by itself

    def _judged(self, outcome: Outcome) -> list[Status]:
        """The statuses by world rank, unless somebody failed or stops."""
        if outcome.purpose == FINISHED:
            raise LeftOut
        self.present = outcome.present
        statuses: list[Status] = []
        for center, found in zip(self.center.topology.centers, outcome.statuses, strict=True):
            left_out = Status(outcome.purpose, center.name, absent="did not arrive in time")
            statuses += found if found is not None else [left_out] * len(center.world_ranks)
        statuses = [statuses[i] for i in self._by_world_rank()]
        if any(s.error for s in statuses):
            self.verdict = joined_errors(statuses, len(self.center.topology.centers))
            raise PeerError(self.verdict)
        if reasons := list(dict.fromkeys(s.stopping for s in statuses if s.stopping)):
            if self._under_way is not None:
                # Everyone is here and leaves, so it can come to its end; nobody may leave while messages are under way.
                self.finish_mean()
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

    # --- the round ------------------------------------------------------------------------------------

    def mean_in_center(self, vector: Tensor) -> None:
        """Put the mean over this data center's ranks into the leader's vector. Collective over the data center."""
        if self.center.size == 1 or not vector.numel():
            return
        rows = torch.empty((self.center.size, *vector.shape), dtype=vector.dtype) if self.center.is_leader else None
        self.link.enter().Gather(vector.numpy(), None if rows is None else rows.numpy(), 0)
        if rows is not None:
            weighted_mean(list(rows), [1.0] * self.center.size, out=vector)

    def mean(self, vector: Tensor, weights: Sequence[float]) -> None:
        """:meth:`take_mean` of contiguous CPU vectors, shape ``(n,)``, in place. Collective over the leaders."""
        self.take_mean(Vector(vector), vector, weights)

    def take_mean(
        self,
        source: Source,
        result: Tensor,
        weights: Sequence[float],
        parameter_size: int | None = None,
        previous: Tensor | None = None,
        compression: Compression | None = None,
    ) -> Taken:
        """Take the weighted mean of the leaders' vectors (eq. 2). Collective over the leaders.

        See :func:`~colearn_hpc.mpi.mean.begin_mean`, also for the arguments. To be called right after a meeting.

        Args:
            source: this leader's model, the same size on all leaders.
            result: where the mean goes, shape ``(size,)``.
            weights: n_k per data center, in order; 0 takes the mean without contributing to it.
        """
        if self._leaders is None:
            raise AssertionError("only leaders exchange")
        if self.journal.replaying:
            mean = self.journal.again("mean")
            assert isinstance(mean, Mean), "no meeting is called so"
            result.copy_(mean.result)
            if compression is not None:
                compression.pending = mean.pending
            return mean.taken
        self.begin_mean(source, result, weights, parameter_size, previous, compression)
        taken = self.finish_mean()
        self.journal.note("mean", Mean(taken, result, None if compression is None else compression.pending))
        return taken

    def begin_mean(self, source: Source, result: Tensor, weights: Sequence[float], *more: Any) -> None:
        """Begin what :meth:`take_mean` does, which says what these are: it goes on at every :meth:`progress`, and while
        this rank waits. Until :meth:`finish_mean` nothing may write to them. Collective over the leaders."""
        assert self._leaders is not None, "only leaders exchange"
        comm, present = self._leaders.group(self.present), [weights[k] for k in self.present]
        self._under_way = begin_mean(comm, source, result, present, *more)
        self._under_way.advance()

    def finish_mean(self) -> Taken:
        """Wait until the mean is there. Collective over the leaders, right after a meeting."""
        assert self._under_way is not None, "begin_mean comes first"
        self.doing = "exchanging"
        names = [self.center.topology.centers[k].name for k in self.present]
        taken = self._under_way.finish(stall_watch(names, self.timeout))
        self._under_way = None
        self.bytes_sent += taken.bytes_sent
        self.doing = ""
        return taken

    def distribute_in_center(self, vector: Tensor) -> None:
        """Copy the leader's vector into every rank's, in place. Collective over the data center.

        The others wait politely first: their leader may be busy with a slow link for minutes.
        """
        if self.center.size == 1:
            return
        comm = self.link.enter()
        for block in vector.split(CHUNK):
            comm.Bcast(block.numpy(), 0)
