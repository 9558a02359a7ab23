"""What every data source offers to :mod:`colearn_hpc.data.pack`."""

from __future__ import annotations

import argparse
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Contents:
    """What a source holds, known before any example is read.

    The classes and the split are what the *data* say. :mod:`colearn_hpc.data.arrange` applies what the user asks of
    them (``--classes``, ``--split-list``, ``--test-fraction``), alike for all sources.

    Attributes:
        task: ``classification`` or ``multilabel``.
        kind: ``image``, ``wave``, ``features`` or ``tokens``.
        classes: names; a label is a position. See :func:`number_classes`.
        labels: per split (``train`` and any of ``val``, ``test``), (N,) int64 or (N, classes) int8; or only N, where
            the labels do not fit into memory and every :class:`Item` brings its own (then only ``iid`` can part them).
        encoding: ``array``, ``tokens`` or ``jpeg``.
        metadata: attributes for every shard (``scale``, ``offset``, …).
        notes: what a user should know: files ignored, splits missing.
        names: per split, what a list of splits calls its examples, in the order of the labels; empty where examples
            have no names: they are then called ``train/0``, ``train/1``, ….
        unsplit: the data tell no split, and all examples are in ``train``.
        groups: per split, who each example comes from (a speaker, a patient), in the order of the labels; empty where
            the data do not tell. ``by-group`` parts by them.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    labels: Mapping[str, NDArray[Any] | int]
    encoding: str = "array"
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unsplit: bool = False
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Unreadable(NamedTuple):
    """In place of an example: why there is none."""

    name: str
    reason: str


class Item(NamedTuple):
    """One example.

    Attributes:
        split: which of :attr:`Contents.labels`.
        position: in those labels.
        value: the example as stored (array, or bytes for ``jpeg``), or why it cannot be read.
        label: where :attr:`Contents.labels` has none.
    """

    split: str
    position: int
    value: NDArray[Any] | bytes | Unreadable
    label: NDArray[Any] | int | None = None


class Source(ABC):
    """A data set in the form in which people have it.

    The order of calls is :meth:`fingerprint`, :meth:`scan`, :meth:`learn`, :meth:`read`, :meth:`sidecars`, each once;
    the last four only when the shards do not exist yet. No method may hold all examples in memory.

    Attributes:
        name: on the command line.
        test_fraction: share of each class that becomes the test set where the data tell no split and the user
            asks for no other share.
    """

    name: ClassVar[str]
    test_fraction: ClassVar[float] = 0.2

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the source's own options."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, options: argparse.Namespace) -> Source:
        """The source as the command line describes it."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The options that change what the shards hold (plain JSON values, no paths)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the input does; cheap, compared to reading it."""

    @abstractmethod
    def scan(self) -> Contents:
        """Find out what is there.

        Raises:
            DataError: the input is missing or has another form than this source reads.
        """

    def learn(self, is_training: Callable[[str, int], bool]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What must be known of the training examples before any is written, a vocabulary for instance.

        Args:
            is_training: whether the example at (split, position) of :attr:`Contents.labels` is for training.

        Returns:
            Attributes for every shard, and notes.
        """
        return {}, ()

    @abstractmethod
    def read(self) -> Iterator[Item]:
        """Every example of every split once, in any order, as a stream."""

    def sidecars(self) -> dict[str, Callable[[BinaryIO], None]]:
        """Further files for the output folder: name → who writes it. Asked for when all examples have been read."""
        return {}


def number_classes(
    labels: Mapping[str, Sequence[str]], where: object
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Numbers for labels that are words: the classes are all that occur, sorted.

    Names are brought to one Unicode form (NFC) first: a folder ``café`` made on macOS is otherwise another class than
    the same folder made on Linux.

    Args:
        labels: per split, the class name of each example.
        where: the input, for messages.

    Returns:
        The classes, and per split that has examples the labels (N,) int64.

    Raises:
        DataError: a name that is no text of one line.
    """
    plain = {name: unicodedata.normalize("NFC", name) for names in labels.values() for name in set(names)}
    for name in plain.values():
        check_class(name, where)
    classes = tuple(sorted(set(plain.values())))
    number = {name: classes.index(normal) for name, normal in plain.items()}
    numbered = {s: np.array([number[n] for n in names], dtype=np.int64) for s, names in labels.items() if names}
    return classes, numbered


def left_out(names: Sequence[str], kept: Sequence[str], what: str) -> tuple[str, ...]:
    """A note on files that are no examples, by their endings: a folder of DICOM files must not seem empty of images.

    Args:
        names: of all files.
        kept: of those that are examples.
        what: the files that are not, as in "are no images".
    """
    others = set(names).difference(kept)
    endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in others)
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))
    return (f"{len(others)} files {what} and were left out ({listed})",) if others else ()


def check_class(name: str, where: object) -> None:
    """Raise a DataError unless a name can stand in a table, a log and a JSON file."""
    if not name or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise DataError(
            f"{where}: {name!r} cannot name a class: it is empty, or holds control characters or bytes that are no "
            "UTF-8; rename it."
        )
