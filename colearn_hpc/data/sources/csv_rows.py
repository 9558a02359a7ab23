"""Rows of CSV files, from a folder or a zip, one at a time."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from colearn_hpc.data.sources.base import Unreadable
from colearn_hpc.data.sources.tree import file_fingerprint
from colearn_hpc.errors import DataError

_LONGEST_FIELD = 16 * 2**20


@dataclass(frozen=True)
class CsvFile:
    """A CSV file, alone, packed as ``name.csv.zip``, or in a zip with others (Kaggle's forms).

    Attributes:
        path: the file, or the zip that holds it.
        member: its name in the zip.
        delimiter: between the columns.
    """

    path: Path
    member: str | None = None
    delimiter: str = ","

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    def fingerprint(self) -> str:
        """See :func:`file_fingerprint`."""
        return file_fingerprint(self.path)

    def rows(self, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str] | Unreadable]]:
        """(line, values of ``columns``) of every row but the head.

        A row of the wrong length, with NUL characters or with bytes that are no UTF-8 comes as
        :class:`Unreadable`.

        Raises:
            DataError: the file or a column is missing, or a quote never closes.
        """
        with self._open() as binary:
            # Bytes that are no UTF-8 become lone surrogates, found below: one bad row must not end the file.
            text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
            before = csv.field_size_limit(_LONGEST_FIELD)
            try:
                yield from self._parsed(text, columns)
            except (csv.Error, zipfile.BadZipFile, EOFError, OSError) as error:
                raise DataError(f"{self}: is damaged or no CSV: {error}. Copy or download it again.") from error
            finally:
                csv.field_size_limit(before)

    def _parsed(self, text: io.TextIOWrapper, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str] | Unreadable]]:
        # strict: a quote that is never closed is an error, and not a last field of a gigabyte.
        reader = csv.reader(text, strict=True, delimiter=self.delimiter)
        head = next(reader, None)
        if not head:
            raise DataError(f"{self}: is empty, a first line with the names of the columns was expected.")
        if missing := [column for column in columns if column not in head]:
            found = ", ".join(repr(name) for name in head[:10])
            raise DataError(f"{self}: has no column {', '.join(missing)}; it has {found}. Correct the names.")
        if twice := [column for column in columns if head.count(column) > 1]:
            raise DataError(f"{self}: has the column {twice[0]} twice; rename one.")
        places = [head.index(column) for column in columns]
        for row in reader:
            if not row:
                continue  # an empty line
            where = f"{self}, line {reader.line_num}"
            values = [row[place] for place in places] if len(row) == len(head) else []
            if not values:
                yield reader.line_num, Unreadable(where, f"has {len(row)} columns, {len(head)} expected")
            elif any("\0" in value for value in values):
                yield reader.line_num, Unreadable(where, "holds NUL characters")
            elif any("\udc80" <= letter <= "\udcff" for value in values for letter in value):
                yield reader.line_num, Unreadable(where, "is not UTF-8")
            else:
                yield reader.line_num, values

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with ExitStack() as stack:
            try:
                if self.member is None:
                    yield stack.enter_context(self.path.open("rb"))
                    return
                content: IO[bytes] = stack.enter_context(
                    stack.enter_context(zipfile.ZipFile(self.path)).open(self.member)
                )
                if self.member.endswith(".zip"):
                    inner = stack.enter_context(zipfile.ZipFile(content))
                    content = stack.enter_context(inner.open(_only_csv(inner, str(self))))
            except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
                raise DataError(f"{self}: cannot be read: {error}. Correct the path, or copy it again.") from error
            yield content


def find_csv(place: Path, name: str) -> CsvFile | None:
    """``name`` in a folder or zip, itself or packed as ``name.zip``; ``None`` if it is not there.

    Raises:
        DataError: ``place`` is neither folder nor zip.
    """
    if place.is_dir():
        if (place / name).is_file():
            return CsvFile(place / name)
        packed = place / f"{name}.zip"
        if not packed.is_file():
            return None
        with _zip(packed) as archive:
            return CsvFile(packed, _only_csv(archive, str(packed)))
    with _zip(place) as archive:
        by_base = {Path(member).name: member for member in archive.namelist() if not member.startswith("__MACOSX")}
    member = by_base.get(name) or by_base.get(f"{name}.zip")
    return CsvFile(place, member) if member else None


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is neither a folder nor a zip: {error}. Correct the path.") from error


def _only_csv(archive: zipfile.ZipFile, where: str) -> str:
    names = [n for n in archive.namelist() if n.lower().endswith(".csv") and not n.startswith("__MACOSX")]
    if len(names) != 1:
        raise DataError(f"{where}: holds {len(names)} CSV files, one was expected; unpack it.")
    return names[0]
