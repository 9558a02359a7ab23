"""Resume points: what a data center needs to continue with the bits of a run that was never interrupted.

A resume point is a Lightning checkpoint (weights, optimizers, loops, callbacks) plus the random number
generators of every rank. It is written under a temporary name and renamed, so it is whole or absent. One is
written at the end of every local epoch, and one in the middle where the run was asked to stop (see mid_epoch.py).

Data centers are killed at different moments: one may have written its first point after an averaging while
another has not. So two are kept, the newest and the newest from before the last averaging, and on
resume all agree on the latest round that every one of them can continue.
"""

from __future__ import annotations

import logging
import os
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from colearn_hpc.errors import CheckpointError, Interrupted
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.trainer import signals
from colearn_hpc.trainer.lightning_gaps import add_running_sums, restart_epoch
from colearn_hpc.trainer.mid_epoch import epoch_metrics, is_safe_point, restore_metrics

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

log = logging.getLogger("colearn_hpc")

_POINT = re.compile(r"resume-round(\d+)-epoch(\d+)(?:-batch(\d+))?\.ckpt")


class EpochEnd(Checkpoint):
    """Closes a local epoch after everyone else: the round's books, then the resume point. Stops the run when asked to.

    A ``Checkpoint`` by class, because Lightning calls those last; added by :class:`CoLearning`.
    """

    best_model_path = ""  # Lightning asks the first Checkpoint for it; without ModelCheckpoint that is this one

    def __init__(self, colearning: CoLearning) -> None:
        self._colearning = colearning
        self._generators: list[dict[str, Any]] = []  # as they were before the epoch's data iterator was made
        self._middle: dict[str, Any] = {}  # where in the epoch, if in the middle of it
        self._sums: dict[str, dict[str, torch.Tensor]] = {}
        self._resumed = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._resumed:
            # Here, and not later: the first epoch's data iterator, made next, already draws.
            set_generators(self._generators[self._colearning.center.rank])
        else:
            self._generators = self._colearning.exchange.gather_in_center(generators()) or []
        if self._colearning.resume_points:
            self._colearning.exchange.stops.signal = signals.received
            signals.listen()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_back_signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_back_signals()
        colearning = self._colearning
        batch = self._middle.get("batches", 0)
        log.info("training from round %d, epoch %d, batch %d", colearning.round, colearning.epochs_done, batch)
        if self._resumed:
            set_generators(self._generators[colearning.center.rank])
            restart_epoch(trainer, batch)
        if self._middle:
            mine = self._middle["ranks"][colearning.center.rank]
            restore_metrics(pl_module, mine["metrics"])
            self._sums = mine["sums"]
            set_generators(mine["generators"])
            self._middle = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._sums:
            add_running_sums(trainer, self._sums)
        colearning = self._colearning
        if not colearning.resume_points or not is_safe_point(trainer, batch_idx):
            return
        if colearning.exchange.stops.agreed():
            colearning.read_clock()
            mine = epoch_metrics(trainer, pl_module) | {"generators": generators()}
            mine["sums"] |= self._sums
            self._middle = {"batches": batch_idx + 1, "ranks": colearning.exchange.gather_in_center(mine)}
            self._save(trainer, f"-batch{batch_idx + 1:08d}")
            self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        colearning = self._colearning
        colearning.finish_epoch(trainer)
        if not colearning.resume_points:
            return
        self._generators = colearning.exchange.gather_in_center(generators()) or []
        self._sums = {}
        self._save(trainer)
        # Known to all data centers alike: after the last round there is nothing left to stop.
        if not colearning.stop_reason and colearning.exchange.stops.agreed():
            self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signals.forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
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

    def _save(self, trainer: pl.Trainer, place: str = "") -> None:
        """Write this data center's resume point. Collective over the data center."""
        colearning = self._colearning
        folder = colearning.round_log.center_folder
        path = folder / f"resume-round{colearning.round:06d}-epoch{colearning.epochs_done:06d}{place}.ckpt"
        save_atomically(trainer, path, colearning.center)
        if colearning.center.is_leader:
            for old in obsolete(list_resume_points(folder)):
                old.unlink(missing_ok=True)

    def _stop(self) -> NoReturn:
        exchange = self._colearning.exchange
        log.info("resume point written, leaving: %s", exchange.stops.reason)
        exchange.stop()

    def _take_back_signals(self) -> None:
        if self._colearning.resume_points:
            signals.listen()


def find_resume_point(run_folder: Path, exchange: Exchange) -> Path | None:
    """The newest resume point of this data center that fits all others'. Collective over the world.

    Returns:
        None, on all ranks, if no data center has any, or none is past the first round and some have none.

    Raises:
        CheckpointError: on all ranks, if some data center has none that fits.
    """
    center = exchange.center
    points = list_resume_points(run_folder / "centers" / center.name)
    statuses = exchange.meet("resume points", sorted({rounds for rounds, _, _ in points}))
    offered = {status.center: set(status.content) for status in statuses}
    if not any(offered.values()):
        return None
    common = set.intersection(*offered.values())
    if not common and not any(rounds - {0} for rounds in offered.values()):
        # Killed in the first round, when some had written their first point and some had not: nothing was shared yet.
        if center.is_leader:
            for path in points.values():
                path.unlink(missing_ok=True)
        return None
    if not common:
        found = "; ".join(f"{name}: {_text(rounds)}" for name, rounds in offered.items())
        raise CheckpointError(
            f"no resume point in {run_folder} fits all data centers ({found}); bring back the missing files, or "
            "start anew with another --name"
        ).on_all_ranks()
    rounds_done = max(common)
    return points[max(place for place in points if place[0] == rounds_done)]


def check_same_place(start: str, exchange: Exchange) -> None:
    """All data centers start afresh, or all continue the same round of the same run. Collective over the world.

    Raises:
        CheckpointError: on all ranks, if they would not.
    """
    places = {status.content: status.center for status in exchange.meet("places", start)}
    if len(places) > 1:
        found = "; ".join(f"{center} at {place}" for place, center in places.items())
        raise CheckpointError(
            f"the data centers would continue from different places ({found}); give each its own resume point "
            "of the same run and round (`--resume` chooses them)"
        ).on_all_ranks()


def list_resume_points(folder: Path) -> dict[tuple[int, int, int], Path]:
    """(rounds done, epochs done, batches done in the epoch under way) -> file."""
    found = {path: _POINT.fullmatch(path.name) for path in folder.glob("resume-*.ckpt")}
    return {(int(match[1]), int(match[2]), int(match[3] or 0)): path for path, match in found.items() if match}


def obsolete(points: dict[tuple[int, int, int], Path]) -> list[Path]:
    """All but the newest, and the newest with fewer rounds done than that."""
    if not points:
        return []
    newest = max(points)
    before = max((key for key in points if key[0] < newest[0]), default=newest)
    return [path for key, path in points.items() if key not in (newest, before)]


def save_atomically(trainer: pl.Trainer, path: Path, center: DataCenter, weights_only: bool = False) -> None:
    """``trainer.save_checkpoint`` under a temporary name, then rename. Collective over the data center."""
    temporary = path.with_name(f".{path.name}.tmp")
    trainer.save_checkpoint(temporary, weights_only=weights_only)
    if center.is_leader:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def generators() -> dict[str, Any]:
    """The state of this process's random number generators, as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": list(random.getstate()[1]),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put back what :func:`generators` returned."""
    random.setstate((3, tuple(state["python"]), None))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _text(rounds: set[int]) -> str:
    return f"after round {', '.join(str(r) for r in sorted(rounds))}" if rounds else "none"
