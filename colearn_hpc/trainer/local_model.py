"""What a data center has trained by itself, kept beside the shared model: `validate --cross-site` compares the two."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Callback
from colearn_hpc.errors import words_of
from colearn_hpc.join import DataCenter
from colearn_hpc.trainer.resume_points import save_atomically
from colearn_hpc.trainer.standing import Standing

log = logging.getLogger("colearn_hpc")

FILE = "local.ckpt"


class LocalModel(Callback):
    """Writes each data center's own model at a round's end, before the mean takes its place, to
    ``centers/NAME/local.ckpt``: weights alone, one file, which the next round replaces.

    The file stays in its data center, like its resume points. It must stand before :class:`CoLearning` in the
    Trainer's list, which takes the mean.

    Args:
        standing: tells how the run stands, :meth:`CoLearning.standing`.
        center: this process's.
    """

    def __init__(self, standing: Callable[[], Standing], center: DataCenter) -> None:
        self._standing, self._center = standing, center
        self._trained = False  # something, since the file was written

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._trained = True
        if trainer.is_last_batch:
            now = self._standing()
            if now.epoch + now.block >= now.local_epochs:
                self._write(trainer, now)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self._standing()
        if self._trained and now.shows is None:  # max_steps, max_time or a user's stop, in mid-round
            self._write(trainer, now)

    def _write(self, trainer: pl.Trainer, now: Standing) -> None:
        """Collective over the data center."""
        self._trained = False
        path = now.center_folder / FILE
        try:
            save_atomically(trainer, path, self._center, weights_only=True, private=True)
        except OSError as error:
            log.warning("%s could not be written (%s)", path, words_of(error))
