"""The files called resume points: their names, which are kept, which can be trusted, which fit together.

Data centers are killed at different moments: one may have written its first point after an averaging while
another has not. So two are kept, the newest and the newest from before the last averaging, and on
resume all agree on the latest round that every one of them can continue.

A point is written under a temporary name and renamed, so it is whole or absent; what a disk does to it later
shows in the checksums that torch writes beside each tensor, and such a point counts as absent. That of a model in
shards is a folder: each rank writes the checksums of its files.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickletools
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

import colearn_hpc._lightning as pl
from colearn_hpc import faults
from colearn_hpc.errors import CheckpointError
from colearn_hpc.join import DataCenter
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.trainer.lightning_gaps import is_sharded, write_checkpoint, write_file
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.writing import PRIVATE, temporary

log = logging.getLogger("colearn_hpc")

Moment: TypeAlias = "tuple[int, int, int]"  # rounds done, epochs done, batches done in the epoch under way

_CHECKSUMS = "checksums-{rank}.json"
_POINT = re.compile(r"resume-round(\d+)-epoch(\d+)(?:-batch(\d+))?\.ckpt")


def path_of(folder: Path, rounds: int, epochs: int, batches: int = 0) -> Path:
    """The file of a place in the run."""
    middle = f"-batch{batches:08d}" if batches else ""
    return folder / f"resume-round{rounds:06d}-epoch{epochs:06d}{middle}.ckpt"


def list_resume_points(folder: Path) -> dict[Moment, Path]:
    """(rounds done, epochs done, batches done in the epoch under way) -> file."""
    found = {path: _POINT.fullmatch(path.name) for path in folder.glob("resume-*.ckpt")}
    return {(int(match[1]), int(match[2]), int(match[3] or 0)): path for path, match in found.items() if match}


def sound_points(folder: Path) -> dict[Moment, Path]:
    """The points that can be read back; warns of the others."""
    points = list_resume_points(folder)
    for moment, path in list(points.items()):
        if damage := damage_of(path):
            log.warning("resume point %s is damaged (%s) and is passed over", path, damage)
            del points[moment]
    return points


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint; empty if every checksum in it holds."""
    if path.is_dir():
        return _damage_of_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return f"checksum of {wrong}" if (wrong := archive.testzip()) else _foreign(archive)
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__


def check_origin(path: Any) -> None:
    """A checkpoint from which somebody wants to go on has to be one of a run.

    Args:
        path: what ``fit`` was given; where it is no file here, nothing is checked.

    Raises:
        CheckpointError: it is no checkpoint, or holds no state of ours.
    """
    if not path or not os.path.isfile(path):  # noqa: PTH113  # may be a URL, or None
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = _foreign(archive)
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        wrong = str(error) or type(error).__name__
    if wrong:
        raise CheckpointError(
            f"ckpt_path={path} is nothing from which a run can go on: {wrong}. Give a resume point "
            "(centers/NAME/resume-*.ckpt, `--resume` finds it); to begin with the weights of another checkpoint, load "
            "them into the model"
        )


# Of every checkpoint that a Trainer with a CoLearning writes, since the first version.
_MARKS = frozenset({"pytorch-lightning_version", "state_dict", "loops", "callbacks", "averaging"})


def _foreign(archive: zipfile.ZipFile) -> str:
    """What is missing in a checkpoint that another program, or another Trainer, has written. Nothing is unpickled."""
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if not names:
        return "it was not written by torch.save"
    missing = set(_MARKS)
    for _, argument, _ in pickletools.genops(archive.read(names[0])):
        if isinstance(argument, str):
            missing.discard(argument)
            if not missing:
                return ""
    return "it holds no state of CoLearning"


def _damage_of_folder(folder: Path) -> str:
    try:
        sums = [json.loads(file.read_text()) for file in folder.glob(_CHECKSUMS.format(rank="*"))]
        expected = {name: number for of_rank in sums for name, number in of_rank["files"].items()}
        if not sums or len(sums) != sums[0]["ranks"]:
            return f"the checksums of {len(sums)} ranks"
        wrong = [name for name, number in expected.items() if _checksum(folder / name) != number]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error) or type(error).__name__
    return f"checksum of {wrong[0]}" if wrong else ""


def _checksum(file: Path) -> int:
    number = 0
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            number = zlib.crc32(block, number)
    return number


def remove(path: Path) -> None:
    """Take away a checkpoint, file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def obsolete(points: dict[Moment, Path]) -> list[Path]:
    """All but the newest, and the newest with fewer rounds done than that."""
    if not points:
        return []
    newest = max(points)
    before = max((key for key in points if key[0] < newest[0]), default=newest)
    return [path for key, path in points.items() if key not in (newest, before)]


def remove_obsolete(folder: Path) -> None:
    """Remove the points that nobody can ask for any more. What cannot be removed may be after the next one."""
    for path in obsolete(list_resume_points(folder)):
        with suppress(OSError):
            remove(path)


def find_resume_point(run_folder: Path, place: Place) -> Path | None:
    """The newest resume point of this data center that fits all others'. Collective over the world.

    Returns:
        None, on all ranks, if no data center has any, or none is past the first round and some have none.

    Raises:
        CheckpointError: on all ranks, if some data center has none that fits.
    """
    center = place.center
    folder = run_folder / "centers" / center.name
    # The leader reads, which may take a while; every rank must see the same.
    points = place.site.bcast(sound_points(folder) if center.is_leader else {})
    files = [path.name for path in list_resume_points(folder).values()]
    mine = [sorted({rounds for rounds, _, _ in points}), files]
    contents = place.conversation.meet(Topic(TopicKind.RESUME_POINTS), mine).contents
    names = place.between.names
    offered = {names[k]: set(rounds) for k, (rounds, _) in contents.items()}
    if not any(offered.values()):
        if damaged := {names[k]: there for k, (_, there) in contents.items() if there}:
            found = "; ".join(f"{name}: {', '.join(there)}" for name, there in damaged.items())
            raise CheckpointError(
                f"no resume point in {run_folder} can be read ({found}); bring them back, or start "
                "anew with --overwrite"
            ).on_all_ranks()
        return None
    common = set.intersection(*offered.values())
    if not common and not any(rounds - {0} for rounds in offered.values()):
        # Killed before all had written their first point: nothing was shared yet.
        if center.is_leader:
            for path in list_resume_points(folder).values():
                remove(path)
        return None
    if not common:
        found = "; ".join(f"{name}: {_text(rounds)}" for name, rounds in offered.items())
        raise CheckpointError(
            f"no resume point in {run_folder} fits all data centers ({found}); bring back the missing files, or "
            "start anew with another --name"
        ).on_all_ranks()
    rounds_done = max(common)
    return points[max(moment for moment in points if moment[0] == rounds_done)]


def find_newest_point(run_folder: Path, place: Place) -> Path:
    """Where this data center alone can begin again. Collective over the data center.

    Args:
        run_folder: of the run.
        place: this process's.

    Raises:
        CheckpointError: the newest point is damaged or gone: an older one would be before what is replayed.
    """
    folder, newest = run_folder / "centers" / place.center.name, None
    if place.center.is_leader:
        points = list_resume_points(folder)
        newest = max(points, default=None)
        if newest is not None and (damage := damage_of(points[newest])):
            log.warning("resume point %s is damaged: %s", points[newest], damage)
            newest = None
    newest = place.site.bcast(newest)
    if newest is None:
        raise CheckpointError(f"{folder} holds no resume point from which this data center could begin again")
    return path_of(folder, *newest)


def check_same_place(start: str, place: Place) -> None:
    """All data centers start afresh, or all continue the same round of the same run. Collective over the world.

    Raises:
        CheckpointError: on all ranks, if they would not.
    """
    name = place.center.name
    place.conversation.agree(start, lambda one, other: f"the ranks of {name} continue from {one} and from {other}")
    contents = place.conversation.meet(Topic(TopicKind.PLACES), start).contents
    places = {where: place.between.names[k] for k, where in contents.items()}
    if len(places) > 1:
        found = "; ".join(f"{center} at {where}" for where, center in places.items())
        raise CheckpointError(
            f"the data centers would continue from different places ({found}); give each its own resume point "
            "of the same run and round (`--resume` chooses them)"
        ).on_all_ranks()


def save_atomically(
    trainer: pl.Trainer, path: Path, center: DataCenter, weights_only: bool = False, private: bool = False
) -> None:
    """A checkpoint under a temporary name in its own folder, then renamed. Collective over the data center.

    Args:
        trainer: whose checkpoint.
        path: of the file.
        center: this process's.
        weights_only: no optimizers, loops and callbacks.
        private: nobody else may read it.

    Raises:
        OSError: on the leader alone, when the file could not be written; what was there before is still there.
    """
    new = temporary(path, center.start)
    if is_sharded(trainer):  # a folder in which all ranks write
        new = Path(trainer.strategy.broadcast(str(new)))
    try:
        write_checkpoint(trainer, new, weights_only, PRIVATE if private else None)
        if new.is_dir():
            _seal(new, trainer)
    except OSError:
        remove(new)
        raise
    if center.is_leader:
        faults.reached("checkpoint")
        if new.is_dir() and path.exists():  # no folder takes the place of another in one step
            before = temporary(path, center.start)
            path.replace(before)
            new.replace(path)
            remove(before)
        else:
            new.replace(path)


def put_point(checkpoint: dict[str, Any], path: Path, start: str, reached: Callable[[], None]) -> None:
    """Write a resume point that is one file, as :func:`save_atomically` does, and remove what it makes obsolete. In any
    thread of the leader.

    Args:
        checkpoint: that nothing changes meanwhile.
        path: of the file.
        start: of the run that writes it.
        reached: called when the file is written, and not yet in its place.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    new = temporary(path, start)
    try:
        write_file(checkpoint, new, PRIVATE)
        reached()
        new.replace(path)
    except OSError:
        remove(new)
        raise
    remove_obsolete(path.parent)


def _seal(folder: Path, trainer: pl.Trainer) -> None:
    """Make sure that this rank's files are on the disk, and write their checksums. Collective over the data center."""
    rank = trainer.global_rank
    mine = [*folder.glob(f"__{rank}_*.distcp"), *([folder / ".metadata", folder / "meta.pt"] if rank == 0 else [])]
    for file in mine:
        _sync(file)
    content = {"ranks": trainer.world_size, "files": {file.name: _checksum(file) for file in mine}}
    (folder / _CHECKSUMS.format(rank=rank)).write_text(json.dumps(content))
    trainer.strategy.barrier("seal")


def _sync(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())


def check_readable(path: Path) -> None:
    """Read a checkpoint as the next start will: one that cannot be read is no resume point.

    Raises:
        CheckpointError: it cannot be read, with the part of it that is to blame.
    """
    if path.is_dir():
        path /= "meta.pt"  # the shards beside it hold tensors alone
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        content = torch.load(path, map_location="cpu", weights_only=False)
        where = next(iter(_unreadable(content, "")), "") or "something in it"
        raise CheckpointError(
            f"the resume point {path.name} could not be read back: {where} is nothing that torch loads with "
            "weights_only=True. Save plain numbers, texts and tensors in checkpoints, or allow everything: "
            "--weights_only=false, colearning.fit(..., weights_only=False)"
        ) from None


# Loaded beside plain numbers and tensors: harmless, and what many an `on_save_checkpoint` keeps by accident.
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    np.float64(0).__reduce__()[0],  # the function that makes a NumPy number again
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFD"},
]


def _unreadable(value: object, where: str) -> Iterator[str]:
    """The keys of a checkpoint whose values torch does not load, with their types."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unreadable(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _unreadable(item, f"{where}[{index}]")
    else:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        try:
            torch.load(buffer, weights_only=True)
        except Exception:
            yield f"{where} ({type(value).__module__}.{type(value).__qualname__})"


def _text(rounds: set[int]) -> str:
    return f"after round {', '.join(str(r) for r in sorted(rounds))}" if rounds else "none"
