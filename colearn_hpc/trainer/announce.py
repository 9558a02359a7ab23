"""A finished round, told to loggers, to the log, and to callbacks that listen."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from colearn_hpc.protocol.reports import RoundReport
from colearn_hpc.trainer.lightning_gaps import callbacks_of

log = logging.getLogger("colearn_hpc")


def announce(trainer: pl.Trainer, record: RoundReport, stopping: bool) -> None:
    """Tell of a round.

    Args:
        trainer: its loggers get the round's numbers as ``colearn/...``, by optimizer steps; TensorBoard also gets them
            and the shared model's metrics as ``rounds/...``, by rounds; its callbacks that have ``round_closed(record,
            doubled)`` are called.
        record: the round.
        stopping: whether it was the last: then no doubling follows.
    """
    scalars = {"round": record.round, "local_epochs": record.local_epochs, "relative_change": record.relative_change}
    scalars |= {"learning_rate": record.learning_rates[-1]} if record.learning_rates else {}
    for logger in trainer.loggers:
        logger.log_metrics({f"colearn/{key}": float(value) for key, value in scalars.items()}, trainer.global_step)
        if isinstance(logger, TensorBoardLogger):  # a step of its own for each curve; other loggers have one for all
            by_round = {key: value for key, value in scalars.items() if key != "round"} | record.centers[
                0
            ].shared_metrics
            logger.log_metrics({f"rounds/{key}": float(value) for key, value in by_round.items()}, record.round)
    log.info("round %d averaged: T=%d, change %.4g", record.round, record.local_epochs, record.relative_change)
    doubled = record.next_local_epochs > record.local_epochs and not stopping
    if doubled:
        log.info("T doubles: %d -> %d local epochs a round", record.local_epochs, record.next_local_epochs)
    for listener in callbacks_of(trainer):
        if callable(closed := getattr(listener, "round_closed", None)):
            closed(record, doubled)
