"""Any CSV with a column of text and one or more columns of labels."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources.base import Contents, Unreadable, number_classes
from colearn_hpc.data.sources.csv_rows import QUOTINGS, CsvFile, CsvForm
from colearn_hpc.data.sources.text import TextSource, combined_fingerprint
from colearn_hpc.errors import DataError

MOST_CLASSES = 10_000
_LONG_ROW = 100  # lines


class CsvText(TextSource):
    """One label column: its values are the classes. Several: each is a label with 0, 1, or −1 for "not known".

    Args:
        path: CSV with the training rows.
        text: name of the text column, or several: their texts are put one behind the other.
        labels: names of the label columns.
        test: CSV of the test rows.
        val: CSV of the validation rows.
        group_by: name of the column that tells who a row comes from, such as ``hospital``.
        form: how the files are written.
        **options: see :class:`TextSource`.
    """

    name = "csv-text"
    test_fraction = 0.1

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC, the columns, further files."""
        parser.add_argument("src", metavar="SRC", help="CSV file with the training rows")
        parser.add_argument(
            "--text", required=True, metavar="COLUMN,…", help="text column; several are put one behind the other"
        )
        parser.add_argument(
            "--labels", required=True, metavar="COLUMN,…", help="one column: classes; several: 0/1 each"
        )
        parser.add_argument("--test", metavar="FILE", help="CSV with the test rows")
        parser.add_argument("--val", metavar="FILE", help="CSV with the validation rows")
        parser.add_argument("--group-by", metavar="COLUMN", help="column for --partition by-group, such as hospital")
        parser.add_argument("--delimiter", default=",", help="between the columns; \\t for tab (default: %(default)s)")
        parser.add_argument(
            "--quoting", choices=QUOTINGS, help="whether fields may stand in double quotes (default: none for tabs)"
        )
        parser.add_argument("--encoding", help="of the files, e.g. cp1252 (default: UTF-8, or as their mark says)")
        parser.add_argument("--columns", metavar="NAME,…", help="names of the columns of files without a head line")
        cls.add_text_arguments(parser)

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> CsvText:
        """From the options."""
        form = CsvForm(
            delimiter=options.delimiter.replace("\\t", "\t"),
            quoting=options.quoting,
            encoding=options.encoding,
            columns=_names(options.columns) if options.columns is not None else None,
            set_by_options=True,
        )
        texts, labels, files = _names(options.text), _names(options.labels), {"test": options.test, "val": options.val}
        return cls(
            options.src, texts, labels, form=form, group_by=options.group_by, **files, **cls.text_options(options)
        )

    def __init__(
        self,
        path: str,
        text: str | tuple[str, ...],
        labels: tuple[str, ...],
        test: str | None = None,
        val: str | None = None,
        group_by: str | None = None,
        form: CsvForm = CsvForm(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        super().__init__(**options)
        texts = (text,) if isinstance(text, str) else text
        columns = (*texts, *labels)
        if not (texts and labels and all(columns)) or len(set(columns)) < len(columns):
            raise DataError(f"--labels: {', '.join(labels)} and --text {', '.join(texts)} must be different columns.")
        self._texts, self._labels, self._group_by = texts, labels, group_by
        # A group may be a class or a text as well.
        self._columns = columns if group_by in (None, *columns) else (*columns, str(group_by))
        self._form = form
        given = {"train": (path, "SRC"), "val": (val, "--val"), "test": (test, "--test")}
        self._files = {
            split: CsvFile(expanded(name, option), form=form)
            for split, (name, option) in given.items()
            if name is not None
        }
        for file in self._files.values():
            if not file.path.is_file():
                raise DataError(f"{file.path}: there is no such file; correct the path.")

    def parameters(self) -> dict[str, Any]:
        """Columns, form, and what the texts' own are."""
        columns = {"columns": [*self._texts, *self._labels], "text_columns": len(self._texts)}
        form = asdict(self._form)
        del form["set_by_options"]
        # Only where it is set: folders of earlier versions are still this data set.
        grouped = {"group_by": self._group_by} if self._group_by is not None else {}
        return super().parameters() | columns | {"form": form} | grouped

    def fingerprint(self) -> str:
        """Of all files."""
        return combined_fingerprint([f"{split}={file.fingerprint()}" for split, file in self._files.items()])

    def scan(self) -> Contents:
        """Classes and labels of all rows; a row that cannot be read gets any label, it never arrives."""
        notes: list[str] = []
        found = {split: self._found(file, notes) for split, file in self._files.items()}
        raw = {split: [label for label, _ in rows] for split, rows in found.items()}
        groups: dict[str, list[str]] = {}
        if self._group_by is not None:
            anyone = next((group for _, group in found["train"] if group), "")
            groups = {split: [group or anyone for _, group in rows] for split, rows in found.items()}
        names = self._labels
        if len(names) > 1:
            task, classes = "multilabel", names
            labels: dict[str, Any] = {
                split: np.array(rows, dtype=np.int8).reshape(-1, len(names)) for split, rows in raw.items()
            }
        else:
            task = "classification"
            known = sorted({value for value in raw["train"] if value is not None})
            if not 1 <= len(known) <= MOST_CLASSES:
                raise DataError(
                    f"{self._files['train']}: column {names[0]} has {len(known)} classes; is it the right one?"
                )
            filled = {split: [known[0] if value is None else value for value in rows] for split, rows in raw.items()}
            classes, labels = number_classes(filled, self._files["train"])
        return Contents(
            task,
            "tokens",
            classes,
            labels,
            encoding="tokens",
            notes=tuple(notes),
            unsplit="test" not in raw,
            groups=groups,
        )

    def texts(self) -> Iterator[tuple[str, int, str | Unreadable]]:
        """File by file."""
        for split, file in self._files.items():
            for row, (line, values) in enumerate(file.rows(self._columns)):
                text: str | Unreadable
                if isinstance(values, Unreadable):
                    text = values
                elif self._label(values) is None:
                    labels = ", ".join(self._label_fields(values))[:60]
                    text = Unreadable(f"{file}, line {line}", f"has the labels {labels!r}")
                elif self._group(values) == "":
                    text = Unreadable(f"{file}, line {line}", f"has no {self._group_by}")
                else:
                    text = " ".join(values[: len(self._texts)])
                yield split, row, text

    def _found(self, file: CsvFile, notes: list[str]) -> list[tuple[Any, str | None]]:
        """Label and group of every row."""
        filler = [0] * len(self._labels) if len(self._labels) > 1 else None
        found = []
        before = 0
        first_fault: Unreadable | None = None
        readable = False
        for line, values in file.rows(self._columns):
            if isinstance(values, Unreadable):
                first_fault = first_fault or values
            else:
                readable = True
            label, group = (
                (None, None) if isinstance(values, Unreadable) else (self._label(values), self._group(values))
            )
            found.append((filler if label is None else label, group))
            # A text may hold line ends. Where quotes are no quotes, two of them swallow all rows between.
            if line - before > _LONG_ROW:
                notes.append(
                    f"{file}: the row that ends in line {line} has {line - before} lines; if quotes are characters "
                    "like any other here, set --quoting none"
                )
            before = line
        if not found:
            raise DataError(f"{file}: has no rows below its head.")
        if first_fault is not None and not readable:
            raise DataError(f"{first_fault.name}: {first_fault.reason}; no row of the file can be read.")
        return found

    def _label_fields(self, values: list[str]) -> list[str]:
        return values[len(self._texts) : len(self._texts) + len(self._labels)]

    def _group(self, values: list[str]) -> str | None:
        return None if self._group_by is None else values[self._columns.index(self._group_by)].strip()

    def _label(self, row: list[str]) -> Any:
        values = self._label_fields(row)
        if len(values) == 1:
            return values[0].strip() or None
        numbers = {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1}
        labels = [numbers.get(value.strip()) for value in values]
        return None if None in labels else labels


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
