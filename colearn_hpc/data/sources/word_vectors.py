"""fastText's ``.vec`` files to an embedding matrix."""

from __future__ import annotations

import codecs
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.sources.vocabulary import PADDING, UNKNOWN, Vocabulary
from colearn_hpc.errors import DataError

MOST_DIMENSIONS = 10_000
_LONGEST_LINE = 2**20


@dataclass(frozen=True)
class Embedding:
    """Vectors for a vocabulary.

    Attributes:
        matrix: (words, dimensions) float32.
        found: words that the file has a vector for, the two special ones not counted.
    """

    matrix: NDArray[np.float32]
    found: int


def read_vectors(path: Path, vocabulary: Vocabulary) -> Embedding:
    """Vectors of a vocabulary's words; the file is streamed, only wanted lines are kept.

    The rule for every row:

    - padding: zeros
    - a word of the file: its vector; the vocabulary is lower-case, so a word found only as ``Word`` or ``WORD`` takes
      that vector (in this order)
    - any other word: drawn from a normal distribution with the mean and standard deviation of all numbers found,
      by a generator seeded with the SHA-256 of the word. So the row depends on the word and the file alone, not on
      the data center that computes it
    - unknown: the mean of all vectors found

    Args:
        path: ``.vec`` or ``.vec.gz``: a line "n d", then a word and d numbers per line, UTF-8.
        vocabulary: the words.

    Raises:
        DataError: missing, cut short, or of another form.
    """
    wanted: dict[str, tuple[int, int]] = {}  # spelling -> (rank of the spelling, row)
    for row, word in enumerate(vocabulary.words):
        if row > UNKNOWN:
            for rank, spelling in enumerate((word, word.capitalize(), word.upper())):
                wanted.setdefault(spelling, (rank, row))
    with _open(path) as file:
        dimensions, lines = _head(path, file)
        matrix = np.zeros((len(vocabulary), dimensions), dtype=np.float32)
        rank_of = np.full(len(vocabulary), 9, dtype=np.int8)
        for number, line in _lines(path, file, lines):
            # A token may hold spaces itself (". . ." in GloVe's): such a line has more spaces than numbers. It is no
            # word of the vocabulary, but its first part may be one.
            word, _, rest = line.partition(" ")
            if word not in wanted or (rest.count(" ") >= dimensions and not _is_number(rest.partition(" ")[0])):
                continue
            rank, row = wanted[word]
            if rank < rank_of[row]:
                matrix[row] = _vector(path, number, rest, dimensions)
                rank_of[row] = rank
    _fill(matrix, rank_of < 9, vocabulary)
    return Embedding(matrix, int((rank_of < 9).sum()))


def _fill(matrix: NDArray[np.float32], have: NDArray[np.bool_], vocabulary: Vocabulary) -> None:
    count = int(have.sum())
    if not count:
        raise DataError("the file of word vectors has none of the vocabulary's words; is it of another language?")
    # Row by row sums: matrix[have] would copy what is, at 300,000 words, 343 MiB.
    total = np.zeros(matrix.shape[1])
    squares = 0.0
    for row in np.flatnonzero(have):
        vector = matrix[row].astype(np.float64)
        total += vector
        squares += float(vector @ vector)
    mean = total.sum() / (count * matrix.shape[1])
    deviation = np.sqrt(max(squares / (count * matrix.shape[1]) - mean**2, 0.0))
    for row in np.flatnonzero(~have):
        if row > UNKNOWN:
            seed = int.from_bytes(hashlib.sha256(vocabulary.words[row].encode()).digest()[:4], "little")
            matrix[row] = np.random.RandomState(seed).normal(mean, deviation, matrix.shape[1])
    matrix[UNKNOWN] = total / count
    matrix[PADDING] = 0.0


def _open(path: Path) -> IO[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; correct --vectors.") from error


def _head(path: Path, file: IO[bytes]) -> tuple[int, int]:
    try:
        first = file.readline(200).removeprefix(codecs.BOM_UTF8).split()
        lines, dimensions = (int(number) for number in first)
        if not (lines > 0 and 0 < dimensions <= MOST_DIMENSIONS):
            raise ValueError("impossible numbers")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path}: its first line must be two numbers, words and dimensions (fastText's .vec)."
        ) from error
    return dimensions, lines


def _lines(path: Path, file: IO[bytes], announced: int) -> Iterator[tuple[int, str]]:
    number = 1
    try:
        while raw := file.readline(_LONGEST_LINE):
            if len(raw) >= _LONGEST_LINE:
                raise DataError(f"{path}: line {number + 1} has more than {_LONGEST_LINE} bytes; this is no .vec.")
            number += 1
            try:
                yield number, raw.rstrip(b"\r\n ").decode("utf-8")
            except UnicodeDecodeError:
                continue  # the official files hold a few broken words; none of them can be in a vocabulary
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: breaks off after line {number}: {error}. Download it again.") from error
    if number - 1 < announced:
        raise DataError(f"{path}: announces {announced} words, has {number - 1}; it is cut short. Download it again.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _vector(path: Path, number: int, text: str, dimensions: int) -> NDArray[Any]:
    try:
        vector = np.array(text.split(" "), dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{path}: line {number} holds something that is no number: {error}.") from error
    if len(vector) != dimensions or not np.isfinite(vector).all():
        raise DataError(f"{path}: line {number} has {len(vector)} numbers, {dimensions} finite ones expected.")
    return vector
