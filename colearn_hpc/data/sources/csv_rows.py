"""Rows of CSV files, plain, compressed or in a zip, one at a time."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from colearn_hpc.data.sources.base import Unreadable
from colearn_hpc.data.sources.tree import DAMAGE, file_fingerprint, require_readable
from colearn_hpc.errors import DataError

QUOTINGS = ("double", "none")
_LONGEST_FIELD = 16 * 2**20
_LONGEST_LINE = 64 * 2**20
_ENDINGS = (".csv", ".tsv", ".txt")
_PACKED: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
_ZIP = b"PK\x03\x04"
# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is written.

    Attributes:
        delimiter: between the columns.
        quoting: ``double``: a field may stand in double quotes, and then hold delimiters and line ends; ``none``:
            quotes are characters like any other, as in most files with tabs; ``None``: ``none`` for tabs, else
            ``double``.
        encoding: a name that Python knows; ``None``: UTF-8, or what the file's byte order mark says.
        columns: names of the columns of a file without a head line.
        set_by_options: messages may name the options of the command line.

    Raises:
        DataError: a setting that is impossible.
    """

    delimiter: str = ","
    quoting: str | None = None
    encoding: str | None = None
    columns: tuple[str, ...] | None = None
    set_by_options: bool = False

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0':
            raise DataError(f"--delimiter: {self.delimiter!r} was set; one character is needed, \\t for a tab.")
        if self.quoting not in (None, *QUOTINGS):
            raise DataError(f"--quoting: {self.quoting!r} was set; choose {' or '.join(QUOTINGS)}.")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, ValueError) as error:
                raise DataError(f"--encoding: {error}; utf-8, utf-16, cp1252 and latin-1 are usual ones.") from error
        if self.columns is not None and (not all(self.columns) or len(set(self.columns)) < len(self.columns)):
            raise DataError(f"--columns: {','.join(self.columns)} has a name that is empty or there twice.")

    @property
    def quoted(self) -> bool:
        """Whether double quotes may stand around a field."""
        return self.delimiter != "\t" if self.quoting is None else self.quoting == "double"


@dataclass(frozen=True)
class CsvFile:
    """A CSV file, alone, compressed (gzip, bzip2, xz), packed as the one table of a zip, or in a zip with others.

    Attributes:
        path: the file, or the zip that holds it.
        member: its name in a zip with others.
        form: how it is written.
    """

    path: Path
    member: str | None = None
    form: CsvForm = CsvForm()

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    def fingerprint(self) -> str:
        """See :func:`file_fingerprint`."""
        return file_fingerprint(self.path)

    def rows(self, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str] | Unreadable]]:
        """(line, values of ``columns``) of every row but the head; ``line`` is the row's last.

        A row of the wrong length, with NUL characters or with bytes that are not of the encoding comes as
        :class:`Unreadable`.

        Raises:
            DataError: the file or a column is missing, or a quote never closes.
        """
        before = csv.field_size_limit(_LONGEST_FIELD)
        encoding = ""
        with self._open() as binary:
            try:
                start = binary.peek(4)  # type: ignore[attr-defined]
                marked = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
                encoding = codecs.lookup(self.form.encoding or marked).name
                # Bytes that are no UTF-8 become lone surrogates, found below: one bad row must not end the file.
                text = io.TextIOWrapper(
                    binary, "utf-8-sig" if encoding == "utf-8" else encoding, errors="surrogateescape", newline=""
                )
                yield from self._parsed(self._lines(text), columns, encoding.upper())
            except UnicodeError as error:
                raise DataError(f"{self}: is not {encoding.upper()}: {error}. {self._advice('--encoding')}") from error
            except (csv.Error, *DAMAGE) as error:
                raise DataError(f"{self}: is damaged or no CSV: {error}. Copy or download it again.") from error
            finally:
                csv.field_size_limit(before)

    def _lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        first = True
        while line := text.readline(_LONGEST_LINE):
            if len(line) >= _LONGEST_LINE:
                raise DataError(f"{self}: has a line of more than {_LONGEST_LINE} characters; this is no CSV.")
            # Excel's first line "sep=;" is an order to Excel, not a row.
            if not (first and line.lower().startswith("sep=") and len(line.strip()) == 5):
                yield line
            first = False

    def _parsed(
        self, lines: Iterator[str], columns: tuple[str, ...], encoding: str
    ) -> Iterator[tuple[int, list[str] | Unreadable]]:
        # strict: a quote that is never closed is an error, and not a last field of a gigabyte.
        reader = csv.reader(
            lines,
            strict=True,
            delimiter=self.form.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.form.quoted else csv.QUOTE_NONE,
        )
        head = list(self.form.columns or [name.strip() for name in next(reader, [])])
        if not head:
            raise DataError(f"{self}: is empty, a first line with the names of the columns was expected.")
        if missing := [column for column in columns if column not in head]:
            found = ", ".join(repr(name) for name in head[:10])
            raise DataError(f"{self}: has no column {', '.join(missing)}; it has {found}. {self._hint(head, columns)}")
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
            elif self.form.columns and [name.strip() for name in row] == head:
                raise DataError(f"{self}: has the names of --columns in line {reader.line_num}; leave the option out.")
            elif any("\0" in value for value in values):
                yield reader.line_num, Unreadable(where, "holds NUL characters")
            elif any("\udc80" <= letter <= "\udcff" for value in values for letter in value):
                advice = f"; {self._advice('--encoding')}" if self.form.set_by_options else ""
                yield reader.line_num, Unreadable(where, f"is not {encoding}{advice.rstrip('.')}")
            else:
                yield reader.line_num, values

    def _advice(self, option: str) -> str:
        if not self.form.set_by_options:
            return "Copy or download it again."
        if option == "--encoding":
            return "if the whole file is of another encoding, set --encoding, cp1252 for one from Windows."
        return "correct the names, or name the columns of a file without a head line with --columns."

    def _hint(self, head: list[str], columns: tuple[str, ...]) -> str:
        if self.form.set_by_options and self.form.columns is None:
            line = self.form.delimiter.join(head)
            if "\0" in line:
                return "It looks like UTF-16 without a mark: set --encoding utf-16-le."
            for other in ";\t|,":
                if set(columns) <= {name.strip().strip('"') for name in line.split(other)}:
                    if other == self.form.delimiter:
                        return "Its fields stand in quotes: set --quoting double."
                    return f"Its columns are parted by {other!r}: set --delimiter."
        advice = self._advice("--columns") if self.form.set_by_options else "correct the names."
        return advice[0].upper() + advice[1:]

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with ExitStack() as stack:
            try:
                content: IO[bytes] = stack.enter_context(self.path.open("rb"))
                if self.member is not None:
                    content = _member(stack, content, self.member, str(self))
                # A table may be packed by itself, in a zip with others as well (Kaggle's form).
                start = content.peek(6)  # type: ignore[attr-defined]
                if start.startswith(_ZIP):
                    content = _member(stack, content, None, str(self))
                elif opener := next((one for mark, one in _PACKED if start.startswith(mark)), None):
                    content = stack.enter_context(opener(content, "rb"))
            except (*DAMAGE, KeyError, RuntimeError) as error:
                raise DataError(f"{self}: cannot be read: {error}. Correct the path, or copy it again.") from error
            yield content


def find_csv(place: Path, name: str) -> CsvFile | None:
    """``name`` in a folder or zip, itself or packed as ``name.zip``; ``None`` if it is not there.

    Raises:
        DataError: ``place`` is neither folder nor zip.
    """
    if place.is_dir():
        found = next((path for path in (place / name, place / f"{name}.zip") if path.is_file()), None)
        return CsvFile(found) if found else None
    try:
        with zipfile.ZipFile(place) as archive:
            by_base = {Path(member).name: member for member in archive.namelist() if not member.startswith("__MACOSX")}
    except DAMAGE as error:
        raise DataError(f"{place}: is neither a folder nor a zip: {error}. Correct the path.") from error
    member = by_base.get(name) or by_base.get(f"{name}.zip")
    return CsvFile(place, member) if member else None


def _member(stack: ExitStack, packed: IO[bytes], name: str | None, where: str) -> IO[bytes]:
    """A member of a zip; without a name its one table."""
    archive = stack.enter_context(zipfile.ZipFile(packed))
    if name is None:
        names = [n for n in archive.namelist() if n.lower().endswith(_ENDINGS) and not n.startswith("__MACOSX")]
        if len(names) != 1:
            raise DataError(f"{where}: holds {len(names)} tables ({', '.join(_ENDINGS)}), one was expected; unpack it.")
        name = names[0]
    require_readable(archive.getinfo(name), where)
    return stack.enter_context(archive.open(name))
