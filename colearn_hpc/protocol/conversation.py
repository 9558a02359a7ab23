"""All that the ranks of a run say to each other: first inside each data center, then among the data centers.

Data centers finish minutes or hours apart. So every step that can be reached at different times begins with a
*meeting*: the ranks of a data center agree, its leader meets the other leaders, and all ranks are told what came of it.
A rank that failed brings its error to the meeting instead: that is how one rank's failure ends everyone with one
message, and hangs nobody. No caller may guard a collective method by a condition that its ranks do not share.

Nothing here knows what carries the messages: :class:`Site` is what lies inside a data center, :class:`Meetings` what
lies between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from colearn_hpc.errors import (
    ABORT_CODE,
    CenterBrokenError,
    FingerprintError,
    Interrupted,
    LeftOut,
    PeerError,
    RoundTimeoutError,
)
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.meeting import FINISHED
from colearn_hpc.protocol.messages import (
    Absent,
    Attendance,
    Brought,
    Failed,
    Outcome,
    Present,
    Stopping,
    Topic,
    TopicKind,
    describe_elsewhere,
    describe_error,
    difference,
    different_topics,
    joined_failures,
)
from colearn_hpc.protocol.stops import StopRequests
from colearn_hpc.protocol.transport import Meetings, Site

log = logging.getLogger("colearn_hpc")
T = TypeVar("T")

_FAILURE = Topic(TopicKind.FAILURE)
_STOP = Topic(TopicKind.STOP)


class Conversation:
    """The conversation of all ranks of a run. Every method says over whom it is collective.

    Args:
        site: inside this data center.
        between: between the data centers. Every rank has one; on ranks that do not lead it only ends the run.
        patience: seconds that a leader waits for the others at a meeting; None: for ever.
        may_miss: a round may be taken without a data center that does not arrive in time.
        meanwhile: called while this rank waits, and with every :meth:`progress`.
        share_tracebacks: what an exception says is told to other data centers; otherwise its class, file and line.

    Attributes:
        stops: who was asked to stop.
        next_look: when :meth:`progress` next has something to do (by ``time.monotonic``), if no mean is under way.
        verdict: the agreed text of the failure that ended the run.
        waiting: this rank waits for others at a meeting. It stays so where an error ended the wait.
    """

    def __init__(
        self,
        site: Site,
        between: Meetings,
        patience: float | None = None,
        may_miss: bool = False,
        meanwhile: Callable[[], object] = lambda: None,
        share_tracebacks: bool = False,
    ) -> None:
        self.site, self.between = site, between
        self.stops = StopRequests(site, between)
        self.verdict = ""
        self.waiting = False
        self.shares_tracebacks = share_tracebacks or len(between.names) == 1
        self._patience, self._may_miss, self._meanwhile = patience, may_miss, meanwhile
        self.next_look = 0.0
        # The others count on this data center, from its arrival at a round's end until the mean is in place.
        self._counted_on = False
        site.meanwhile = between.meanwhile = self._pass_time

    @property
    def leads(self) -> bool:
        return self.site.rank == 0

    @property
    def presides(self) -> bool:
        """Whether this is a rank that takes the run's decisions and writes its files."""
        return self.leads and self.is_first

    @property
    def is_first(self) -> bool:
        """Whether this data center speaks for the run: the first one; each, where they are separate."""
        return self.between.index == 0 or self.between.separate

    # --- meetings ---------------------------------------------------------------------------------------

    def meet(self, topic: Topic, content: Any = None) -> Attendance:
        """Wait for all data centers, then learn what each brings. Collective over the world.

        Args:
            topic: where in the run this is; the same on all ranks.
            content: for the others, plain data; the leader's counts.

        Raises:
            CenterBrokenError: a rank of this data center failed.
            LeftOut: the others have finished without this data center.
            Interrupted: some data center stops; all leave.
            PeerError: some rank failed; all ranks get the same message.
            RoundTimeoutError: on the first leader that lost patience.
        """
        return self._meet(topic, Present(content), self._patience)

    def arrive(self, round_index: int, content: Any, absent: str = "") -> Attendance:
        """:meth:`meet` at a round's end: from here to :meth:`settled` the others count on this data center.

        Whoever has not come when patience is over may be left out of the round. It is in again when it next arrives: it
        is then :class:`Absent`, and what it learns is about the others' round.

        Args:
            round_index: i.
            content: for the others, plain data.
            absent: why this data center only listens, and gives nothing to the mean.
        """
        brought = Absent(absent, content) if absent else Present(content)
        return self._meet(Topic(TopicKind.ROUND, round_index), brought, self._patience, arriving=True)

    def settled(self) -> None:
        """The round's mean is in place on all ranks of this data center."""
        self._counted_on = False

    @property
    def can_begin_again(self) -> bool:
        """Whether no other data center counts on what this one is doing, and it has left no meeting half-way."""
        return not (self._counted_on or self.waiting)

    def decide(self, topic: Topic, decision: Callable[[], Any]) -> Any:
        """Let the presiding leader decide, and everyone learn what. Collective over the world.

        A decision compared on two ranks can differ in the last bit; then they part ways and wait for each other for
        ever. ``decision`` is called on the presiding leader only, and returns plain data; if it fails there, the
        caller's :meth:`fail` tells the others. Separate data centers bring what each would decide; what the first one
        that is present brings counts.
        """
        content = decision() if self.presides and not self.between.replays else None
        contents, may = self.meet(topic, content).contents, self.between.may_preside
        # Where nobody may who is there, the first one does: somebody has to.
        return next((found for k, found in contents.items() if may is None or k in may), next(iter(contents.values())))

    def finish(self) -> None:
        """The run is over. Called on every rank; only the presiding leader may have something to do.

        Who was left out and is still silent would keep all others from ending: after another patience it is ended.
        """
        if not self.presides:
            return
        if silent := self.between.finish(self._patience):
            log.warning("the run is finished without %s, which is still silent; ending it", ", ".join(silent))
            time.sleep(0.2)
            self.between.give_up(0)

    def stop(self) -> NoReturn:
        """Leave the run until it is resumed; this data center has written its resume point. Collective over the world.

        The others come here from their own next safe point, or are at a round's end and wait for this data center:
        then their meeting ends with this, before the mean.

        Raises:
            Interrupted: on all ranks.
        """
        self._meet(_STOP, Stopping(self.stops.reason or "a signal"), None)
        raise RuntimeError("a meeting with somebody stopping ends the run; please report this")

    def progress(self, text: Callable[[], str], now: bool = False) -> None:
        """Let the leaders who may be waiting know how far this data center is, now and then. Cheap enough for every
        batch: ``text`` is called only when it is to be sent."""
        self._meanwhile()
        if not (self._look_due() or now):
            return
        self.stops.poll()
        if self.leads:
            self.between.tell(text, now=now)
            self.between.listen()

    def _meet(self, topic: Topic, brought: Brought, patience: float | None, arriving: bool = False) -> Attendance:
        found = self.site.gather((topic, brought))
        self._counted_on |= arriving  # all ranks of this data center are here: none is in its user's code any more
        outcome = None
        if found is not None:
            together, what = _together(found)
            self.waiting = True
            outcome = self.between.meet(together, what, patience, arriving and self._may_miss)
            self.waiting = False
        told = self.site.bcast(outcome)
        assert told is not None, "the leader brings an outcome"
        return self._judged(told)

    def _judged(self, outcome: Outcome) -> Attendance:
        """Who was there, unless somebody failed or stops."""
        if outcome.topic == FINISHED:
            raise LeftOut
        names = self.between.names
        if failures := joined_failures(names, outcome):
            self.verdict = failures
            raise PeerError(failures)
        arrivals = outcome.arrivals
        stops = [a.brought.reason for a in arrivals if a is not None and isinstance(a.brought, Stopping)]
        if stops:
            # The longest says which rank was signalled; the others may only know that somebody was.
            raise Interrupted(max(stops, key=len))
        topics = {n: a.topic for n, a in zip(names, arrivals, strict=True) if a and isinstance(a.brought, Present)}
        if len(set(topics.values())) > 1:
            raise PeerError(different_topics(topics))
        brought = [Absent("did not arrive in time") if a is None else a.brought for a in arrivals]
        taking_part = tuple(one for one in brought if isinstance(one, Present | Absent))
        return Attendance(outcome.topic, taking_part, outcome.present)

    def _pass_time(self) -> None:
        """What must not wait while this rank does."""
        if self._look_due():
            self.stops.poll()  # a rank that is signalled while it waits tells those who still train
        self._meanwhile()

    def _look_due(self) -> bool:
        moment = time.monotonic()
        if moment < self.next_look:
            return False
        self.next_look = moment + pacing.LOOK_INTERVAL
        return True

    # --- failures ---------------------------------------------------------------------------------------

    def break_center(self, error: BaseException) -> None:
        """Call the other ranks of this data center out of what they are doing. Never blocks."""
        self.site.break_(describe_error(error))

    def regroup(self, content: T, patience: float | None = None) -> list[T]:
        """Meet inside the data center after a failure. Collective over the data center, whatever each rank was doing.

        Returns:
            What each rank brought, by center_rank.

        Raises:
            RoundTimeoutError: some rank did not come.
        """
        contents = self.site.regroup(content, patience)
        self.stops.regrouped()
        return contents

    def told(self, text: str, elsewhere: str) -> str:
        """What other data centers hear of a failure.

        Args:
            text: all that is known of it.
            elsewhere: without what a user's exception says.
        """
        if self.shares_tracebacks or text == elsewhere:
            return text
        return f"{elsewhere} (more in {self.site.name}'s own output and log; share_tracebacks: true tells all)"

    def fail(self, error: BaseException, text: str = "", elsewhere: str = "") -> None:
        """Tell all others that this data center failed. To be called once, from the handler of ``error``.

        Joins the others' next meeting with the error, which then ends them all. If they do not come within
        10 s (they may be deep in an epoch, or stuck in a collective with this rank), the error is
        printed and all ranks are ended. Returns at once when all ranks raise ``error`` anyway.

        Args:
            error: what happened on this rank.
            text: what happened to the data center, where its ranks have agreed on that (:meth:`regroup`).
            elsewhere: what other data centers hear of it instead.
        """
        if is_everywhere(error):
            return
        # Who left a meeting half-way, by a timeout or by an error in what is done meanwhile, cannot come to another.
        # Separate ones do not wait for each other there.
        if not (isinstance(error, RoundTimeoutError) or (self.waiting and not self.between.separate)):
            try:
                if not text:
                    self.break_center(error)
                    noticed = isinstance(error, CenterBrokenError)
                    mine = ("", "") if noticed else (describe_error(error), describe_elsewhere(error))
                    found = [said for said in self.regroup(mine, pacing.GRACE) if said[0]]
                    text, elsewhere = found[0] if found else ("a rank failed", "a rank failed")
                self._meet(_FAILURE, Failed(self.told(text, elsewhere or text)), pacing.GRACE)
            except PeerError:
                mark_everywhere(error)  # now all know
                return
            except RoundTimeoutError:
                pass
        self.abort(text or describe_error(error))

    def abort(self, text: str) -> NoReturn:
        """Print ``text``, and end all ranks at once, wherever they are."""
        message = f"data center {self.site.name} ({self.site.host}): {text}"
        print(f"colearn-hpc: error: {message}", file=sys.stderr, flush=True)
        time.sleep(0.2)  # the launcher forwards what was printed by a path of its own
        self.between.give_up(ABORT_CODE)

    # --- before round 0 ---------------------------------------------------------------------------------

    def compare(self, topic: Topic, fingerprint: Mapping[str, str]) -> None:
        """Check that all ranks run the same thing. Collective over the world.

        Raises:
            FingerprintError: on all ranks, naming the first difference and the data center that has it.
        """
        items = [f"{key} = {value}" for key, value in fingerprint.items()]
        self.agree(items, lambda mine, other: difference(self.site.name, mine, self.site.name, other))
        digest = hashlib.sha256("\n".join(items).encode()).hexdigest()
        if len(set(self.meet(topic, digest).contents.values())) == 1:
            return
        contents = self.meet(Topic(TopicKind.DIFFERENCE, detail=topic.kind.value), items).contents
        names, (first, mine) = self.between.names, next(iter(contents.items()))
        for k, items in contents.items():
            if items != mine:
                raise FingerprintError(difference(names[first], mine, names[k], items)).on_all_ranks()

    def agree(self, content: T, wrong: Callable[[T, T], str]) -> None:
        """Check that all ranks of this data center bring the same. Collective over the data center.

        Args:
            content: what this rank brings.
            wrong: what is said of the leader's and a different one.

        Raises:
            FingerprintError: on the leader; the others hear of it at the next meeting.
        """
        contents = self.site.gather(content)
        for other in contents or ():
            if other != content:
                raise FingerprintError(wrong(content, other))


def is_everywhere(error: BaseException) -> bool:
    """Whether all ranks know of the error: each raises it by itself, or has been told."""
    return any(getattr(one, "everywhere", False) for one in _handled(error))


def mark_everywhere(error: BaseException, after_the_end: bool = False) -> None:
    """Note for :func:`is_everywhere`, and for :func:`is_after_the_end`, that nobody has to be told of the error."""
    with contextlib.suppress(AttributeError):  # almost every exception takes the marks, ours or not
        error.everywhere = True  # type: ignore[attr-defined]
        if after_the_end:
            error.after_the_end = True  # type: ignore[attr-defined]


def is_after_the_end(error: BaseException) -> bool:
    """Whether the error came when the run had finished, and is its own rank's affair."""
    return any(getattr(one, "after_the_end", False) for one in _handled(error))


def _handled(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that were being handled when it was raised: Lightning calls user code for an error, such as a
    logger's ``finalize``, and where that fails too, its error takes the place of the first one."""
    found: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in found:
        found.add(id(one))
        yield one
        one = one.__context__


def _together(found: list[tuple[Topic, Brought]]) -> tuple[Topic, Brought]:
    """What a data center brings, from what its ranks bring, by center_rank."""
    texts = list(dict.fromkeys(brought.text for _, brought in found if isinstance(brought, Failed)))
    if texts:
        return _FAILURE, Failed("\n".join(texts))
    reasons = [brought.reason for _, brought in found if isinstance(brought, Stopping)]
    if reasons:
        return _STOP, Stopping(max(reasons, key=len))
    if len({topic for topic, _ in found}) > 1:
        return _FAILURE, Failed(different_topics({f"rank {r}": topic for r, (topic, _) in enumerate(found)}))
    return found[0]
