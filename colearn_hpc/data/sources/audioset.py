"""AudioSet, packed: 10 embeddings of 128 numbers per clip, or log-mel."""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from colearn_hpc.data.paths import expanded
from colearn_hpc.data.shard_file import blocks
from colearn_hpc.data.sources.base import Contents, Item, Source
from colearn_hpc.data.sources.tree import file_fingerprint
from colearn_hpc.errors import DataError

TRAIN_FILES = {
    "balanced": ("bal_train.h5",),
    "unbalanced": ("unbal_train.h5",),
    "both": ("bal_train.h5", "unbal_train.h5"),
}
TEST_FILE = "eval.h5"
MOST_NUMBERS = 2**20  # of one clip; HDF5 announces any shape in a few bytes
NAMES_FILE = "class_labels_indices.csv"


class AudioSet(Source):
    """``bal_train.h5``, ``unbal_train.h5`` and ``eval.h5`` with ``x`` and ``y`` (N, classes) bool.

    ``x`` is uint8 (N, 10, 128), embeddings that reach the network as (x − 128) / 128, or float32 (N, 240, 64),
    log-mel that reaches it as it is. Names of classes come from ``class_labels_indices.csv`` if it is there.

    Source: Kong et al. 2018 (arXiv:1711.00927) for the packing.

    Args:
        path: folder with the files.
        train: ``balanced``, ``unbalanced`` or ``both``.
    """

    name = "audioset"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC and --train."""
        parser.add_argument("src", metavar="SRC", help="folder with bal_train.h5, unbal_train.h5, eval.h5")
        parser.add_argument(
            "--train", choices=sorted(TRAIN_FILES), default="both", help="training clips (default: %(default)s)"
        )

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> AudioSet:
        """From SRC and --train."""
        return cls(options.src, options.train)

    def __init__(self, path: str, train: str = "both") -> None:
        self._folder = expanded(path, "SRC")
        if not self._folder.is_dir():
            raise DataError(f"{self._folder}: is no folder; name the one that holds {TEST_FILE}.")
        self._train = train
        self._files = [("train", self._folder / name) for name in TRAIN_FILES[train]]
        self._files.append(("test", self._folder / TEST_FILE))
        for _, file in self._files:
            if not file.is_file():
                raise DataError(f"{file}: is missing; put it there, or choose other clips with --train.")

    def parameters(self) -> dict[str, Any]:
        """Which training clips."""
        return {"train": self._train}

    def fingerprint(self) -> str:
        """Of all files."""
        prints = [file_fingerprint(file) for _, file in self._files]
        if (names := self._folder / NAMES_FILE).is_file():
            prints.append(file_fingerprint(names))
        return hashlib.sha256(" ".join(prints).encode()).hexdigest()

    def scan(self) -> Contents:
        """Shapes; the labels (a gigabyte) travel with the examples."""
        forms = [self._form(file) for _, file in self._files]
        for (_, file), form in zip(self._files, forms, strict=True):
            if form[1:] != forms[0][1:]:
                raise DataError(
                    f"{file}: has examples {form[1:]}, {self._files[0][1]} has {forms[0][1:]}; pack them alike."
                )
        counts: dict[str, int] = {"train": 0, "test": 0}
        for (split, _), form in zip(self._files, forms, strict=True):
            counts[split] += form[0]
        _, _, dtype, classes = forms[0]
        return Contents(
            task="multilabel",
            kind="features",
            classes=self._names(classes),
            labels=counts,
            metadata={"scale": 1 / 128, "offset": -1.0} if dtype == "uint8" else {},
        )

    def read(self) -> Iterator[Item]:
        """Every clip, file by file."""
        position = {"train": 0, "test": 0}
        for split, path in self._files:
            with _open(path) as file:
                x, y = file["x"], file["y"]
                for start, rows in _safe_blocks(x, path):
                    labels = y[start : start + len(rows)]
                    for values, label in zip(rows, labels.astype(np.int8), strict=True):
                        if values.dtype.kind == "f" and not np.isfinite(values).all():
                            raise DataError(f"{path}: clip {start} ff. holds values that are no finite numbers.")
                        yield Item(split, position[split], values, label)
                        position[split] += 1

    def _form(self, path: Path) -> tuple[int, tuple[int, ...], str, int]:
        with _open(path) as file:
            x, y = file.get("x"), file.get("y")
            if not isinstance(x, h5py.Dataset) or not isinstance(y, h5py.Dataset):
                raise DataError(f"{path}: needs data sets x and y, found {', '.join(file) or 'nothing'}.")
            if y.ndim != 2 or y.dtype.kind not in "bui" or not y.shape[1]:
                raise DataError(f"{path}: y is {y.dtype} {y.shape}, expected bool (N, classes).")
            if x.ndim != 3 or x.dtype not in (np.uint8, np.float32) or not 0 < math.prod(x.shape[1:]) <= MOST_NUMBERS:
                raise DataError(
                    f"{path}: x is {x.dtype} {x.shape}, expected uint8 (N, 10, 128) or float32 (N, 240, 64)."
                )
            if len(x) != len(y) or not len(x):
                raise DataError(f"{path}: has {len(x)} examples and {len(y)} rows of labels.")
            if y.dtype.kind != "b":
                for start, rows in _safe_blocks(y, path):
                    if ((rows != 0) & (rows != 1)).any():
                        raise DataError(f"{path}: rows {start} ff. of y hold other numbers than 0 and 1.")
            return len(x), tuple(int(n) for n in x.shape[1:]), str(x.dtype), int(y.shape[1])

    def _names(self, classes: int) -> tuple[str, ...]:
        path = self._folder / NAMES_FILE
        if not path.is_file():
            return tuple(f"class{i:03d}" for i in range(classes))
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                names = tuple(row["display_name"] for row in csv.DictReader(file))
        except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
            raise DataError(f"{path}: is no list with a column display_name: {error}; correct or remove it.") from error
        if len(names) != classes or not all(names):
            raise DataError(f"{path}: names {len(names)} classes, the data have {classes}; correct or remove it.")
        return names


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as HDF5: {error}. Copy or download it again.") from error


def _safe_blocks(dataset: h5py.Dataset, path: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from blocks(dataset)
    except OSError as error:
        raise DataError(f"{path}: is damaged: {error}. Copy or download it again.") from error
