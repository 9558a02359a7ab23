"""Restart of a participant: a data center that failed begins again from its own last resume point.

"If a participant fails, the server restarts it" (Mi et al. 2020). All ranks of the data center come together, whatever
each was doing, agree on what went wrong, and train again from the resume point; the other data centers go on training,
or wait. What the failed one had already heard from them is told to it again (``mpi/exchange.py``), so that the run
ends with the bits of one in which nothing happened.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
import torch

from colearn_hpc.errors import CenterBrokenError, RoundTimeoutError
from colearn_hpc.mpi import pacing
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.messages import describe
from colearn_hpc.trainer.environment import DataCenterEnvironment
from colearn_hpc.trainer.resume_points import find_newest_point
from colearn_hpc.trainer.sit_out import Leap, sit_out

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

log = logging.getLogger("colearn_hpc")

OnFailure = Literal["stop", "continue_without"]

REGROUP_PATIENCE = 600.0  # s for the ranks of a data center to leave what they are doing


@dataclass(frozen=True)
class Failure:
    """What one rank of a data center that failed knows of it.

    Attributes:
        center_rank: whose it is.
        text: for people; empty where the rank only felt another's failure.
        line: the class of the error and the innermost line of code in it.
        place: round, local epoch and batch in which the rank was.
        restartable: whether this rank could begin again.
        averaged: the round's mean is taken already.
    """

    center_rank: int
    text: str
    line: str
    place: tuple[int, int, int]
    restartable: bool
    averaged: bool = False


@dataclass(frozen=True)
class Verdict:
    """What follows from a failure.

    Attributes:
        action: begin again, sit out this round (``on_failure="continue_without"``), or end the run.
        text: what happened, and why this follows.
        number: which restart in this round this is.
    """

    action: Literal["restart", "sit out", "stop"]
    text: str
    number: int = 0


class Restarts:
    """Decides what follows from a data center's failures, and remembers where to begin again.

    Args:
        limit: restarts in one round.
        on_failure: what comes when they are used up.

    Attributes:
        supervised: somebody is there to begin again, :func:`run_with_restarts`.
        verdict: what followed from the last failure.
        under_way: this attempt is a restart: the other data centers are far from a run's start.
        leap: where to go on instead of at the resume point, after a round that was sat out.
    """

    def __init__(self, limit: int = 3, on_failure: OnFailure = "stop") -> None:
        self.limit, self.on_failure = limit, on_failure
        self.supervised = False
        self.verdict: Verdict | None = None
        self.under_way = False
        self.leap: Leap | None = None
        self._round, self._count = -1, 0
        self._last: tuple[str, int, tuple[int, int, int]] | None = None

    def after(self, error: BaseException, colearning: CoLearning, trainer: pl.Trainer) -> Verdict:
        """Come together, and judge. Collective over the data center, in whatever state each rank is.

        Does not return where the ranks do not come together: then the world is aborted.
        """
        exchange = colearning.exchange
        batch = trainer.fit_loop.batch_idx
        failure = failure_of(error, colearning, batch, self.supervised and can_restart(error, exchange))
        if isinstance(error, RoundTimeoutError):
            exchange.abort(failure.text)
        exchange.break_center(error)
        if (environment := environment_of(trainer)) is not None:
            environment.leave_process_group()
        try:
            failures = exchange.regroup(failure, REGROUP_PATIENCE if failure.restartable else pacing.GRACE)
        except RoundTimeoutError as lost:
            exchange.abort(f"{failure.text}\n({lost})")
        self.verdict = self.judge(failures)
        if self.verdict.action == "restart":
            what = f"restarting ({self.verdict.number} of {self.limit} in this round)"
            last_line = self.verdict.text.splitlines()[-1]
            exchange.progress(lambda: f"{what}: {last_line}", now=True)
            if exchange.center.is_leader:
                log.info("%s", self.verdict.text)
                log.warning("%s, %s: %s", exchange.center.name, what, last_line)
        elif self.verdict.action == "sit out" and exchange.center.is_leader:
            log.warning("%s sits out round %d: %s", exchange.center.name, colearning.round, self.verdict.text)
        return self.verdict

    def judge(self, failures: Sequence[Failure]) -> Verdict:
        """What to do after one failure.

        Args:
            failures: one per rank of the data center.
        """
        cause = next((f for f in failures if f.text), failures[0])
        text = cause.text or "a rank was lost"
        if not all(f.restartable for f in failures):
            return Verdict("stop", text)
        current = max(f.place[0] for f in failures)
        if current != self._round:
            self._round, self._count, self._last = current, 0, None
        same = (cause.line, cause.center_rank, cause.place)
        if same == self._last:
            reason = f"after restart {self._count} the same error came back at the same batch: it would come again"
        elif self._count >= self.limit:
            reason = f"restarts={self.limit} of round {current} are used up"
        else:
            self._count, self._last = self._count + 1, same
            return Verdict("restart", text, self._count)
        self._last = None
        goes_on = self.on_failure == "continue_without" and not any(f.averaged for f in failures)
        return Verdict("sit out" if goes_on else "stop", f"{text}\n({reason})")


def failure_of(error: BaseException, colearning: CoLearning, batch: int, restartable: bool) -> Failure:
    """What this rank has to say about ``error``."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__
    place = (colearning.round, colearning.epoch_in_round, batch)
    felt = isinstance(error, CenterBrokenError) or _is_lost_peer(error)
    return Failure(
        colearning.center.rank, "" if felt else describe(error), line, place, restartable, colearning.averaged
    )


def can_restart(error: BaseException, exchange: Exchange) -> bool:
    """Whether beginning again may help against this error, and would find its way."""
    if not isinstance(error, Exception) or isinstance(error, RoundTimeoutError):
        return False
    return exchange.can_replay and not getattr(error, "everywhere", False)


def environment_of(trainer: pl.Trainer) -> DataCenterEnvironment | None:
    """The Trainer's environment, if it is ours; a data center of one rank needs none."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment if isinstance(environment, DataCenterEnvironment) else None


def renew(trainer: pl.Trainer) -> None:
    """Give the data center's next process group an address of its own. Collective over the data center."""
    if (environment := environment_of(trainer)) is not None:
        environment.renew_address()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # after running out of memory, what the failed attempt held


def run_with_restarts(
    colearning: CoLearning,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    attempt: Callable[[Any], None],
    ckpt_path: Any,
) -> None:
    """Call ``attempt(ckpt_path)`` until it ends by itself, or the policy ends it.

    Raises:
        Exception: whatever ended the run.
    """
    restarts = colearning.restarts
    restarts.supervised = True
    modes = [(part, part.training) for part in model.modules()]
    while True:
        try:
            return attempt(ckpt_path)
        except Exception:
            verdict, restarts.verdict = restarts.verdict, None
            if verdict is None or verdict.action == "stop":
                raise
        # The traceback is gone with its handler, and what it held: the failed attempt's batch, loader and graph.
        try:
            if verdict.action == "sit out":
                restarts.leap = sit_out(colearning, trainer, verdict.text)
            renew(trainer)
            for part, training in modes:
                part.training = training  # a failure in validation leaves them as validation wants them
            trainer.num_sanity_val_steps = 0
            ckpt_path = find_newest_point(colearning.folder, colearning.exchange)
            colearning.exchange.journal.rewind()
            restarts.under_way = True
        except Exception as error:
            colearning.exchange.fail(error)
            raise


def _is_lost_peer(error: BaseException) -> bool:
    """Whether the error is how torch's backends say that another rank has left the process group."""
    signs = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "NCCL communicator was aborted")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
