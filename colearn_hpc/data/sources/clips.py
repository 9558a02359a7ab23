"""What the sources of sound have in common: WAV files of a tree become clips of one length."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.sources.base import Contents, Item, Source, Unreadable, number_classes
from colearn_hpc.data.sources.tree import Tree, open_tree
from colearn_hpc.data.sources.wav import MAX_RATE, read_wav, to_clip
from colearn_hpc.errors import DataError


class Members(NamedTuple):
    """The clips of a tree.

    Attributes:
        splits: split → (name, class) of its clips.
        notes: what a user should know.
        unsplit: the names tell no split, and all clips are in ``train``.
        groups: name → who speaks; empty where the names do not tell.
    """

    splits: dict[str, list[tuple[str, str]]]
    notes: tuple[str, ...] = ()
    unsplit: bool = False
    groups: Mapping[str, str] = {}


class ClipSource(Source):
    """WAV files as (samples,) int16 clips; the network gets them divided by 32768.

    Args:
        path: folder, zip or tar.
        rate: samples per second of the clips.
        seconds: their length.
    """

    def __init__(self, path: str, rate: int = 16000, seconds: float = 1.0) -> None:
        if not 1 <= rate <= MAX_RATE:
            raise DataError(f"--rate: {rate} was set; choose 1 to {MAX_RATE} samples per second.")
        if not 0 < round(rate * seconds) <= 2**24:
            raise DataError(f"--seconds: {seconds} was set; a clip needs 1 to {2**24} samples.")
        self._tree: Tree = open_tree(path)
        self._rate = rate
        self._samples = round(rate * seconds)
        self._places: dict[str, tuple[str, int]] = {}

    @staticmethod
    def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
        """SRC, --rate and --seconds."""
        parser.add_argument("src", metavar="SRC", help="folder, .zip or .tar(.gz) of .wav files")
        parser.add_argument("--rate", type=int, default=16000, help="samples per second (default: %(default)s)")
        parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip (default: %(default)s)")

    def parameters(self) -> dict[str, Any]:
        """Rate and length."""
        return {"rate": self._rate, "samples": self._samples}

    def fingerprint(self) -> str:
        """That of the tree."""
        return self._tree.fingerprint()

    @abstractmethod
    def members(self, names: list[str]) -> Members:
        """Which of all files are clips, and what their names say."""

    def scan(self) -> Contents:
        """Splits, classes and labels, from the names alone."""
        members = self.members([name for name, _ in self._tree.files()])
        names = {split: [name for name, _ in pairs] for split, pairs in members.splits.items() if pairs}
        classes, labels = number_classes(
            {split: [label for _, label in pairs] for split, pairs in members.splits.items()}, self._tree.path
        )
        for split, own in names.items():
            self._places.update((name, (split, index)) for index, name in enumerate(own))
        return Contents(
            "classification",
            "wave",
            classes,
            labels,
            metadata={"scale": 1 / 32768, "sample_rate": self._rate},
            notes=members.notes,
            names=names,
            unsplit=members.unsplit,
            groups={s: [members.groups[n] for n in own] for s, own in names.items()} if members.groups else {},
        )

    def read(self) -> Iterator[Item]:
        """Every clip."""
        for name, content in self._tree.read(self._wanted()):
            if name in self._places:
                yield Item(*self._places[name], self._clip(name, content))
            else:
                self.other_file(name, content)

    def other_file(self, name: str, content: bytes | Unreadable) -> None:
        """Take in a file of :meth:`other_names`."""

    def other_names(self) -> list[str]:
        """Files to be read beside the clips."""
        return []

    def _wanted(self) -> list[str]:
        return [*self._places, *self.other_names()]

    def _clip(self, name: str, content: bytes | Unreadable) -> NDArray[np.int16] | Unreadable:
        if isinstance(content, Unreadable):
            return content
        try:
            return to_clip(*read_wav(content, (self._rate, self._samples)), self._rate, self._samples)
        except DataError as error:
            return Unreadable(name, str(error))


def is_wav(name: str) -> bool:
    """Whether a name is that of a WAV file."""
    return name.lower().endswith((".wav", ".wave"))
