"""Resume points: what a data center needs to continue with the bits of a run that was never interrupted.

A resume point is a Lightning checkpoint (weights, optimizers, loops, callbacks) plus the random number
generators of every rank. One is written at the start, at the end of every local epoch, and in the middle where the run
was asked to stop (see mid_epoch.py). For the files themselves see resume_points.py.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from colearn_hpc.algorithm.shared_model import FlatModel, first_non_finite, trainable_parameters
from colearn_hpc.errors import FingerprintError, Interrupted, ParticipantError
from colearn_hpc.trainer import signals
from colearn_hpc.trainer.fingerprint import check_data
from colearn_hpc.trainer.heartbeat import Heartbeat
from colearn_hpc.trainer.lightning_gaps import add_running_sums, pass_over_empty_hooks, restart_epoch
from colearn_hpc.trainer.mid_epoch import epoch_metrics, is_safe_point, restore_metrics
from colearn_hpc.trainer.resume_points import list_resume_points, obsolete, path_of, save_atomically
from colearn_hpc.trainer.sit_out import land

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

log = logging.getLogger("colearn_hpc")


class EpochEnd(Heartbeat, Checkpoint):
    """Closes a local epoch after everyone else: the round's books, then the resume point. Stops the run when asked to,
    and is its heartbeat.

    A ``Checkpoint`` by class, because Lightning calls those last; added by :class:`CoLearning`.
    """

    best_model_path = ""  # Lightning asks the first Checkpoint for it; without ModelCheckpoint that is this one

    def __init__(self, colearning: CoLearning) -> None:
        super().__init__(colearning)
        self._generators: list[dict[str, Any]] = []  # as they were before the epoch's data iterator was made
        self._middle: dict[str, Any] = {}  # where in the epoch, if in the middle of it
        self._sums: dict[str, dict[str, torch.Tensor]] = {}
        self._resumed = False
        for callback in (self, colearning):
            pass_over_empty_hooks(callback)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._resumed:
            # Here, and not later: the first epoch's data iterator, made next, already draws.
            set_rank_generators(self._generators, self._colearning.center.rank)
        else:
            self._generators = self._colearning.exchange.link.gather(generators()) or []
        if self._colearning.resume_points:
            self._colearning.exchange.stops.signal = signals.received
            signals.listen()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_back_signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._take_back_signals()
        colearning = self._colearning
        leap = colearning.restarts.leap
        if leap is not None:
            self._middle = {}
            land(leap, colearning, trainer)
        batch = self._middle.get("batches", 0)
        colearning.data = check_data(trainer, colearning.data)
        log.info("training from round %d, epoch %d, batch %d", colearning.round, colearning.epochs_done, batch)
        if self._resumed:
            self._check_ranks()
            set_rank_generators(self._generators, colearning.center.rank)
            restart_epoch(trainer, batch)
        if self._middle:
            mine = self._middle["ranks"][colearning.center.rank]
            restore_metrics(pl_module, mine["metrics"])
            self._sums = mine["sums"]
            set_generators(mine["generators"])
            self._middle = {}
        if colearning.resume_points:
            if not self._resumed:
                self._save(trainer)
            if colearning.restarts.supervised:
                colearning.exchange.journal.kept = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._sums:
            add_running_sums(trainer, self._sums)
        colearning = self._colearning
        if not colearning.resume_points or not colearning.exchange.stops.agreed():
            return
        if is_safe_point(trainer, batch_idx):
            colearning.read_clock()
            mine = epoch_metrics(trainer, pl_module) | {"generators": generators()}
            mine["sums"] |= self._sums
            self._middle = {"batches": batch_idx + 1, "ranks": colearning.exchange.link.gather(mine)}
            self._save(trainer, batch_idx + 1)
            self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        colearning = self._colearning
        colearning.finish_epoch(trainer)
        if not colearning.resume_points:
            return
        self._check_finite(pl_module)
        self._generators = colearning.exchange.link.gather(generators()) or []
        self._sums = {}
        self._save(trainer)
        # Known to all data centers alike: after the last round there is nothing left to stop.
        if not colearning.stop_reason and colearning.exchange.stops.agreed():
            self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        signals.forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, Interrupted):
            signals.served()
            if self._colearning.center.is_first:
                log.warning("%s; every data center has its resume point: start again with --resume", exception)

    def state_dict(self) -> dict[str, Any]:
        return {"generators": self._generators, "middle": self._middle}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict["generators"]
        self._middle = state_dict.get("middle", {})
        self._resumed = True

    def _save(self, trainer: pl.Trainer, batches: int = 0) -> None:
        """Write this data center's resume point. Collective over the data center.

        A disk that is full or read-only ends nothing: the point before stays, and the next one may succeed.
        """
        colearning, problem = self._colearning, ""
        folder = colearning.round_log.center_folder
        path = path_of(folder, colearning.rounds_done, colearning.epochs_done, batches)
        try:
            save_atomically(trainer, path, colearning.center)
        except OSError as error:
            problem = str(error)
        if problem := colearning.exchange.link.bcast(problem):
            log.warning("%s could not be written (%s); the resume point before it stays", path, problem)
            return
        colearning.exchange.journal.clear()
        colearning.restarts.leap = None
        if colearning.center.is_leader:
            for old in obsolete(list_resume_points(folder)):
                old.unlink(missing_ok=True)

    def _check_finite(self, module: pl.LightningModule) -> None:
        """A resume point with NaN in it would be worse than none."""
        model = FlatModel(trainable_parameters(module))
        if name := first_non_finite(model.pack(), model):
            colearning = self._colearning
            raise ParticipantError(
                f"NaN or Inf in the model of data center {colearning.center.name} ({name}) after local epoch "
                f"{colearning.epochs_done - 1}; lower the learning rate or clip gradients"
            )

    def _check_ranks(self) -> None:
        """A data center may be resumed with more ranks or fewer, though not in the middle of an epoch."""
        center, before = self._colearning.center, len(self._generators)
        if center.size == before:
            return
        if self._middle:
            raise FingerprintError(
                f"this resume point is from the middle of an epoch that data center {center.name} trained with "
                f"{before} rank(s), and now it has {center.size}; resume with {before} until the next local epoch's "
                "end, whose point can be resumed with any number"
            )
        if center.is_leader:
            log.warning(
                "data center %s goes on with %d rank(s) instead of %d: it draws other batches than it would have",
                center.name,
                center.size,
                before,
            )

    def _stop(self) -> NoReturn:
        exchange = self._colearning.exchange
        log.info("resume point written, leaving: %s", exchange.stops.reason)
        exchange.stop()

    def _take_back_signals(self) -> None:
        if self._colearning.resume_points:
            signals.listen()


def generators() -> dict[str, Any]:
    """The state of this process's random number generators, as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": list(random.getstate()[1]),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rank_generators(states: Sequence[dict[str, Any]], rank: int) -> None:
    """Put back this rank's generators; a rank that the data center did not have before gets streams of its own."""
    set_generators(states[rank % len(states)])
    if rank >= len(states):
        seed = int(torch.randint(2**31, ()).item()) + rank
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def set_generators(state: dict[str, Any]) -> None:
    """Put back what :func:`generators` returned."""
    random.setstate((3, tuple(state["python"]), None))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
