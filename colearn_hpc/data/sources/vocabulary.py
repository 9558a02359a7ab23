"""Words to numbers."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

PADDING, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unk>")
# So many different words are counted at once (some 500 MiB); beyond, those seen once are dropped and counted anew.
MOST_COUNTED = 3_000_000
_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Lower-cased words (with their apostrophes), and every other visible character on its own."""
    return _TOKEN.findall(text.lower().replace("’", "'"))


class WordCounter:
    """Counts the words of a stream of texts; memory is bounded."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count one text's words."""
        self._counts.update(tokenize(text))
        if len(self._counts) > MOST_COUNTED:
            self._counts = Counter({word: n for word, n in self._counts.items() if n > 1})

    def vocabulary(self, most: int, least_count: int) -> Vocabulary:
        """The most frequent words; ties in alphabetical order, so that the same texts give the same numbers.

        Args:
            most: words at most, the two special ones not counted.
            least_count: a rarer word is unknown.
        """
        kept = sorted(((-n, word) for word, n in self._counts.items() if n >= least_count))[:most]
        return Vocabulary([word for _, word in kept])


class Vocabulary:
    """Number 0 is padding, 1 any unknown word, 2 the most frequent word.

    Args:
        words: without the special ones.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = (*SPECIAL, *words)
        self._numbers = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        """Words, with the two special ones."""
        return len(self.words)

    def encode(self, text: str, length: int) -> NDArray[np.int32]:
        """(length,) numbers: cut at the end or padded there; a text without any word is one unknown word."""
        numbers = [self._numbers.get(word, UNKNOWN) for word in tokenize(text)[:length]] or [UNKNOWN]
        result = np.zeros(length, dtype=np.int32)
        result[: len(numbers)] = numbers
        return result

    def to_json(self) -> bytes:
        """All words in order, as a JSON list."""
        return json.dumps(self.words, ensure_ascii=False, indent=0).encode()

    def fingerprint(self) -> str:
        """A text that is the same where all words have the same numbers."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    @staticmethod
    def from_file(path: Path) -> Vocabulary:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: missing, or something else.
        """
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: is no readable vocabulary: {error}. Name a vocabulary.json of this package."
            ) from error
        if (
            not isinstance(words, list)
            or tuple(words[:2]) != SPECIAL
            or not all(isinstance(word, str) and word for word in words)
            or len(set(words)) < len(words)
        ):
            raise DataError(f"{path}: is no list of different words that begins with {', '.join(SPECIAL)}; correct it.")
        return Vocabulary(words[2:])
