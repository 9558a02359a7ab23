"""What data centers say to each other: ready?, mean, decision, failure.

Everything between data centers goes through an :class:`Exchange`. Its methods are collective, and say over
whom; no caller may guard them by a condition that those ranks do not share.

Data centers finish minutes or hours apart, and a blocking MPI call burns a core all that time. So every
step that can be reached at different times begins with a *meeting*: a non-blocking barrier, tested between
sleeps that back off to 50 ms. Only when all have arrived do blocking collectives run. A rank that failed
joins the next meeting with its error instead of its status: that is how one rank's failure ends everyone
with one message, and hangs nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.errors import ColearnError, FingerprintError, Interrupted, PeerError, RoundTimeoutError
from colearn_hpc.mpi.mean import CHUNK, Taken, take_mean
from colearn_hpc.mpi.notices import StopNotices
from colearn_hpc.mpi.pipeline import Compression, Source, Vector
from colearn_hpc.mpi.topology import DataCenter

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("colearn_hpc")
T = TypeVar("T")

_LONGEST_SLEEP = 0.05  # s; a waiting rank then uses well under 1 % of a core
_FIRST_REPORT, _LATER_REPORTS = 10.0, 120.0  # s of waiting after which the awaited are named
_GRACE = 10.0  # s that a failed rank waits for the others before it aborts the world


@dataclass(frozen=True)
class Status:
    """What a rank brings to a meeting.

    Attributes:
        purpose: where in the run the rank is; all must agree.
        center: its data center's name.
        content: what it wants the others to know (small, picklable).
        error: why it failed, empty if it did not.
        stopping: why it leaves the run, for now; empty if it does not.
    """

    purpose: str
    center: str
    content: Any = None
    error: str = ""
    stopping: str = ""


class Exchange:
    """The conversation of all ranks of a run.

    Args:
        center: this process's data center. Collective over the world (communicators are duplicated, so
            that no message can meet a user's own).
        timeout: seconds that a leader waits for the others at a meeting; None waits for ever.
    """

    def __init__(self, center: DataCenter, timeout: float | None = None) -> None:
        self.center = center
        self.timeout = timeout
        self.doing = ""  # "waiting" or "exchanging" while this rank does
        self.bytes_sent = 0  # payload this process sent to other data centers so far
        self._meeting_comm = center.world.Dup()
        self._center_comm = center.comm.Dup()
        self._leaders: MPI.Comm | None = center.leaders.Dup() if center.leaders is not None else None
        self._notices = center.leaders.Dup() if center.leaders is not None else None
        self.stops = StopNotices(center)
        self._meetings = 0
        self._noticed: dict[int, set[int]] = {}

    # --- meetings -------------------------------------------------------------------------------------

    def meet(self, purpose: str, content: Any = None) -> list[Status]:
        """Wait for all ranks, then learn what each brings. Collective over the world.

        Returns:
            One :class:`Status` per world rank.

        Raises:
            PeerError: some rank failed; all ranks get the same message.
            RoundTimeoutError: on the leaders, one after the other, when ``timeout`` passed.
        """
        patience = None
        if self.timeout is not None:
            # Leaders give up one after the other, the rest later: the first of them speaks and aborts all.
            patience = self.timeout + (0.5 * self.center.index if self.center.is_leader else 30.0)
        return self._meet(Status(purpose, self.center.name, content), patience)

    def decide(self, purpose: str, decision: Callable[[], T]) -> T:
        """Let the first leader decide, and everyone learn what. Collective over the world.

        A decision compared on two ranks can differ in the last bit; then they part ways and wait for each
        other for ever. ``decision`` is called on the first leader only; if it fails there, the caller's
        :meth:`fail` tells the others.
        """
        content = decision() if self.center.is_first else None
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

    def fail(self, error: BaseException) -> None:
        """Tell all others that this rank failed. To be called once, from the handler of ``error``.

        Joins the others' next meeting with the error, which then ends them all. If they do not come within
        10 s (they may be deep in an epoch, or stuck in a collective with this rank), the error is
        printed and the world aborted. Returns at once when all ranks raise ``error`` anyway.
        """
        if getattr(error, "everywhere", False):
            return
        if not isinstance(error, RoundTimeoutError):  # after a timeout this rank has left its meeting half-way
            status = Status("failure", self.center.name, error=describe(error))
            try:
                self._meet(status, _GRACE + min(0.2 * self.center.world_rank, 3.0))
            except PeerError:
                # Now all know. An exception of any class takes the mark, ours or not.
                with contextlib.suppress(AttributeError):
                    error.everywhere = True  # type: ignore[attr-defined]
                return
            except RoundTimeoutError:
                pass
        message = f"data center {self.center.name} ({self.center.host}): {describe(error)}"
        print(f"colearn-hpc: error: {message}", file=sys.stderr, flush=True)
        self._meeting_comm.Abort(1)

    def _meet(self, status: Status, patience: float | None) -> list[Status]:
        self._meetings += 1
        self._send_notices()
        self.doing = "waiting"
        self._wait(self._meeting_comm.Ibarrier(), status.purpose, patience)
        self.doing = ""
        statuses: list[Status] = self._meeting_comm.allgather(status)
        if any(s.error for s in statuses):
            raise PeerError(_joined_errors(statuses, len(self.center.topology.centers)))
        purposes = {s.purpose: s.center for s in statuses}
        if reasons := list(dict.fromkeys(s.stopping for s in statuses if s.stopping)):
            # The most telling one: who was signalled, where that rank itself is here to say so.
            raise Interrupted(max(reasons, key=len))
        if len(purposes) != 1:
            found = ", ".join(f"{center}: {purpose}" for purpose, center in purposes.items())
            raise PeerError(f"the data centers are at different points of the run ({found}); please report this")
        return statuses

    def _wait(self, request: MPI.Request, purpose: str, patience: float | None) -> None:
        arrived = {self.center.index}
        start = time.monotonic()
        sleep, report = 0.0005, _FIRST_REPORT
        while not request.Test():
            arrived |= self._arrivals()
            self.stops.poll()  # a rank that is signalled while it waits tells those who still train
            waited = time.monotonic() - start
            if waited > report and self.center.is_leader and self.center.index == min(arrived):
                report = waited + _LATER_REPORTS
                log.warning("%s: waiting for %s since %.0f s", purpose, self._missing(arrived), waited)
            if patience is not None and waited > patience:
                raise RoundTimeoutError(
                    f"{purpose}: {self._missing(arrived)} did not arrive within {self.timeout} s (timeout); "
                    "look at its log, or allow more time"
                )
            time.sleep(sleep)
            sleep = min(1.5 * sleep, _LONGEST_SLEEP)

    def _send_notices(self) -> None:
        # The barrier does not tell who is missing; these empty messages do. Nobody waits for them.
        from mpi4py import MPI

        if self._notices is not None:
            for leader in range(self._notices.Get_size()):
                if leader != self.center.index:
                    self._notices.Isend([b"", MPI.BYTE], leader, self._meetings % 32768).Free()

    def _arrivals(self) -> set[int]:
        from mpi4py import MPI

        found = MPI.Status()
        # Notices of the next meeting may be here before this one's barrier is seen to be complete: keep them.
        while self._notices is not None and self._notices.Iprobe(status=found):
            self._notices.Recv([bytearray(0), MPI.BYTE], found.Get_source(), found.Get_tag())
            self._noticed.setdefault(found.Get_tag(), set()).add(found.Get_source())
        tag = self._meetings % 32768
        self._noticed = {t: leaders for t, leaders in self._noticed.items() if t in (tag, (tag + 1) % 32768)}
        return self._noticed.get(tag, set())

    def _missing(self, arrived: set[int]) -> str:
        others = [c.name for c in self.center.topology.centers if c.index not in arrived]
        return ", ".join(others) or f"the other ranks of {self.center.name}"

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
                    _difference(statuses[0].center, mine, status.center, status.content)
                ).on_all_ranks()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first leader's tensors into everyone's, in place. Collective over the world.

        Any dtype; CPU or GPU tensors. Every rank must bring the same shapes (see :meth:`compare`).
        """
        root = self.center.topology.centers[0].leader
        for tensor in tensors:
            source = tensor.detach()
            staged = source.cpu().contiguous()
            flat = staged.reshape(-1).view(torch.uint8) if staged.numel() else staged.reshape(-1)
            for block in flat.split(1 << 30):
                self._meeting_comm.Bcast(block.numpy(), root)
            if not self.center.is_first:
                with torch.no_grad():
                    source.copy_(staged)

    # --- the round ------------------------------------------------------------------------------------

    def gather_in_center(self, content: T) -> list[T] | None:
        """Every rank's content, by center_rank, on the leader; None elsewhere. Collective over the data center."""
        return self._center_comm.gather(content, 0)

    def mean_in_center(self, vector: Tensor) -> None:
        """Put the mean over this data center's ranks into the leader's vector. Collective over the data center."""
        if self.center.size == 1 or not vector.numel():
            return
        rows = torch.empty((self.center.size, *vector.shape), dtype=vector.dtype) if self.center.is_leader else None
        self._center_comm.Gather(vector.numpy(), None if rows is None else rows.numpy(), 0)
        if rows is not None:
            weighted_mean(list(rows), [1.0] * self.center.size, out=vector)

    def mean(self, vector: Tensor, weights: Sequence[float]) -> None:
        """Replace the leaders' vectors by their weighted mean (eq. 2), in place. Collective over the leaders.

        See :meth:`take_mean`.

        Args:
            vector: contiguous CPU vector, shape ``(n,)``, the same n on all leaders.
            weights: n_k per data center, in order.
        """
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

        See :func:`~colearn_hpc.mpi.mean.take_mean`, also for the arguments. To be called right after a meeting.

        Args:
            source: this leader's model, the same size on all leaders.
            result: where the mean goes, shape ``(size,)``.
            weights: n_k per data center, in order; 0 takes the mean without contributing to it.
        """
        if self._leaders is None:
            raise AssertionError("only leaders exchange")
        self.doing = "exchanging"
        taken = take_mean(self._leaders, source, result, weights, parameter_size, previous, compression)
        self.bytes_sent += taken.bytes_sent
        self.doing = ""
        return taken

    def distribute_in_center(self, vector: Tensor) -> None:
        """Copy the leader's vector into every rank's, in place. Collective over the data center.

        The others wait politely first: their leader may be busy with a slow link for minutes.
        """
        if self.center.size == 1:
            return
        request = self._center_comm.Ibarrier()
        while not request.Test():
            time.sleep(0.005)
        for block in vector.split(CHUNK):
            self._center_comm.Bcast(block.numpy(), 0)


def describe(error: BaseException) -> str:
    """One text for people: our own errors as they are, anything unforeseen with its traceback."""
    if isinstance(error, ColearnError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()


def _joined_errors(statuses: Sequence[Status], number_of_centers: int) -> str:
    """Every distinct error once, with the data centers that have it."""
    centers: dict[str, list[str]] = {}
    for status in statuses:
        if status.error and status.center not in centers.setdefault(status.error, []):
            centers[status.error].append(status.center)
    return "\n".join(
        error if len(names) == number_of_centers else f"data center{'s'[: len(names) != 1]} {', '.join(names)}: {error}"
        for error, names in centers.items()
    )


def _difference(name: str, mine: Sequence[str], other_name: str, others: Sequence[str]) -> str:
    here, there = next((a, b) for a, b in zip_longest(mine, others, fillvalue="(nothing)") if a != b)
    return (
        f"the data centers do not run the same thing: {name} has `{here}`, {other_name} has `{there}`; "
        "use the same code, configuration and package versions everywhere"
    )
