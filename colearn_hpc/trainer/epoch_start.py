"""A local epoch's beginning, before every other callback: one that logs the rate must find this epoch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from colearn_hpc.trainer.lightning_gaps import pass_over_empty_hooks


class EpochStart(Callback):
    """Begins a local epoch; added by :class:`CoLearning`, in front of all others.

    Args:
        start: what is to be done when it begins.
        first_batch: what is to be done when all others have had their say, and its first batch is to be trained.
    """

    def __init__(self, start: Callable[[pl.Trainer], None], first_batch: Callable[[pl.Trainer], None]) -> None:
        self._start, self._first_batch = start, first_batch
        pass_over_empty_hooks(self)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        vars(self).pop("on_train_batch_start", None)  # it is wanted again
        self._start(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._first_batch(trainer)
        self.on_train_batch_start = None  # type: ignore[assignment, method-assign]  # Lightning passes over it
