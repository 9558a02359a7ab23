"""``status/NAME.json``: what a data center is doing, for ``colearn-hpc watch``; with its loss in its own folder.

Written by the data center's leader every few seconds, from a thread: a slow file system must not hold up training,
and a data center that waits for another one still shows that it is alive.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colearn_hpc._lightning as pl
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.run_folder import RunFolder, jsonable
from colearn_hpc.trainer.standing import Standing
from colearn_hpc.trainer.tally import Tally
from colearn_hpc.trainer.writing import PRIVATE, PUBLIC, write_atomically

log = logging.getLogger("colearn_hpc")

INTERVAL = 3.0  # s between two beats


class Heartbeat:
    """Notes where training stands, and lets a thread write it down.

    No callback of its own: for Lightning to call a callback's hooks at every batch costs more than what they do.

    Fields of the file: ``state`` (starting, training, validating, waiting, exchanging, finished, interrupted, failed),
    ``round``, ``local_epoch`` (from 1) of ``local_epochs`` (steps, where ``unit`` says so), ``batch`` of ``batches``,
    ``samples_per_second`` over the data center, ``loss`` of the last batch on the leader, ``seconds_left`` to the
    round's end, ``host``, and ``time``, when it was written (seconds since 1970).

    Args:
        place: this process's.
        standing: tells how the run stands.
        folder: the run's.
        tally: of what this rank has trained.
    """

    def __init__(self, place: Place, standing: Callable[[], Standing], folder: RunFolder, tally: Tally) -> None:
        self._place, self._standing, self._start, self._tally = place, standing, folder.start, tally
        self._own = folder.center_folder / "status.json"
        self._open = folder.folder / "status" / f"{place.center.name}.json"
        self._state = "starting"
        self._batches: int | None = None
        self._rate = 0.0  # batches per second
        self._last = (time.monotonic(), tally.examples, tally.batches)  # when, examples and batches at the beat before
        self._samples_rate = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write."""
        if self._place.center.is_leader:
            self._over.clear()  # a data center that begins again has ended once
            self._thread = threading.Thread(target=self._beat, name="colearn-heartbeat", daemon=True)
            self._thread.start()

    def trains(self, trainer: pl.Trainer) -> None:
        """Training goes on, perhaps in the middle of an epoch."""
        self._state = "training"
        batches = trainer.num_training_batches
        self._batches = int(batches) if batches != float("inf") else None

    def begins_epoch(self, trainer: pl.Trainer) -> None:
        """A local epoch begins."""
        self._tally.batch = 0
        self.trains(trainer)

    def validates(self) -> None:
        """Validation begins."""
        self._state = "validating"

    def end(self, state: str) -> None:
        """Write ``state``, and no more."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join(10)
        self._state, self._thread = state, None
        try:
            self._write()
        except OSError as error:
            log.info("status.json: %r", error)

    def status(self) -> dict[str, Any]:
        """What the file says."""
        now = self._standing()
        left, loss = self._seconds_left(now), self._tally.loss
        return {
            "state": (self._place.doing if not self._over.is_set() else "") or self._state,
            "round": now.round,
            "local_epoch": min(now.epoch + now.block, now.local_epochs),
            "local_epochs": now.local_epochs,
            **({"unit": "steps"} if now.in_steps else {}),
            "batch": self._tally.batch,
            "batches": self._batches,
            "samples_per_second": round(self._samples_rate, 1),
            "loss": None if loss is None else float(loss),
            "seconds_left": None if left is None else round(left, 1),
            "host": self._place.center.host,
            "time": round(time.time(), 1),
        }

    def _seconds_left(self, now: Standing) -> float | None:
        """To the round's end, at the pace of the last beat."""
        if not (self._batches and self._rate and self._state in ("training", "validating")):
            return None
        left = (now.local_epochs - now.epoch) * self._batches / max(now.block, 1)
        return max(0.0, (left - self._tally.batch) / self._rate)

    def text(self) -> str:
        """For those who may be waiting."""
        now = self._standing()
        left = self._seconds_left(now)
        batch = f"batch {self._tally.batch} of {self._batches or '?'}"
        soon = "" if left is None else f", about {left:.0f} s to the round's end"
        return f"{self._state} round {now.round}, {now.epoch_text}, {batch}{soon}"

    def _measure(self) -> None:
        """Rates since the last beat in which a batch ended."""
        before, examples, batches = self._last
        now, examples_now, batches_now = time.monotonic(), self._tally.examples, self._tally.batches
        if batches_now > batches:
            self._rate = (batches_now - batches) / (now - before)
            self._samples_rate = (examples_now - examples) / (now - before) * self._place.center.size
            self._last = (now, examples_now, batches_now)
        elif self._state != "training" or self._place.doing:
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
        self._put(self._own, self.status(), PRIVATE)
        self._open.parent.mkdir(exist_ok=True)
        self._put(self._open, {key: value for key, value in self.status().items() if key != "loss"}, PUBLIC)

    def _put(self, path: Path, status: dict[str, Any], mode: int) -> None:
        write_atomically(path, json.dumps(jsonable(status)) + "\n", self._start, mode)
