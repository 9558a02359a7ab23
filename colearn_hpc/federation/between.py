"""Between sites that share no MPI world: a :class:`~colearn_hpc.between.Between` over gRPC to a coordinator.

One object per rank of a site; only the leader has a connection, and it only dials out. Outcomes lie at the coordinator:
a site that comes again to a meeting or a mean, after it was killed, is told what it was told.

A site is its own master: it stops, fails and restarts alone, and what the data centers of one MPI world say to each
other about folders and places on disks it answers itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from colearn_hpc.between import Offer
from colearn_hpc.errors import ConfigurationError, FederationError, LeftBehindError
from colearn_hpc.federation.credentials import Certified
from colearn_hpc.federation.link import Link, Membership, Question
from colearn_hpc.federation.mean import FederatedMean, Stream, hello_of, pieces
from colearn_hpc.federation.wire import CHUNK, JOINED, ROUND_MEAN, Hello, texts
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.messages import (
    Arrival,
    Brought,
    Failed,
    Outcome,
    Stopping,
    Topic,
    TopicKind,
    from_plain,
    to_plain,
)
from colearn_hpc.protocol.plain import PlainError

log = logging.getLogger("colearn_hpc")

# What a site answers itself: its files, its end.
ALONE = frozenset(
    {
        TopicKind.RUN_FOLDER,
        TopicKind.FOLDER_IN_USE,
        TopicKind.FOLDER_SEEN,
        TopicKind.OUTPUT_FOLDERS,
        TopicKind.RESUME_POINTS,
        TopicKind.PLACES,
        TopicKind.STOP,
        TopicKind.FAILURE,
    }
)
_LAST_WORDS = 5.0  # s for what is said when this site leaves
_STOP_PATIENCE = 2.0  # s for which a site that is to stop still waits for the others at a meeting


class FederatedBetween:
    """A :class:`~colearn_hpc.between.Between` of one site.

    Args:
        membership: which site of which federation.
        leads: whether this rank leads the site; the others have no connection.
        end: ends all ranks of the site, with an exit code.
    """

    replays = False
    separate = True

    def __init__(self, membership: Membership, leads: bool, end: Callable[[int], NoReturn]) -> None:
        self.index, self.names = membership.index, membership.federation.names
        self.agreed: Mapping[str, str] = membership.federation.items()
        sites = membership.federation.sites
        self.may_preside: frozenset[int] | None = frozenset(k for k, one in enumerate(sites) if "preside" in one.may)
        self.roster = membership.federation.active
        self.carries, self.credentials = leads, Certified(membership)
        self.meanwhile: Callable[[], object] = _nothing
        self._end = end
        self._stop = ""  # why this site stops
        self._left_mean = False
        self._round: int | None = None  # whose end was met last
        self._news: Question | None = None
        self._told = -math.inf
        self._away = False
        self._link = Link(membership) if leads else None

    # --- meetings ---------------------------------------------------------------------------------------

    def meet(self, topic: Topic, brought: Brought, patience: float | None, may_miss: bool) -> Outcome:
        """Wait for all members. Patience, and who may be missed, are the federation's.

        Raises:
            FederationError: the coordinator refuses.
            LeftBehindError: this process cannot go on, though a new one can.
        """
        if topic.kind in ALONE or isinstance(brought, Stopping | Failed):
            if isinstance(brought, Stopping | Failed):
                self._leave("walltime" if isinstance(brought, Stopping) else "failed", brought)
            return self._alone(topic, brought)
        if self._left_mean:
            return self._stops()
        question = self._linked.ask(to_plain(Arrival(topic, brought)))
        waiting, left_out = pacing.Patience(), False
        while True:
            answer = question.poll()
            if answer is not None:
                outcome = self._outcome(answer)
                if outcome is not None:
                    if outcome.topic.kind is TopicKind.ROUND:
                        self._round = outcome.topic.round
                    return outcome
                if answer.get("left_out") is True and not left_out:
                    left_out = True
                    log.warning("%s: the others have gone on without this site; it is in again at a round's end", topic)
                question.again()
            self.meanwhile()
            if self._leaves() and waiting.seconds > _STOP_PATIENCE:
                question.cancel()
                return self._stops()
            if waiting.report_due():
                awaited = ", ".join(f"{name} ({text})" for name, text in self._linked.awaited.items())
                log.warning("%s: waiting for %s since %.0f s", topic, awaited or "the coordinator", waiting.seconds)
            question.wait(pacing.LONGEST_SLEEP)

    def _outcome(self, answer: dict[str, Any]) -> Outcome | None:
        """What an answer says; None: wait on."""
        for key, kind in (("begin_again", LeftBehindError), ("refused", FederationError)):
            if isinstance(why := answer.get(key), str):
                again = "; start this site again, it goes on with the others" if kind is LeftBehindError else ""
                raise kind(f"{texts(why, 1000)}{again}")
        if "outcome" not in answer:
            return None
        try:
            outcome = from_plain(answer["outcome"])
        except PlainError as error:
            raise FederationError(f"the coordinator sent {error}") from None
        if not isinstance(outcome, Outcome) or len(outcome.arrivals) != len(self.names):
            raise FederationError("the coordinator sent what is no outcome of this run")
        return outcome

    def _alone(self, topic: Topic, brought: Brought) -> Outcome:
        """The outcome of a meeting that no other site has to come to."""
        arrival = Arrival(topic, brought)
        return Outcome(topic, tuple(arrival if k == self.index else None for k in range(len(self.names))))

    def _stops(self) -> Outcome:
        """This site leaves a meeting at which others are awaited, or a mean."""
        reason = Stopping(self._why_stop() or "a signal")
        self._leave("walltime", reason)
        return self._alone(Topic(TopicKind.STOP), reason)

    def _leaves(self) -> bool:
        return bool(self._why_stop())

    def _why_stop(self) -> str:
        return self._stop or (self._link.stop_asked if self._link is not None else "")

    def tell(self, text: Callable[[], str], now: bool = False) -> None:
        if self._news is not None:
            try:
                if self._news.poll() is None:
                    return
            except (FederationError, LeftBehindError) as error:
                log.warning("%s", error)  # the next meeting says so to all ranks
            self._news = None
        moment = time.monotonic()
        if now or moment - self._told >= pacing.NEWS_INTERVAL:
            self._told = moment
            self._news = self._linked.ask(["news", text(), None])

    def listen(self) -> None:
        """The coordinator's answers bring what there is to be heard."""

    def ask_to_stop(self, reason: str) -> None:
        """This site stops; the others go on."""
        self._stop = self._stop or reason

    @property
    def from_round(self) -> int | None:
        """See :class:`~colearn_hpc.protocol.transport.Meetings`; known on the leader, after the first meeting."""
        return None if self._link is None else self._link.from_round

    @property
    def somebody_joins(self) -> bool:
        return self._link is not None and self._link.somebody_joins

    @property
    def joined(self) -> int | None:
        return None if self._link is None else self._link.joined

    @property
    def stop_asked(self) -> str:
        """Why all sites were asked to stop."""
        return self._link.stop_asked if self._link is not None else ""

    def finish(self, patience: float | None) -> list[str]:
        if self._linked.ask_now(["finished"], _LAST_WORDS * 6) is None:
            log.warning("the coordinator could not be told that this site has finished; it is to be ended by hand")
        self._away = True
        return []

    def give_up(self, code: int) -> NoReturn:
        self._leave("failed", None)
        self._end(code)

    def _leave(self, reason: str, brought: Brought | None) -> None:
        """Tell the coordinator that this site leaves, as far as that can be done at once. What failed stays here."""
        if self._link is None or self._away:
            return
        self._away = True
        what = brought.reason if isinstance(brought, Stopping) else ""
        if reason == "walltime" and "USR1" not in what:
            reason = "stopped"
        try:
            self._link.ask_now(["away", reason, ""], _LAST_WORDS)
        except (FederationError, LeftBehindError) as error:
            log.warning("%s", error)

    @property
    def _linked(self) -> Link:
        assert self._link is not None, "only the leader is called"
        return self._link

    # --- tensors ----------------------------------------------------------------------------------------

    def begin_mean(self, offer: Offer, present: tuple[int, ...]) -> FederatedMean:
        """Begin eq. 2 over the sites ``present``. To be called right after the meeting at a round's end.

        Raises:
            ConfigurationError: a coordinator cannot combine what is offered.
            ValueError: all weights are 0, or the offer's result does not fit.
        """
        if offer.encoding.middle is None:
            raise ConfigurationError("a coordinator takes means and sums; these models are combined in another way")
        assert self._round is not None, "a mean follows a round's end"
        hello = hello_of(self._round + 1, offer, present)
        return FederatedMean(
            self._linked, hello, offer, self.index, lambda: self.meanwhile(), self._leaves_mean, self.tell
        )

    def _leaves_mean(self, stands_still: float) -> bool:
        self._left_mean |= self._leaves() and stands_still > _STOP_PATIENCE
        return self._left_mean

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first site's tensors into every site's, in place.

        Raises:
            FederationError: the coordinator refuses, as where the sites' tensors differ in size.
        """
        self._from_one(tensors, 0, ROUND_MEAN, self.roster[0])

    def hand_on(self, tensors: Iterable[Tensor], round_index: int, giver: int) -> None:
        """See :class:`~colearn_hpc.between.Between`; whoever was handed it on before is not given it again.

        Raises:
            FederationError: the coordinator refuses, as where the sites' tensors differ in size.
        """
        self._from_one(tensors, round_index, JOINED, giver)

    def _from_one(self, tensors: Iterable[Tensor], number: int, part: int, giver: int) -> None:
        targets = [tensor.detach() for tensor in tensors]
        packed = [tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in targets]
        everything = torch.cat(packed) if packed else torch.empty(0, dtype=torch.uint8)
        if not len(everything):
            return
        weights = tuple(float(k == giver) for k in range(len(self.names)))
        hello = Hello(number, len(everything), "|u1", weights, self.roster, part)
        result = torch.empty_like(everything)
        stream = Stream(self._linked, hello, _rows_of(everything) if self.index == giver else None, _putter(result))
        waiting = pacing.Patience()
        while not stream.done.wait(0.01):
            self.meanwhile()
            if waiting.report_due():
                log.warning("waiting for the shared model since %.0f s", waiting.seconds)
        if stream.error is not None:
            raise stream.error
        if stream.void:
            if self.index != giver:
                raise FederationError(f"the coordinator says of what this site needs to join: {stream.void}")
            return
        for target, (start, stop) in zip(targets, pieces([len(piece) for piece in packed]), strict=True):
            target.copy_(result[start:stop].clone().view(target.dtype).reshape(target.shape))


def _rows_of(vector: Tensor) -> Callable[[int], memoryview]:
    content = vector.numpy().data.cast("B")
    return lambda chunk: content[chunk * CHUNK : (chunk + 1) * CHUNK]


def _putter(vector: Tensor) -> Callable[[int, memoryview], None]:
    content = vector.numpy().data.cast("B")

    def put(chunk: int, piece: memoryview) -> None:
        content[chunk * CHUNK : chunk * CHUNK + len(piece)] = piece

    return put


def _nothing() -> None:
    """Nothing is to be done meanwhile."""
