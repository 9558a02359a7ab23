"""What the sources of text have in common: rows become token numbers and labels."""

from __future__ import annotations

import argparse
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources.base import Item, Source, Unreadable
from colearn_hpc.data.sources.tree import file_fingerprint
from colearn_hpc.data.sources.vocabulary import Vocabulary, WordCounter
from colearn_hpc.data.sources.word_vectors import read_vectors
from colearn_hpc.errors import DataError

VOCABULARY_FILE = "vocabulary.json"
EMBEDDING_FILE = "embedding.npy"


class TextSource(Source):
    """Texts as (tokens,) int32 numbers, 0 = padding, 1 = unknown.

    The vocabulary is made of the training texts of all data centers: they must agree on the numbers. Where texts
    may not leave their data center, agree on a list of words first and give it to each with ``vocabulary``.
    ``vocabulary.json`` and, with word vectors, ``embedding.npy`` (words, dimensions) float32 come with the shards.

    Args:
        tokens: length of every example; longer texts are cut at the end.
        most_words: size of the vocabulary.
        least_count: rarer words are unknown.
        vocabulary: take this file's words instead.
        vectors: fastText's ``.vec``; see :func:`read_vectors` for words it has not.
    """

    def __init__(
        self,
        tokens: int = 100,
        most_words: int = 100_000,
        least_count: int = 2,
        vocabulary: str | None = None,
        vectors: str | None = None,
    ) -> None:
        if not 1 <= tokens <= 100_000:
            raise DataError(f"--tokens: {tokens} was set; choose 1 to 100000.")
        if not 1 <= most_words <= 2_000_000:
            raise DataError(f"--words: {most_words} was set; choose 1 to 2000000.")
        self._tokens, self._most_words, self._least_count = tokens, most_words, least_count
        self._vocabulary_path = expanded(vocabulary, "--vocabulary") if vocabulary else None
        self._vectors_path = expanded(vectors, "--vectors") if vectors else None
        for option, path in (("--vocabulary", self._vocabulary_path), ("--vectors", self._vectors_path)):
            if path is not None and not path.is_file():
                raise DataError(f"{option}: there is no file {path}; correct the path.")
        self._vocabulary = Vocabulary([])

    @staticmethod
    def add_text_arguments(parser: argparse.ArgumentParser) -> None:
        """--tokens, --words, --least-count, --vocabulary, --vectors."""
        parser.add_argument("--tokens", type=int, default=100, help="length of an example (default: %(default)s)")
        parser.add_argument("--words", type=int, default=100_000, help="size of the vocabulary (default: %(default)s)")
        parser.add_argument("--least-count", type=int, default=2, help="rarer words are unknown (default: %(default)s)")
        parser.add_argument("--vocabulary", metavar="FILE", help="take the words of this vocabulary.json")
        parser.add_argument("--vectors", metavar="FILE", help="fastText's .vec or .vec.gz; makes embedding.npy")

    @staticmethod
    def text_options(options: argparse.Namespace) -> dict[str, Any]:
        """The arguments of this class from the command line."""
        return {
            "tokens": options.tokens,
            "most_words": options.words,
            "least_count": options.least_count,
            "vocabulary": options.vocabulary,
            "vectors": options.vectors,
        }

    def parameters(self) -> dict[str, Any]:
        """Length and vocabulary."""
        return {
            "tokens": self._tokens,
            "most_words": self._most_words,
            "least_count": self._least_count,
            "vocabulary": _fingerprint(self._vocabulary_path),
            "vectors": _fingerprint(self._vectors_path),
        }

    @abstractmethod
    def texts(self) -> Iterator[tuple[str, int, str | Unreadable]]:
        """(split, position, text) of every example, in the order of the labels."""

    def learn(self, is_training: Callable[[str, int], bool]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The vocabulary: of training texts alone, or the given one."""
        if self._vocabulary_path is not None:
            self._vocabulary = Vocabulary.from_file(self._vocabulary_path)
        else:
            counter = WordCounter()
            for split, position, text in self.texts():
                if isinstance(text, str) and is_training(split, position):
                    counter.add(text)
            self._vocabulary = counter.vocabulary(self._most_words, self._least_count)
        words = len(self._vocabulary)
        attributes = {"vocabulary_size": words, "vocabulary": self._vocabulary.fingerprint()}
        return attributes, (f"the vocabulary has {words} words, <pad> and <unk> among them",)

    def read(self) -> Iterator[Item]:
        """Every text, as numbers."""
        for split, position, text in self.texts():
            value = text if isinstance(text, Unreadable) else self._vocabulary.encode(text, self._tokens)
            yield Item(split, position, value)

    def sidecars(self) -> dict[str, Callable[[BinaryIO], None]]:
        """The vocabulary, and the embedding if there are vectors."""
        content = self._vocabulary.to_json()

        def write_vocabulary(file: BinaryIO) -> None:
            file.write(content)

        files: dict[str, Callable[[BinaryIO], None]] = {VOCABULARY_FILE: write_vocabulary}
        if self._vectors_path is not None:
            embedding = read_vectors(self._vectors_path, self._vocabulary)
            files[EMBEDDING_FILE] = lambda file: np.save(file, embedding.matrix)
        return files


def _fingerprint(path: Path | None) -> str | None:
    return None if path is None else file_fingerprint(path)


def combined_fingerprint(prints: list[str]) -> str:
    """One fingerprint of several."""
    return hashlib.sha256(" ".join(prints).encode()).hexdigest()
