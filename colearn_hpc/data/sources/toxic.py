"""Kaggle's toxic comments: six labels for each comment of a Wikipedia talk page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources.base import Contents, Unreadable
from colearn_hpc.data.sources.csv_rows import CsvFile, find_csv
from colearn_hpc.data.sources.text import TextSource, combined_fingerprint
from colearn_hpc.errors import DataError

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
FILES = ("train.csv", "test.csv", "test_labels.csv")


class Toxic(TextSource):
    """``train.csv``, ``test.csv`` and ``test_labels.csv`` as Kaggle gives them, unpacked or in its zips.

    Test rows that nobody scored carry −1 for each label. They stay in ``test.h5``, so that its 153,164 rows are
    those of the paper, and losses and metrics mask them; ``scored_only`` leaves them out (63,978 rows
    remain, evaluation is more than twice as fast, the metrics are the same).

    Args:
        path: folder, or Kaggle's zip.
        scored_only: leave out test rows that nobody scored.
        **options: see :class:`TextSource`.
    """

    name = "toxic"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC, --scored-only, and the texts' own."""
        parser.add_argument("src", metavar="SRC", help=f"folder or zip with {', '.join(FILES)}")
        parser.add_argument("--scored-only", action="store_true", help="leave out test rows whose labels are -1")
        cls.add_text_arguments(parser)

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> Toxic:
        """From the options."""
        return cls(options.src, options.scored_only, **cls.text_options(options))

    def __init__(self, path: str, scored_only: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._scored_only = scored_only
        place = expanded(path, "SRC")
        if not place.exists():
            raise DataError(f"{place}: does not exist; name the folder or zip with {', '.join(FILES)}.")
        self._files: dict[str, CsvFile] = {}
        for name in FILES:
            file = find_csv(place, name)
            if file is None:
                raise DataError(f"{place}: has no {name} (nor {name}.zip); put it there.")
            self._files[name] = file
        self._test_labels: dict[str, tuple[int, ...]] = {}

    def parameters(self) -> dict[str, Any]:
        """Scored only or not, and what the texts' own are."""
        return super().parameters() | {"scored_only": self._scored_only}

    def fingerprint(self) -> str:
        """Of all three files."""
        return combined_fingerprint([self._files[name].fingerprint() for name in FILES])

    def scan(self) -> Contents:
        """Labels of all rows; a row that cannot be read gets any label, it never arrives."""
        self._test_labels = self._read_test_labels()
        labels: dict[str, list[tuple[int, ...]]] = {"train": [], "test": []}
        for split, _, label in self._rows():
            labels[split].append(label[1] if not isinstance(label, Unreadable) else (0,) * len(LABELS))
        arrays: dict[str, NDArray[Any]] = {split: np.array(rows, dtype=np.int8) for split, rows in labels.items()}
        for split, array in arrays.items():
            if not array.size:
                raise DataError(f"{self._files[f'{split}.csv']}: has no rows below its head.")
        notes = []
        unscored = int((arrays["test"] < 0).all(axis=1).sum())
        if unscored:
            notes.append(f"{unscored} of {len(arrays['test'])} test rows are not scored (-1) and will be masked")
        return Contents("multilabel", "tokens", LABELS, arrays, encoding="tokens", notes=tuple(notes))

    def texts(self) -> Iterator[tuple[str, int, str | Unreadable]]:
        """train.csv, then test.csv."""
        for split, position, row in self._rows():
            yield split, position, row if isinstance(row, Unreadable) else row[0]

    def _rows(self) -> Iterator[tuple[str, int, tuple[str, tuple[int, ...]] | Unreadable]]:
        """(split, position, (text, labels)) of all rows."""
        train, test = self._files["train.csv"], self._files["test.csv"]
        for position, (line, values) in enumerate(train.rows(("comment_text", *LABELS))):
            if isinstance(values, Unreadable):
                yield "train", position, values
                continue
            labels = _numbers(values[1:], lowest=0)
            if labels is None:
                yield "train", position, Unreadable(f"{train}, line {line}", f"has the labels {values[1:]}")
            else:
                yield "train", position, (values[0], labels)
        position = 0
        for line, values in test.rows(("id", "comment_text")):
            row: tuple[str, tuple[int, ...]] | Unreadable
            if isinstance(values, Unreadable):
                row = values
            elif (known := self._test_labels.get(values[0])) is None:
                row = Unreadable(f"{test}, line {line}", f"has an id without labels: {values[0][:40]!r}")
            elif self._scored_only and min(known) < 0:
                continue
            else:
                row = (values[1], known)
            yield "test", position, row
            position += 1

    def _read_test_labels(self) -> dict[str, tuple[int, ...]]:
        file = self._files["test_labels.csv"]
        found: dict[str, tuple[int, ...]] = {}
        for line, values in file.rows(("id", *LABELS)):
            # Which comment a damaged line belongs to is lost: its comment becomes unreadable for want of labels.
            if isinstance(values, Unreadable) or (labels := _numbers(values[1:], lowest=-1)) is None:
                continue
            if values[0] in found:
                raise DataError(f"{file}: line {line} has the id {values[0][:40]!r} again; download it again.")
            found[values[0]] = labels
        return found


# Six labels have few combinations: one tuple for each, not one for each of 153,164 rows.
_SHARED: dict[tuple[int, ...], tuple[int, ...]] = {}


def _numbers(values: list[str], lowest: int) -> tuple[int, ...] | None:
    try:
        labels = tuple(int(value) for value in values)
    except ValueError:
        return None
    return _SHARED.setdefault(labels, labels) if all(lowest <= label <= 1 for label in labels) else None
