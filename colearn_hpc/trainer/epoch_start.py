"""What comes before every other callback: at a local epoch's beginning, for one that logs the rate must find this
epoch's; and at the Trainer's end, for one may fail there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Callback
from colearn_hpc.trainer.lightning_gaps import pass_over_empty_hooks


class EpochStart(Callback):
    """Begins a local epoch; added by :class:`CoLearning`, in front of all others.

    Args:
        start: what is to be done when it begins.
        start_batch: what is to be done when all others have had their say, and a batch is to be trained, the first one
            or not; returns whether it is wanted at the next one too.
        end: what is to be done when the Trainer has ended its last epoch.
    """

    def __init__(
        self,
        start: Callable[[pl.Trainer], None],
        start_batch: Callable[[pl.Trainer, bool], bool],
        end: Callable[[], None],
    ) -> None:
        self._start, self._start_batch, self._end = start, start_batch, end
        pass_over_empty_hooks(self)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        vars(self).pop("on_train_batch_start", None)  # it is wanted again
        self._start(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._start_batch(trainer, batch_idx == 0):
            self.on_train_batch_start = None  # type: ignore[assignment, method-assign]  # Lightning passes over it

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()
