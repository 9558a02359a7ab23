"""K leaders believe they are rank zero: keep them from writing into each other's folders."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import kinds
from colearn_hpc.errors import words_of
from colearn_hpc.join import DataCenter
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.trainer.lightning_gaps import callbacks_of, mark_run, rename_version
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.resume_points import save_atomically
from colearn_hpc.trainer.writer_lock import WriterLock, hold, is_held_by

log = logging.getLogger("colearn_hpc")


def separate_outputs(trainer: pl.Trainer, place: Place, run_name: str) -> None:
    """Give each data center its own logger version, and its own checkpoint folder where they would collide.

    Versions of loggers end in the data center's name, unless a folder above is named so. A checkpoint folder stays as
    it was set in the first data center; the others have one of their name in it. In services such as MLflow and W&B,
    which make a run for each leader, these are marked as belonging together. Collective over the world.
    """
    center = place.center
    if place.alone:
        return
    writers = kinds("loggers", "CSVLogger") + kinds("loggers", "TensorBoardLogger")
    for logger in trainer.loggers:
        if not isinstance(logger, writers):
            if center.is_leader:
                mark_run(logger, run_name, center.name)
            continue
        # Lightning numbers versions by what lies there: the same moment gives one data center 0 and another 1.
        topic = Topic(TopicKind.OUTPUT_FOLDERS, detail="logger")
        version = place.conversation.decide(topic, partial(getattr, logger, "version"))
        if center.name not in Path(logger.log_dir).resolve().parts:
            rename_version(logger, version, center.name)
    for callback in callbacks_of(trainer):
        if isinstance(callback, kinds("callbacks", "ModelCheckpoint")):
            # ModelCheckpoint.setup, which runs after this, fills in the logger's folder if there is one.
            folder = str(callback.dirpath or (Path(trainer.default_root_dir).resolve() if not trainer.loggers else ""))
            if folder and _collides(place, "checkpoints", folder) and not place.conversation.is_first:
                base_folder = Path(callback.dirpath or Path(trainer.default_root_dir) / "checkpoints")
                callback.dirpath = str(base_folder / center.name)


def claim_folder(folder: Path, place: Place) -> tuple[bool, WriterLock | None]:
    """Become the one start that writes this run folder (see writer_lock.py). Collective over the world.

    Returns:
        Whether this data center writes ``shared.ckpt``: the first one does, and each that cannot see its folder; the
        same answer on all its ranks. And the lock, on the leader that holds it.

    Raises:
        ConfigurationError: on the leader that is refused: another start writes it, or it cannot be written.
    """
    conversation, center = place.conversation, place.center

    def held(start: str) -> WriterLock | None:
        return hold(folder, start, lambda text: conversation.progress(lambda: text))

    lock: WriterLock | None = None

    def take() -> str:
        nonlocal lock
        lock = held(center.start)
        return center.start

    start = conversation.decide(Topic(TopicKind.RUN_FOLDER), take)
    attendance = conversation.meet(Topic(TopicKind.FOLDER_SEEN), is_held_by(folder, start))
    writes_shared = conversation.is_first or not attendance.contents[place.between.index]
    if writes_shared and center.is_leader and not conversation.presides:
        lock = held(start)  # on a file system of its own
    return writes_shared, lock


def save_model(trainer: pl.Trainer, path: Path, center: DataCenter, required: bool) -> None:
    """Write the module's weights. Collective over the data center.

    Args:
        trainer: whose module.
        path: where.
        center: this process's.
        required: it is the run's result; otherwise a disk that refuses is only warned of.

    Raises:
        OSError: on the leader, when the disk refuses the run's result.
    """
    try:
        save_atomically(trainer, path, center, weights_only=True)
    except OSError as error:
        if required:
            raise
        log.warning("%s could not be written (%s)", path, words_of(error))


def _collides(place: Place, purpose: str, folder: str) -> bool:
    """Whether two leaders on hosts that may share a file system would write here. Collective over the world."""
    attendance = place.conversation.meet(Topic(TopicKind.OUTPUT_FOLDERS, detail=purpose), folder)
    folders = list(attendance.contents.values())
    return len(set(folders)) < len(folders)
