"""K leaders believe they are rank zero: keep them from writing into each other's folders."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.trainer.lightning_gaps import callbacks_of, rename_version
from colearn_hpc.trainer.resume_points import save_atomically

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

log = logging.getLogger("colearn_hpc")


def separate_outputs(trainer: pl.Trainer, exchange: Exchange) -> None:
    """Give each data center its own logger version and checkpoint folder where they would collide.

    The first data center keeps what the user set; the others get its data center's name appended.
    Collective over the world.
    """
    center = exchange.center
    if len(center.topology.centers) == 1:
        return
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            continue  # services such as MLflow or W&B make a run of its own for each leader
        folder = str(Path(logger.log_dir).resolve())
        if _collides(exchange, "logger", folder) and center.index != 0:
            rename_version(logger, center.name)
    for callback in callbacks_of(trainer):
        if isinstance(callback, ModelCheckpoint):
            # ModelCheckpoint.setup, which runs after this, fills in the logger's folder if there is one.
            folder = str(callback.dirpath or (Path(trainer.default_root_dir).resolve() if not trainer.loggers else ""))
            if folder and _collides(exchange, "checkpoints", folder) and center.index != 0:
                base_folder = Path(callback.dirpath or Path(trainer.default_root_dir) / "checkpoints")
                callback.dirpath = str(base_folder / center.name)


def saves_shared_model(folder: Path, exchange: Exchange) -> bool:
    """Whether this data center writes ``shared.ckpt``: the first one does, and each that cannot see its folder.

    The same answer on all ranks of a data center. Collective over the world.
    """

    def mark() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        name = f".seen-{uuid.uuid4().hex}"
        (folder / name).touch()
        return name

    marker = folder / exchange.decide("run folder", mark)
    statuses = exchange.meet("run folder seen", marker.exists())
    if exchange.center.is_first:
        marker.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return (
        exchange.center.index == 0
        or not statuses[exchange.center.topology.centers[exchange.center.index].leader].content
    )


def save_shared_model(colearning: CoLearning, trainer: pl.Trainer) -> None:
    """Write the module's weights where the round's model is kept. Collective over the data center.

    Raises:
        OSError: on the leader, when the disk refuses the run's result. Before that it is only a warning.
    """
    averaging = colearning.averaging
    if not colearning.saves_shared and averaging.shares_model:
        return
    path = averaging.checkpoint_path(colearning.folder, colearning.round_log.center_folder)
    try:
        save_atomically(trainer, path, colearning.center, weights_only=True)
    except OSError as error:
        if colearning.stop_reason:
            raise
        log.warning("%s could not be written: %s", path, error)


def _collides(exchange: Exchange, purpose: str, folder: str) -> bool:
    """Whether two leaders on hosts that may share a file system would write here. Collective over the world."""
    leaders = {center.leader for center in exchange.center.topology.centers}
    statuses = exchange.meet(f"{purpose} folders", folder)
    folders = [status.content for rank, status in enumerate(statuses) if rank in leaders]
    return len(set(folders)) < len(folders)
