"""Any CSV with a column of text and one or more columns of labels."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.sources.base import Contents, Unreadable, single_labels
from colearn_hpc.data.sources.csv_rows import CsvFile
from colearn_hpc.data.sources.text import TextSource, combined_fingerprint
from colearn_hpc.errors import DataError

MOST_CLASSES = 10_000


class CsvText(TextSource):
    """One label column: its values are the classes. Several: each is a label with 0, 1, or −1 for "not known".

    Without ``test`` a fixed, stratified tenth of the rows becomes the test set (several labels: any tenth); it does
    not follow ``--seed``.

    Args:
        path: training CSV, UTF-8, with a head line.
        text: name of the text column.
        labels: names of the label columns.
        test: CSV of the test rows.
        val: CSV of the validation rows.
        delimiter: between the columns.
        **options: see :class:`TextSource`.
    """

    name = "csv-text"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC, the columns, further files."""
        parser.add_argument("src", metavar="SRC", help="CSV file with the training rows")
        parser.add_argument("--text", required=True, metavar="COLUMN", help="name of the text column")
        parser.add_argument(
            "--labels", required=True, metavar="COLUMN,…", help="one column: classes; several: 0/1 each"
        )
        parser.add_argument("--test", metavar="FILE", help="CSV with the test rows (default: a tenth of SRC)")
        parser.add_argument("--val", metavar="FILE", help="CSV with the validation rows")
        parser.add_argument("--delimiter", default=",", help="between the columns; \\t for tab (default: %(default)s)")
        cls.add_text_arguments(parser)

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> CsvText:
        """From the options."""
        labels = tuple(name.strip() for name in options.labels.split(","))
        return cls(
            options.src,
            options.text,
            labels,
            test=options.test,
            val=options.val,
            delimiter=options.delimiter.replace("\\t", "\t"),
            **cls.text_options(options),
        )

    def __init__(
        self,
        path: str,
        text: str,
        labels: tuple[str, ...],
        test: str | None = None,
        val: str | None = None,
        delimiter: str = ",",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if len(delimiter) != 1:
            raise DataError(f"--delimiter: {delimiter!r} was set; one character is needed.")
        if not all(labels) or len({text, *labels}) <= len(labels):
            raise DataError(f"--labels: {', '.join(labels)} and --text {text} must be different columns.")
        self._columns = (text, *labels)
        self._delimiter = delimiter
        given = (("train", path), ("val", val), ("test", test))
        self._files = {
            split: CsvFile(Path(name).expanduser(), delimiter=delimiter) for split, name in given if name is not None
        }
        for file in self._files.values():
            if not file.path.is_file():
                raise DataError(f"{file.path}: there is no such file; correct the path.")
        self._test_rows: NDArray[np.bool_] | None = None

    def parameters(self) -> dict[str, Any]:
        """Columns, and what the texts' own are."""
        return super().parameters() | {"columns": list(self._columns), "delimiter": self._delimiter}

    def fingerprint(self) -> str:
        """Of all files."""
        return combined_fingerprint([f"{split}={file.fingerprint()}" for split, file in self._files.items()])

    def labelled(self) -> Contents:
        """Classes and labels of all rows; a row that cannot be read gets any label, it never arrives."""
        raw = {split: self._raw_labels(file) for split, file in self._files.items()}
        names = self._columns[1:]
        if len(names) > 1:
            task, classes = "multilabel", names
            labels: dict[str, NDArray[Any]] = {
                s: np.array(r, dtype=np.int8).reshape(-1, len(names)) for s, r in raw.items()
            }
        else:
            task = "classification"
            classes = tuple(sorted({value for value in raw["train"] if value is not None}))
            if not 1 <= len(classes) <= MOST_CLASSES:
                raise DataError(
                    f"{self._files['train']}: column {names[0]} has {len(classes)} classes; is it the right one?"
                )
            number: dict[Any, int] = {value: i for i, value in enumerate(classes)} | {None: 0}
            for split, values in raw.items():
                if unknown := sorted({value for value in values if value not in number}):
                    raise DataError(
                        f"{self._files[split]}: has classes that the training rows have not: {', '.join(unknown[:5])}."
                    )
            labels = {split: single_labels([number[value] for value in values]) for split, values in raw.items()}
        if "test" not in labels:
            self._test_rows = _tenth(labels["train"])
            labels["test"], labels["train"] = labels["train"][self._test_rows], labels["train"][~self._test_rows]
        return Contents(task, "tokens", classes, labels)

    def texts(self) -> Iterator[tuple[str, int, str | Unreadable]]:
        """File by file."""
        for split, file in self._files.items():
            count = {"train": 0, "val": 0, "test": 0}
            for row, (line, values) in enumerate(file.rows(self._columns)):
                target = "test" if split == "train" and self._test_rows is not None and self._test_rows[row] else split
                if not isinstance(values, Unreadable) and self._label(values[1:]) is None:
                    values = Unreadable(f"{file}, line {line}", f"has the labels {', '.join(values[1:])[:60]!r}")
                yield target, count[target], values if isinstance(values, Unreadable) else values[0]
                count[target] += 1

    def _raw_labels(self, file: CsvFile) -> list[Any]:
        several = len(self._columns) > 2
        filler = [0] * (len(self._columns) - 1) if several else None
        found = []
        for _, values in file.rows(self._columns):
            label = None if isinstance(values, Unreadable) else self._label(values[1:])
            found.append(filler if label is None else label)
        if not found:
            raise DataError(f"{file}: has no rows below its head.")
        return found

    def _label(self, values: list[str]) -> Any:
        if len(values) == 1:
            return values[0].strip() or None
        numbers = {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1}
        labels = [numbers.get(value.strip()) for value in values]
        return None if None in labels else labels


def _tenth(labels: NDArray[Any]) -> NDArray[np.bool_]:
    rng = np.random.RandomState(0)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    groups = [np.arange(len(labels))]
    if labels.ndim == 1:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for members in groups:
        chosen[rng.permutation(members)[: round(0.1 * members.size)]] = True
    return chosen
