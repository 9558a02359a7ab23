"""A finished round, told to loggers, to the log, and to callbacks that listen."""

from __future__ import annotations

import logging
import math
import sys

from tqdm import tqdm

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import kinds
from colearn_hpc.protocol.reports import RoundReport
from colearn_hpc.trainer.lightning_gaps import callbacks_of
from colearn_hpc.trainer.standing import Standing

log = logging.getLogger("colearn_hpc")


def announce(trainer: pl.Trainer, record: RoundReport, stopping: bool, presides: bool) -> None:
    """Tell of a round.

    Args:
        trainer: its loggers get the round's numbers as ``colearn/...``, by optimizer steps; TensorBoard also gets them
            and the shared model's metrics as ``rounds/...``, by rounds; its callbacks that have ``round_closed(record,
            doubled)`` are called. Where there is none, as in a user's own script, a line is printed.
        record: the round.
        stopping: whether it was the last: then no doubling follows.
        presides: whether this rank speaks for the run.
    """
    scalars = {"round": record.round, "local_epochs": record.local_epochs, "relative_change": record.relative_change}
    scalars |= {"learning_rate": record.learning_rates[-1]} if record.learning_rates else {}
    boards = kinds("loggers", "TensorBoardLogger")
    for logger in trainer.loggers:
        logger.log_metrics({f"colearn/{key}": float(value) for key, value in scalars.items()}, trainer.global_step)
        if isinstance(logger, boards):  # a step of its own for each curve; other loggers have one for all
            by_round = {key: value for key, value in scalars.items() if key != "round"}
            by_round |= record.centers[0].shared_metrics
            logger.log_metrics({f"rounds/{key}": float(value) for key, value in by_round.items()}, record.round)
    log.info("round %d averaged: T=%d, change %.4g", record.round, record.local_epochs, record.relative_change)
    doubled = record.next_local_epochs > record.local_epochs and not stopping
    if doubled:
        now, then = record.local_epochs, record.next_local_epochs
        log.info("T doubles: %d -> %d %s a round", now, then, record.unit_text)
    listeners = [one for one in callbacks_of(trainer) if callable(getattr(one, "round_closed", None))]
    for listener in listeners:
        listener.round_closed(record, doubled)  # type: ignore[attr-defined]
    if presides and not listeners:
        say(round_line(record))


def introduce(trainer: pl.Trainer, standing: Standing) -> None:
    """Tell where the run's folder is, where nobody else will: in a script of the user's own."""
    if standing.presides and not any(callable(getattr(one, "round_closed", None)) for one in callbacks_of(trainer)):
        bound = f"{standing.rounds} rounds" if standing.rounds else "until the Trainer's limits"
        say(f"co-learning over {standing.centers}; {bound}; run folder {standing.folder}")


def round_line(record: RoundReport) -> str:
    """A round for people, in a line."""
    rate = f", rate {record.learning_rates[-1]:.4g}" if record.learning_rates else ""
    change = f", change {record.relative_change:.4f}" if math.isfinite(record.relative_change) else ""
    shared = "".join(f", {name} {value:.4f}" for name, value in record.centers[0].shared_metrics.items())
    sent = sum(center.bytes_sent for center in record.centers) / 1e6
    return f"round {record.round}: T={record.local_epochs}{rate}{change}{shared}, {sent:.2f} MB sent"


def say(line: str) -> None:
    """Tell the user, above a bar that may be on the terminal."""
    tqdm.write(f"colearn-hpc: {line}", file=sys.stderr)
    sys.stderr.flush()
