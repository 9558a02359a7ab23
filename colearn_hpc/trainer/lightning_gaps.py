"""The few things for which Lightning 2.6 has no (typed) public face. Look here first when Lightning changes."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """The Trainer's own list of callbacks, public but unannotated in 2.6; what is appended is called."""
    return trainer.callbacks  # type: ignore[attr-defined]


def rename_version(logger: CSVLogger | TensorBoardLogger, suffix: str) -> None:
    """Append to a logger's version, after it has made its folder: 2.6 makes it before a callback's first hook."""
    base = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    logger._version = f"{base}-{suffix}"
    logger._experiment = None


def wants_stop(trainer: pl.Trainer) -> bool:
    """Whether the Trainer will leave its loop after this epoch; 2.6 decides it after the last hook."""
    met_epochs = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
    met_steps = trainer.global_step >= (trainer.min_steps or 0)
    return (trainer.should_stop and met_epochs and met_steps) or 0 <= trainer.max_steps <= trainer.global_step
