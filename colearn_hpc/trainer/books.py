"""The books of a round: what is decided and written down when its mean is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from colearn_hpc.algorithm.local_epochs import RoundOutcome
from colearn_hpc.trainer import rules
from colearn_hpc.trainer.announce import announce
from colearn_hpc.trainer.round_log import CenterRecord, RoundRecord, summary_of

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

TRAINER_ENDED = "a data center's Trainer ended"


@dataclass
class Books:
    """What this data center knows of a round that it has trained.

    Attributes:
        round: i.
        local_epochs: T_i, as trained.
        epochs_done: local epochs finished at its end.
        rates: of its local epochs.
        record: this data center's part.
        relative_change, next_local_epochs: what was found and decided when its mean was there.
    """

    round: int
    local_epochs: int
    epochs_done: int
    rates: list[float]
    record: CenterRecord
    relative_change: float | None = None
    next_local_epochs: int = 0

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> Books | None:
        """From what ``asdict`` made of it."""
        return None if state is None else cls(**state | {"record": CenterRecord(**state["record"])})


def is_last(colearning: CoLearning, books: Books, trainer: pl.Trainer) -> bool:
    """Whether no round follows, as far as it is known beforehand, by all data centers alike."""
    by_rounds = colearning.rounds is not None and books.round + 1 >= colearning.rounds
    return by_rounds or 0 < (trainer.max_epochs or 0) <= books.epochs_done


def decide(colearning: CoLearning, books: Books, change: float, leaves: bool) -> tuple[float, int, str]:
    """The relative change, T_{i+1}, and why to stop. Runs on the first leader only.

    Args:
        colearning: knows the rule.
        books: of round i.
        change: of eq. 4.
        leaves: some data center takes part in no further round.
    """
    rate = books.rates[-1] if books.rates else 0.0
    outcome = RoundOutcome(books.round, colearning.rule_epochs, change, books.epochs_done, rate)
    stop = TRAINER_ENDED if leaves else ""
    if colearning.rounds is not None and books.round + 1 >= colearning.rounds:
        stop = f"rounds={colearning.rounds}"
    return change, rules.checked_epochs(colearning.rule.next(outcome)), stop


def close(colearning: CoLearning, books: Books, trainer: pl.Trainer, stop: bool) -> None:
    """Log a round whose mean is there. Collective over the world.

    Args:
        colearning: whose round.
        books: of it.
        trainer: for its loggers.
        stop: this data center's Trainer ends.
    """
    statuses = colearning.exchange.meet(f"round {books.round}: report", (books.record, stop))
    reports = [
        statuses[c.leader].content or (CenterRecord(c.name, absent=statuses[c.leader].absent), False)
        for c in colearning.center.topology.centers
    ]
    record = RoundRecord(
        round=books.round,
        local_epochs=books.local_epochs,
        learning_rates=books.rates,
        relative_change=books.relative_change or 0.0,
        epochs_done=books.epochs_done,
        next_local_epochs=books.next_local_epochs,
        centers=[report for report, _ in reports],
    )
    if not colearning.stop_reason and any(wants for _, wants in reports):
        colearning.stop_reason = TRAINER_ENDED
    colearning.round_log.append(record)
    colearning.round_log.summarize(**summary_of(colearning), status="running")
    announce(trainer, record, bool(colearning.stop_reason))
    colearning.last_record = record
