"""A local epoch's beginning, before every other callback: one that logs the rate must find this epoch's."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from colearn_hpc.trainer.lightning_gaps import pass_over_empty_hooks


class EpochStart(Callback):
    """Begins a local epoch; added by :class:`CoLearning`, in front of all others.

    Args:
        start: what is to be done.
    """

    def __init__(self, start: Callable[[pl.Trainer], None]) -> None:
        self._start = start
        pass_over_empty_hooks(self)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)
