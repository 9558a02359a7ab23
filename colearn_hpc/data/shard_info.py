"""What a shard says about itself, and whether it tells the truth. Format: :mod:`colearn_hpc.data.shards`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.shard_file import blocks, open_shard, read_attribute, stored_dataset
from colearn_hpc.errors import DataError

FORMAT = "colearn-shard"
VERSION = 1
TASKS = ("classification", "multilabel")
ENCODINGS = ("array", "jpeg", "tokens")
KINDS = ("features", "image", "tokens", "wave")
LABEL_TYPES: dict[str, np.dtype[Any]] = {"classification": np.dtype("int64"), "multilabel": np.dtype("int8")}

_OWN_ATTRIBUTES = ("format", "version", "task", "classes", "source", "encoding", "kind")
_LINEAR = {"scale": 1.0, "offset": 0.0}
# Free attributes that say what the numbers are; all others (who made it, when) may differ between data centers.
_MEANINGFUL = ("sample_rate", "vocabulary_size", "vocabulary", "layout")
# Labels up to this size are checked at every open; larger ones (only AudioSet's) at their ends, and wholly by
# check_shard. Reading 64 MiB takes a fraction of a second; a wrong label found in epoch 40 costs a night.
_CHEAP_LABEL_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ShardInfo:
    """A shard's own description, validated.

    Attributes:
        path: the file.
        task: ``classification`` or ``multilabel``.
        classes: names; a label is a position.
        source: name of the source that wrote it.
        encoding: ``array``, ``tokens`` or ``jpeg``.
        kind: ``image``, ``wave``, ``features`` or ``tokens``.
        examples: N.
        shape: of one example as stored; ``()`` for ``jpeg``, where every image has its own.
        dtype: of ``x`` as stored.
        metadata: all other attributes (``scale``, ``offset``, ``mean``, ``std``, …).
    """

    path: Path
    task: str
    classes: tuple[str, ...]
    source: str
    encoding: str
    kind: str
    examples: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def meaning(self) -> dict[str, str]:
        """All that gives the shard's numbers their meaning, by name.

        Two shards whose meanings are equal can train one model; see :func:`difference`. Where a model trains on shards
        of which one calls a cat 0 and the other a dog, nothing fails, and nothing is learnt.

        Mean and standard deviation are not among it: a data center may normalise by its own.
        """
        named = {"task": self.task, "kind": self.kind, "encoding": self.encoding}
        named["shape"] = str(self.shape) if self.shape else "each image its own"
        named["classes"] = _shortened(f"{len(self.classes)}: {', '.join(self.classes)}")
        named |= {f"class {number}": name for number, name in enumerate(self.classes)}
        named |= {name: repr(float(self.metadata.get(name, value))) for name, value in _LINEAR.items()}
        named |= {name: str(self.metadata[name]) for name in _MEANINGFUL if name in self.metadata}
        return named


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The first thing that two meanings do not share.

    Args:
        one: a meaning (:attr:`ShardInfo.meaning`).
        other: another one.

    Returns:
        Its name and the two values, ``nothing`` where one has none; ``None`` where all agree.
    """
    for name in [*one, *(name for name in other if name not in one)]:
        ours, theirs = one.get(name, "nothing"), other.get(name, "nothing")
        if ours != theirs:
            return name, ours, theirs
    return None


@dataclass(frozen=True)
class ShardReport:
    """What :func:`check_shard` found in a shard without a fault.

    Attributes:
        info: the shard's description.
        class_counts: (classes,) examples of each class; with several labels, examples that have it.
    """

    info: ShardInfo
    class_counts: NDArray[np.int64]


def read_info(path: str | Path) -> ShardInfo:
    """Read and validate a shard's description, shapes and labels; cheap, the examples are not read.

    Args:
        path: the shard.

    Raises:
        DataError: missing, unreadable, of another format or version, or contradicting itself.
    """
    path = Path(path)
    with open_shard(path) as file:
        return info_of(file, path)


def info_of(file: h5py.File, path: Path) -> ShardInfo:
    """:func:`read_info` of a file that is already open."""
    attributes = {name: read_attribute(file, name, path) for name in file.attrs}
    if attributes.get("format") != FORMAT:
        raise DataError(
            f"{path}: is HDF5 but no shard of this package (attribute format is {attributes.get('format')!r}, expected "
            f"{FORMAT!r}). Make shards with `colearn-hpc data`."
        )
    if attributes.get("version") != VERSION:
        raise DataError(
            f"{path}: has shard version {attributes.get('version')!r}, this package reads version {VERSION}. "
            "Write it again with `colearn-hpc data`, or use the package version that wrote it."
        )
    classes = _classes(attributes.get("classes"), path)
    task = _one_of(attributes, "task", TASKS, path)
    encoding = _one_of(attributes, "encoding", ENCODINGS, path)
    kind = _one_of(attributes, "kind", KINDS, path)
    x, y = stored_dataset(file, "x", path), stored_dataset(file, "y", path)
    _check_labels_form(y, task, classes, path)
    if len(y) == 0:
        raise DataError(
            f"{path}: is empty, it holds 0 examples; a data center needs at least one. Pack the data again."
        )
    shape = _check_examples_form(file, x, len(y), encoding, path)
    _check_label_range(y, task, classes, path, everything=y.size * y.dtype.itemsize <= _CHEAP_LABEL_BYTES)
    metadata = {name: value for name, value in attributes.items() if name not in _OWN_ATTRIBUTES}
    _check_normalisation(metadata, shape, path)
    return ShardInfo(
        path, task, classes, str(attributes.get("source", "")), encoding, kind, len(y), shape, x.dtype, metadata
    )


def check_shard(path: str | Path) -> ShardReport:
    """Read a shard from end to end: every label, every number, every image.

    Args:
        path: the shard.

    Returns:
        The report of a shard without a fault.

    Raises:
        DataError: the first fault found, with the example it sits in.
    """
    path = Path(path)
    with open_shard(path) as file:
        info = info_of(file, path)
        _check_label_range(file["y"], info.task, info.classes, path, everything=True)
        if info.encoding == "jpeg":
            _check_images(file, path)
        else:
            _check_values(file["x"], info, path)
        return ShardReport(info, _count_classes(file["y"], info))


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _classes(text: Any, path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(text)
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise ValueError("not a list of names")
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: attribute classes must be a JSON list of different names, found {text!r}; write the shard again."
        ) from error
    return tuple(names)


def _one_of(attributes: dict[str, Any], name: str, allowed: tuple[str, ...], path: Path) -> str:
    value = attributes.get(name)
    if value not in allowed:
        raise DataError(f"{path}: attribute {name} is {value!r}, expected one of {', '.join(allowed)}; write it again.")
    return str(value)


def _check_labels_form(y: h5py.Dataset, task: str, classes: tuple[str, ...], path: Path) -> None:
    if y.dtype != LABEL_TYPES[task]:
        raise DataError(f"{path}: y has type {y.dtype}, task {task} needs {LABEL_TYPES[task]}; write the shard again.")
    wanted = "(N,)" if task == "classification" else f"(N, {len(classes)})"
    if y.shape != (y.shape or (0,))[:1] + (() if task == "classification" else (len(classes),)):
        raise DataError(f"{path}: y has shape {y.shape}, task {task} with {len(classes)} classes needs {wanted}.")


def _check_examples_form(file: h5py.File, x: h5py.Dataset, n: int, encoding: str, path: Path) -> tuple[int, ...]:
    if encoding == "jpeg":
        offsets = stored_dataset(file, "offsets", path)
        if x.ndim != 1 or x.dtype != np.uint8 or offsets.shape != (n + 1,) or offsets.dtype != np.int64:
            raise DataError(
                f"{path}: encoding jpeg needs x (bytes,) uint8 and offsets ({n + 1},) int64 for {n} labels, found x "
                f"{x.shape} {x.dtype} and offsets {offsets.shape} {offsets.dtype}; write the shard again."
            )
        ends = offsets[:]
        if ends[0] != 0 or ends[-1] != len(x) or (np.diff(ends) <= 0).any():
            raise DataError(f"{path}: the offsets do not cut x into {n} images; write the shard again.")
        return ()
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise DataError(f"{path}: x has shape {x.shape}, expected (N, …) with at least one number an example.")
    if len(x) != n:
        raise DataError(f"{path}: x holds {len(x)} examples but y holds {n} labels; write the shard again.")
    if x.dtype.kind not in ("i" if encoding == "tokens" else "iuf"):
        wanted = "integers" if encoding == "tokens" else "integers or floats"
        raise DataError(f"{path}: x has type {x.dtype}, encoding {encoding} needs {wanted}; write the shard again.")
    return tuple(int(length) for length in x.shape[1:])


def _check_label_range(y: h5py.Dataset, task: str, classes: tuple[str, ...], path: Path, *, everything: bool) -> None:
    pieces = blocks(y) if everything else iter([(0, y[:1000]), (len(y) - 1000, y[-1000:])])
    low, high = (0, len(classes) - 1) if task == "classification" else (-1, 1)
    for start, block in pieces:
        wrong = (block < low) | (block > high)
        if wrong.any():
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise DataError(
                f"{path}: label {int(block[where])} of example {start + where[0]} is out of range {low} … {high} "
                f"({len(classes)} classes, {task}); correct the labels and write the shard again."
            )


def _check_normalisation(metadata: dict[str, Any], shape: tuple[int, ...], path: Path) -> None:
    for name in ("scale", "offset"):
        value = metadata.get(name, 1.0)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{path}: attribute {name} must be one number, found {value!r}.")
    if ("mean" in metadata) != ("std" in metadata):
        raise DataError(f"{path}: has only one of the attributes mean and std; write the shard again.")
    for name in ("mean", "std"):
        values = np.atleast_1d(metadata.get(name, 1.0))
        channels = len(values)  # of JPEGs nobody knows here
        if name in metadata and shape:
            channels = shape[0] if len(shape) > 1 else 1  # a waveform (samples,) is one channel
        if values.ndim != 1 or values.dtype.kind not in "if" or len(values) != channels:
            raise DataError(f"{path}: attribute {name} is {metadata[name]!r}, expected {channels} numbers (channels).")
        if not np.isfinite(values).all() or (name == "std" and (values <= 0).any()):
            raise DataError(f"{path}: attribute {name} is {metadata[name]!r}: not finite, or std not above 0.")


def _check_values(x: h5py.Dataset, info: ShardInfo, path: Path) -> None:
    limit = info.metadata.get("vocabulary_size")
    for start, block in blocks(x):
        if block.dtype.kind == "f":
            wrong = ~np.isfinite(block)
        elif info.encoding == "tokens":
            wrong = (block < 0) | ((block >= limit) if isinstance(limit, int) else False)
        else:
            continue
        if wrong.any():
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise DataError(f"{path}: example {start + where[0]} holds {block[where]}, which is no valid value.")


def _check_images(file: h5py.File, path: Path) -> None:
    from colearn_hpc.data.images import decode_image

    offsets = file["offsets"][:]
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        try:
            decode_image(file["x"][start:stop].tobytes())
        except DataError as error:
            raise DataError(f"{path}: example {i} {error}") from error


def _count_classes(y: h5py.Dataset, info: ShardInfo) -> NDArray[np.int64]:
    counts = np.zeros(len(info.classes), dtype=np.int64)
    for _, block in blocks(y):
        one_label = info.task == "classification"
        counts += np.bincount(block, minlength=len(counts)) if one_label else (block == 1).sum(axis=0)
    return counts
