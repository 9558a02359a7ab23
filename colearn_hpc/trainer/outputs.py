"""K leaders believe they are rank zero: keep them from writing into each other's folders."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.trainer.lightning_gaps import callbacks_of, rename_version
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.resume_points import save_atomically

log = logging.getLogger("colearn_hpc")


def separate_outputs(trainer: pl.Trainer, place: Place) -> None:
    """Give each data center its own logger version and checkpoint folder where they would collide.

    The first data center keeps what the user set; the others get its data center's name appended.
    Collective over the world.
    """
    center = place.center
    if place.alone:
        return
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            continue  # services such as MLflow or W&B make a run of its own for each leader
        folder = str(Path(logger.log_dir).resolve())
        if _collides(place, "logger", folder) and not place.conversation.is_first:
            rename_version(logger, center.name)
    for callback in callbacks_of(trainer):
        if isinstance(callback, ModelCheckpoint):
            # ModelCheckpoint.setup, which runs after this, fills in the logger's folder if there is one.
            folder = str(callback.dirpath or (Path(trainer.default_root_dir).resolve() if not trainer.loggers else ""))
            if folder and _collides(place, "checkpoints", folder) and not place.conversation.is_first:
                base_folder = Path(callback.dirpath or Path(trainer.default_root_dir) / "checkpoints")
                callback.dirpath = str(base_folder / center.name)


def writes_shared_model(folder: Path, place: Place) -> bool:
    """Whether this data center writes ``shared.ckpt``: the first one does, and each that cannot see its folder.

    The same answer on all ranks of a data center. Collective over the world.
    """

    def mark() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        name = f".seen-{uuid.uuid4().hex}"
        (folder / name).touch()
        return name

    conversation = place.conversation
    marker = folder / conversation.decide(Topic(TopicKind.RUN_FOLDER), mark)
    attendance = conversation.meet(Topic(TopicKind.FOLDER_SEEN), marker.exists())
    if conversation.presides:
        marker.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return conversation.is_first or not attendance.contents[place.between.index]


def save_model(trainer: pl.Trainer, path: Path, is_leader: bool, required: bool) -> None:
    """Write the module's weights. Collective over the data center.

    Args:
        trainer: whose module.
        path: where.
        is_leader: whether this rank leads its data center.
        required: it is the run's result; otherwise a disk that refuses is only warned of.

    Raises:
        OSError: on the leader, when the disk refuses the run's result.
    """
    try:
        save_atomically(trainer, path, is_leader, weights_only=True)
    except OSError as error:
        if required:
            raise
        log.warning("%s could not be written: %s", path, error)


def _collides(place: Place, purpose: str, folder: str) -> bool:
    """Whether two leaders on hosts that may share a file system would write here. Collective over the world."""
    attendance = place.conversation.meet(Topic(TopicKind.OUTPUT_FOLDERS, detail=purpose), folder)
    folders = list(attendance.contents.values())
    return len(set(folders)) < len(folders)
