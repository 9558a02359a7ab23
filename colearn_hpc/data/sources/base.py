"""What every data source offers to :mod:`colearn_hpc.data.pack`."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Contents:
    """What a source holds, known before any example is read.

    Attributes:
        task: ``classification`` or ``multilabel``.
        kind: ``image``, ``wave``, ``features`` or ``tokens``.
        classes: names; a label is a position.
        labels: per split (``train`` and any of ``val``, ``test``), (N,) int64 or (N, classes) int8; or only N, where
            the labels do not fit into memory and every :class:`Item` brings its own (then only ``iid`` can part them).
        encoding: ``array``, ``tokens`` or ``jpeg``.
        metadata: attributes for every shard (``scale``, ``offset``, …).
        notes: what a user should know: files ignored, splits missing.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    labels: Mapping[str, NDArray[Any] | int]
    encoding: str = "array"
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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

    The order of calls is :meth:`fingerprint`, :meth:`scan`, :meth:`read`, :meth:`sidecars`, each once; the
    last three only when the shards do not exist yet. No method may hold all examples in memory.
    """

    name: ClassVar[str]

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

    @abstractmethod
    def read(self) -> Iterator[Item]:
        """Every example of every split once, in any order, as a stream."""

    def sidecars(self) -> dict[str, Callable[[BinaryIO], None]]:
        """Further files for the output folder: name → who writes it. Asked for when all examples have been read."""
        return {}


def single_labels(labels: list[int]) -> NDArray[np.int64]:
    """Class numbers as the array that :class:`Contents` wants."""
    return np.asarray(labels, dtype=np.int64)
