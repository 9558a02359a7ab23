"""CIFAR-10 as its author gives it away: Python pickles or binary, as a folder or an archive."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.sources.base import Contents, Item, Source, check_class
from colearn_hpc.data.sources.restricted_pickle import unpickle
from colearn_hpc.data.sources.tree import FolderTree, open_tree
from colearn_hpc.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
PIXELS = 3 * 32 * 32

# MD5 of the files on https://www.cs.toronto.edu/~kriz/cifar.html
ARCHIVES = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
PICKLES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


class Cifar10(Source):
    """60,000 images of 32 × 32 pixels as (3, 32, 32) uint8; 10 classes.

    An archive with an official name must have the official MD5. Files in a folder, or in an archive of another
    name, may differ (somebody made them); then there is a note.

    Args:
        path: folder, tar(.gz) or zip that holds ``data_batch_1 … 5`` and ``test_batch``, with or without ``.bin``.
        checksum: compare MD5 sums.
    """

    name = "cifar10"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC and --no-checksum."""
        parser.add_argument("src", metavar="SRC", help="cifar-10-batches-py/, cifar-10-batches-bin/, or their .tar.gz")
        parser.add_argument("--no-checksum", action="store_true", help="do not compare MD5 sums with the official ones")

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> Cifar10:
        """From SRC and --no-checksum."""
        return cls(options.src, not options.no_checksum)

    def __init__(self, path: str, checksum: bool = True) -> None:
        self._tree = open_tree(path)
        self._checksum = checksum
        self._files: dict[str, str] = {}  # name in the tree -> batch
        self._first: dict[str, int] = {}  # batch -> position of its first image in its split
        self._binary = False

    def parameters(self) -> dict[str, Any]:
        """None that change the shards."""
        return {}

    def fingerprint(self) -> str:
        """That of the tree."""
        return self._tree.fingerprint()

    def scan(self) -> Contents:
        """Find the batches and read their labels."""
        notes = self._verify_archive()
        meta = self._find_files()
        classes: tuple[str, ...] = CLASSES
        labels: dict[str, NDArray[np.int64]] = {}
        unofficial = []
        for name, content in self._contents([*self._files, *([meta] if meta else [])]):
            if name == meta:
                classes = self._classes(name, content)
                continue
            batch = self._files[name]
            labels[batch] = self._parse(name, content)[1]
            if not self._binary and self._checksum and hashlib.md5(content).hexdigest() != PICKLES[batch]:
                unofficial.append(batch)
        if unofficial:
            notes.append(f"{', '.join(sorted(unofficial))} differ from the official CIFAR-10 files (MD5)")
        for batch, found in labels.items():
            wrong = np.flatnonzero((found < 0) | (found >= len(classes)))
            if wrong.size:
                raise DataError(
                    f"{self._tree.path}: {batch} has label {found[wrong[0]]} at image {wrong[0]}, expected 0 … "
                    f"{len(classes) - 1}. Download it again."
                )
        starts = np.cumsum([0] + [len(labels[batch]) for batch in TRAIN_FILES])
        self._first = dict(zip(TRAIN_FILES, starts[:-1].tolist(), strict=True)) | {"test_batch": 0}
        return Contents(
            task="classification",
            kind="image",
            classes=classes,
            labels={"train": np.concatenate([labels[b] for b in TRAIN_FILES]), "test": labels["test_batch"]},
            metadata={"scale": 1 / 255},
            notes=tuple(notes),
        )

    def read(self) -> Iterator[Item]:
        """Every image, batch by batch."""
        for name, content in self._contents(list(self._files)):
            batch = self._files[name]
            split = "test" if batch == "test_batch" else "train"
            images, _ = self._parse(name, content)
            for i, image in enumerate(images):
                yield Item(split, self._first[batch] + i, image)

    def _verify_archive(self) -> list[str]:
        expected = ARCHIVES.get(self._tree.path.name)
        if not self._checksum or expected is None or isinstance(self._tree, FolderTree):
            return []
        with self._tree.path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest() if hasattr(hashlib, "file_digest") else _md5(file)
        if found != expected:
            raise DataError(
                f"{self._tree.path}: has MD5 {found}, the official file has {expected}; download it again, or accept "
                "it with --no-checksum."
            )
        return [f"MD5 {found} is that of the official file"]

    def _find_files(self) -> str | None:
        names = [name for name, _ in self._tree.files()]
        by_base: dict[str, str] = {}
        for name in names:
            base = Path(name).name
            if base in by_base and base.removesuffix(".bin") in (*TRAIN_FILES, "test_batch"):
                raise DataError(f"{self._tree.path}: holds {base} twice ({by_base[base]}, {name}); name one folder.")
            by_base[base] = name
        wanted = (*TRAIN_FILES, "test_batch")
        for binary in (False, True):
            files = {by_base[key]: batch for batch in wanted if (key := batch + ".bin" * binary) in by_base}
            if len(files) == len(wanted):
                self._files, self._binary = files, binary
                return None if binary else by_base.get("batches.meta")
        missing = [batch for batch in wanted if batch not in by_base and f"{batch}.bin" not in by_base]
        raise DataError(
            f"{self._tree.path}: is no CIFAR-10, {', '.join(missing or wanted)} not found; expected data_batch_1 … 5 "
            "and test_batch, with or without .bin. Name the folder or archive that holds them."
        )

    def _contents(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        for name, content in self._tree.read(names):
            if not isinstance(content, bytes):
                raise DataError(f"{self._tree.path}: {name} {content.reason}. Copy or download it again.")
            yield name, content

    def _parse(self, name: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """((n, 3, 32, 32), (n,)) of one batch file."""
        where = f"{self._tree.path}: {name}"
        if self._binary:
            if not content or len(content) % (PIXELS + 1):
                raise DataError(
                    f"{where} has {len(content)} bytes, not a multiple of {PIXELS + 1} (a label and the pixels); it is "
                    "cut short. Download it again."
                )
            rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, PIXELS + 1)
            return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)
        entries = _dictionary(content, where)
        data, labels = entries.get("data"), entries.get("labels")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
            found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise DataError(f"{where} has data {found}, expected uint8 (n, {PIXELS}). Download it again.")
        numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
        if not isinstance(numbers, list) or not all(type(label) is int for label in numbers):
            raise DataError(f"{where} has no list of labels. Download it again.")
        if len(numbers) != len(data) or not numbers:
            raise DataError(f"{where} has {len(data)} images and {len(numbers)} labels. Download it again.")
        if not -(2**31) < min(numbers) <= max(numbers) < 2**31:
            raise DataError(f"{where} has a label of {max(numbers, key=abs)}. Download it again.")
        return data.reshape(-1, 3, 32, 32), np.asarray(numbers, dtype=np.int64)

    def _classes(self, name: str, content: bytes) -> tuple[str, ...]:
        where = f"{self._tree.path}: {name}"
        names = _dictionary(content, where).get("label_names")
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(n, str | bytes) for n in names):
            raise DataError(f"{where} has no label_names; delete or replace it.")
        classes = tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names)
        for label in classes:
            check_class(label, where)
        return classes


def _dictionary(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = unpickle(content)
    except DataError as error:
        raise DataError(f"{where} {error}. Do not trust it; download it again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{where} holds a {type(found).__name__}, expected a dictionary. Download it again.")
    if not all(isinstance(key, str | bytes) for key in found):
        raise DataError(f"{where} holds a dictionary whose keys are no names. Download it again.")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}


def _md5(file: Any) -> str:
    digest = hashlib.md5()  # Python 3.10 has no file_digest
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
