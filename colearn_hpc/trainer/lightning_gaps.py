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
