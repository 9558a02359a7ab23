"""``centers/NAME/status.json``: what a data center is doing, for ``colearn-hpc watch``.

Written by the data center's leader every few seconds, from a thread: a slow file system must not hold up training,
and a data center that waits for another one still shows that it is alive.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from colearn_hpc.errors import Interrupted
from colearn_hpc.trainer.round_log import jsonable, write_atomically

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

log = logging.getLogger("colearn_hpc")

INTERVAL = 3.0  # s between two beats


class Heartbeat(Callback):
    """Notes where training stands, and lets a thread write it down.

    Part of :class:`~colearn_hpc.trainer.recovery.EpochEnd`, and no callback of its own: for Lightning to call a
    callback's hooks at every batch costs more than what they do.

    Fields of the file: ``state`` (starting, training, validating, waiting, exchanging, finished, interrupted, failed),
    ``round``, ``local_epoch`` (from 1) of ``local_epochs``, ``batch`` of ``batches``, ``samples_per_second`` over the
    data center, ``loss`` of the last batch on the leader, ``seconds_left`` to the round's end, ``host``, and
    ``time``, when it was written (seconds since 1970).
    """

    def __init__(self, colearning: CoLearning) -> None:
        self._colearning = colearning
        self._state = "starting"
        self._batch = 0
        self._batches: int | None = None
        self._loss: Any = None
        self._rate = 0.0  # batches per second
        self._last = (time.monotonic(), 0, 0)  # when, examples and batches at the beat before
        self._seen_batches = 0
        self._samples_rate = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._colearning.center.is_leader:
            self._over.clear()  # a data center that begins again has ended once
            self._thread = threading.Thread(target=self._beat, name="colearn-heartbeat", daemon=True)
            self._thread.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._state = "training"
        self._count_batches(trainer)  # an epoch resumed in its middle has no start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch = 0
        self._count_batches(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # At every batch: as little as can be.
        self._batch = batch_idx + 1
        self._seen_batches += 1
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        # Kept as it is: to read a GPU's number here would wait for the batch.
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) and loss.requires_grad else loss
        self._colearning.exchange.progress(self._text)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._state = "validating"

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._colearning.exchange.progress(self._text)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._state = "training"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end("finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end("interrupted" if isinstance(exception, Interrupted) else "failed")

    def status(self) -> dict[str, Any]:
        """What the file says."""
        colearning = self._colearning
        left = self._seconds_left()
        return {
            "state": (colearning.exchange.doing if not self._over.is_set() else "") or self._state,
            "round": colearning.round,
            "local_epoch": min(colearning.epoch_in_round + 1, colearning.local_epochs),
            "local_epochs": colearning.local_epochs,
            "batch": self._batch,
            "batches": self._batches,
            "samples_per_second": round(self._samples_rate, 1),
            "loss": None if self._loss is None else float(self._loss),
            "seconds_left": None if left is None else round(left, 1),
            "host": colearning.center.host,
            "time": round(time.time(), 1),
        }

    def _seconds_left(self) -> float | None:
        """To the round's end, at the pace of the last beat."""
        if not (self._batches and self._rate and self._state in ("training", "validating")):
            return None
        epochs = self._colearning.local_epochs - self._colearning.epoch_in_round
        return max(0.0, (epochs * self._batches - self._batch) / self._rate)

    def _count_batches(self, trainer: pl.Trainer) -> None:
        batches = trainer.num_training_batches
        self._batches = int(batches) if batches != float("inf") else None

    def _text(self) -> str:
        """For those who may be waiting; by messages, because they need not see this data center's files."""
        colearning, left = self._colearning, self._seconds_left()
        epoch = f"{min(colearning.epoch_in_round + 1, colearning.local_epochs)} of {colearning.local_epochs}"
        batch = f"batch {self._batch} of {self._batches or '?'}"
        soon = "" if left is None else f", about {left:.0f} s to the round's end"
        return f"{self._state} round {colearning.round}, local epoch {epoch}, {batch}{soon}"

    def _measure(self) -> None:
        """Rates since the last beat in which a batch ended."""
        before, examples, batches = self._last
        now, examples_now = time.monotonic(), self._colearning.examples
        if self._seen_batches > batches:
            self._rate = (self._seen_batches - batches) / (now - before)
            self._samples_rate = (examples_now - examples) / (now - before) * self._colearning.center.size
            self._last = (now, examples_now, self._seen_batches)
        elif self._state != "training" or self._colearning.exchange.doing:
            self._last = (now, examples, batches)  # waiting is no training time

    def _beat(self) -> None:
        while True:
            try:
                self._measure()
                self._write()
            except Exception as error:  # a full disk must not end a run that could do without this file
                log.info("status.json: %r", error)
            if self._over.wait(INTERVAL):
                return

    def _write(self) -> None:
        path = self._colearning.round_log.center_folder / "status.json"
        write_atomically(path, json.dumps(jsonable(self.status())) + "\n")

    def _end(self, state: str) -> None:
        if self._thread is None:
            return
        self._over.set()
        self._thread.join(10)
        self._state, self._thread = state, None
        try:
            self._write()
        except OSError as error:
            log.info("status.json: %r", error)
