"""Speech Commands: one-second clips of one word each."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.sources.base import SPLITS, Unreadable
from colearn_hpc.data.sources.clips import ClipSource, Members, is_wav
from colearn_hpc.data.sources.wav import read_wav, to_clip
from colearn_hpc.errors import DataError

# fmt: off
WORDS_V1 = (
    "bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy", "house", "left", "marvin",
    "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "wow", "yes", "zero",
)
# fmt: on
NOISE_FOLDER = "_background_noise_"
NOISE_FILE = "noise.npy"
LISTS = {"validation_list.txt": "val", "testing_list.txt": "test"}
_MOST_CLIPS = 2**27 - 1


class SpeechCommands(ClipSource):
    """Speech Commands v0.01 (30 words, the paper's form) or v0.02, as (16000,) int16.

    Training, validation and test follow ``validation_list.txt`` and ``testing_list.txt``; without both lists, the
    SHA-1 rule that made them. Clips shorter than a second are filled with zeros. The recordings in
    ``_background_noise_`` are no examples; they are put end to end into ``noise.npy``, (samples,) int16, for
    augmentation. Who speaks is in the name of a clip, so ``by-group`` deals out the speakers.

    Source: Warden 2018 (arXiv:1804.03209).

    Args:
        path: folder, tar(.gz) or zip.
        words: ``all`` folders, ``v0.01`` for its 30, or a list such as ``yes,no``.
        rate: samples per second of the clips.
        seconds: their length.
    """

    name = "speech-commands"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC, --rate, --seconds, --words."""
        cls.add_clip_arguments(parser)
        parser.add_argument(
            "--words", default="all", help="all, v0.01 for its 30 words, or a list: yes,no,… (default: %(default)s)"
        )

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> SpeechCommands:
        """From the options."""
        return cls(options.src, options.words, options.rate, options.seconds)

    def __init__(self, path: str, words: str = "all", rate: int = 16000, seconds: float = 1.0) -> None:
        super().__init__(path, rate, seconds)
        self._words = words
        self._noise_names: list[str] = []
        self._noise: dict[str, NDArray[np.int16]] = {}

    def parameters(self) -> dict[str, Any]:
        """Rate, length and words."""
        return super().parameters() | {"words": self._words}

    def members(self, names: list[str]) -> Members:
        """By folder (the word) and list (the split)."""
        clips = [(name, name.split("/")[-2]) for name in names if is_wav(name) and "/" in name]
        self._noise_names = [name for name, folder in clips if folder == NOISE_FOLDER]
        spoken = [(name, word) for name, word in clips if not word.startswith("_")]
        if not spoken:
            raise DataError(f"{self._tree.path}: holds no <word>/<speaker>_nohash_<n>.wav; name the folder above.")
        words = self._chosen({word for _, word in spoken})
        split_of, notes = self._splits(names)
        splits: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        for name, word in spoken:
            if word in words:
                splits[split_of("/".join(name.split("/")[-2:]))].append((name, word))
        if not self._noise_names:
            notes.append(f"there is no {NOISE_FOLDER}, so no {NOISE_FILE} is written")
        groups = {name: _speaker(name) for pairs in splits.values() for name, _ in pairs}
        return Members(splits, tuple(notes), groups=groups)

    def other_names(self) -> list[str]:
        """The noise."""
        return self._noise_names

    def other_file(self, name: str, content: bytes | Unreadable) -> None:
        """Keep the noise: a few minutes of it, some ten MiB."""
        try:
            if isinstance(content, Unreadable):
                raise DataError(content.reason)
            self._noise[name] = to_clip(*read_wav(content), self._rate, None)
        except DataError as error:
            raise DataError(f"{self._tree.path}: {name} {error}; repair or remove it.") from error

    def sidecars(self) -> dict[str, Callable[[BinaryIO], None]]:
        """The noise."""
        if not self._noise:
            return {}
        samples = np.concatenate([self._noise[name] for name in sorted(self._noise)])
        return {NOISE_FILE: lambda file: np.save(file, samples)}

    def _chosen(self, found: set[str]) -> set[str]:
        if self._words == "all":
            return found
        wanted = WORDS_V1 if self._words == "v0.01" else tuple(word.strip() for word in self._words.split(","))
        if missing := [word for word in wanted if word not in found]:
            raise DataError(f"{self._tree.path}: has no folder for {', '.join(missing[:5])}; correct --words.")
        return set(wanted)

    def _splits(self, names: list[str]) -> tuple[Callable[[str], str], list[str]]:
        found = {base: name for name in names if (base := name.split("/")[-1]) in LISTS}
        if len(found) == 1:
            raise DataError(
                f"{self._tree.path}: has only {next(iter(found))} of {' and '.join(LISTS)}; add the other, or remove "
                "both to split by the SHA-1 rule."
            )
        if not found:
            return sha1_split, ["no validation and testing lists: split by the SHA-1 rule"]
        listed: dict[str, str] = {}
        for name, content in self._tree.read(list(found.values())):
            base = name.split("/")[-1]
            try:
                if isinstance(content, Unreadable):
                    raise DataError(content.reason)
                lines = content.decode("utf-8").split()
            except (UnicodeDecodeError, DataError) as error:
                raise DataError(f"{self._tree.path}: {name} {error}; download it again.") from error
            for line in lines:
                if listed.setdefault(line, LISTS[base]) != LISTS[base]:
                    raise DataError(f"{self._tree.path}: {line} is in both lists; download them again.")
        present = {"/".join(name.split("/")[-2:]) for name in names}
        if lost := [line for line in listed if line not in present]:
            raise DataError(
                f"{self._tree.path}: {len(lost)} clips of the lists are missing ({lost[0]}, …); unpack the "
                "archive again."
            )
        return lambda clip: listed.get(clip, "train"), []


def sha1_split(clip: str, validation_percent: float = 10.0, test_percent: float = 10.0) -> str:
    """The split of a clip by the rule of the data set's README: all clips of one speaker and word go together.

    Args:
        clip: ``word/speaker_nohash_n.wav``; only the part before ``_nohash_`` counts.
        validation_percent: share of speakers for validation.
        test_percent: share of speakers for test.

    Returns:
        ``train``, ``val`` or ``test``.
    """
    number = int(hashlib.sha1(_speaker(clip).encode()).hexdigest(), 16) % (_MOST_CLIPS + 1)
    percent = number * (100.0 / _MOST_CLIPS)
    if percent < validation_percent:
        return "val"
    return "test" if percent < validation_percent + test_percent else "train"


def _speaker(clip: str) -> str:
    return re.sub(r"_nohash_.*$", "", clip.split("/")[-1])
