"""The files in which means are kept: written chunk by chunk while a mean is taken, renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from colearn_hpc.federation import wire
from colearn_hpc.federation.codecs import CODECS
from colearn_hpc.federation.wire import JOINED, LAST_MODEL, ROUND_MEAN, Hello, WireError

KEPT = 2  # means
ENDINGS = {ROUND_MEAN: "", LAST_MODEL: ".last", JOINED: ".join"}


class MeanFiles:
    """Which means lie in a folder, and where.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mean_path(self, number: int, part: int = ROUND_MEAN) -> Path:
        return self.folder / f"mean-{number}{ENDINGS[part]}"

    def means(self) -> list[int]:
        """Numbers of the means that are kept."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("mean-*") if path.name[5:].isdigit())

    def lacks_path(self, number: int) -> Path:
        return self.folder / f"lacks-{number}"

    def lacks(self) -> list[int]:
        """Numbers of the means of which it is known what their messages lacked."""
        return sorted(int(path.name[6:]) for path in self.folder.glob("lacks-*") if path.name[6:].isdigit())


class Spool:
    """A mean that is written, chunk by chunk in order, while it is taken; and what its messages lack."""

    def __init__(self, store: MeanFiles, hello: Hello) -> None:
        self._store, self._hello = store, hello
        name = f"{hello.number}-{os.getpid()}-{time.monotonic_ns()}"
        self._path, self._lacks_path = store.folder / f".mean-{name}", store.folder / f".lacks-{name}"
        self._file = self._path.open("wb")
        self._file.write(_head(hello))
        self._lacks: BinaryIO | None = None
        self._lacked: BinaryIO | None = None
        if hello.codec and CODECS[hello.codec].feedback:
            self._lacks = self._lacks_path.open("wb")
            before = [number for number in store.lacks() if number < hello.number]
            # That of a vector of another length is of other parameters.
            if before and store.lacks_path(before[-1]).stat().st_size == 4 * hello.coded:
                self._lacked = store.lacks_path(before[-1]).open("rb")

    def lacked(self, count: int) -> np.ndarray[Any, Any]:
        """The next ``count`` numbers that the messages of the mean before lacked, float32; zeros where there was none.

        Raises:
            OSError: the disk refuses, or the mean came to nothing meanwhile.
        """
        if self._lacked is None:
            return np.zeros(count, dtype="<f4")
        with _open():
            return np.frombuffer(self._lacked.read(4 * count), "<f4")

    def lacks(self, numbers: np.ndarray[Any, Any]) -> None:
        """What this mean's next message lacks. Raises OSError as :meth:`lacked`."""
        assert self._lacks is not None, "a codec with feedback"
        with _open():
            self._lacks.write(numbers.astype("<f4", copy=False).data)

    def write(self, content: bytes | memoryview) -> None:
        """Add a chunk. Raises OSError where the disk refuses, or the mean came to nothing meanwhile."""
        with _open():
            self._file.write(content)

    def sync(self) -> None:
        """Let the disk begin: the last chunk then waits less. May be called from another thread; so may :meth:`keep`.

        Raises:
            OSError: the disk refuses, or the mean came to nothing meanwhile.
        """
        with _open():
            for file in filter(None, (self._lacks, self._file)):
                file.flush()
                os.fdatasync(file.fileno())

    def keep(self) -> None:
        """The mean is whole: durable under its name when this returns. Older ones than the last two are removed."""
        self.sync()
        self._close()
        if self._lacks is not None:
            # First: where a kill comes before the mean has its name, this one is taken again and overwritten.
            self._lacks_path.replace(self._store.lacks_path(self._hello.number))
            for number in self._store.lacks()[:-KEPT]:
                self._store.lacks_path(number).unlink(missing_ok=True)
        self._path.replace(self._store.mean_path(*self._hello.key))
        _sync_folder(self._store.folder)
        for number in self._store.means()[:-KEPT]:
            for part in ENDINGS:
                self._store.mean_path(number, part).unlink(missing_ok=True)

    def drop(self) -> None:
        """The mean came to nothing."""
        self._close()
        self._path.unlink(missing_ok=True)
        self._lacks_path.unlink(missing_ok=True)

    def _close(self) -> None:
        for file in filter(None, (self._file, self._lacks, self._lacked)):
            file.close()


@contextlib.contextmanager
def _open() -> Iterator[None]:
    """A file is worked on that another task may close, because the mean came to nothing."""
    try:
        yield
    except ValueError:
        raise OSError("the mean came to nothing meanwhile") from None


class KeptMean:
    """A kept mean, read chunk by chunk."""

    def __init__(self, path: Path, hello: Hello) -> None:
        self._file = path.open("rb")
        size = int.from_bytes(self._file.read(4), "little")
        kept = wire.unpack(self._file.read(size))
        same = kept[:3] == hello.to_plain()[:3] and kept[6:] == hello.to_plain()[6:]
        if not same:
            self._file.close()
            raise WireError(f"mean {hello.number} is of {kept[1]} x {kept[2]}, not of {hello.size} x {hello.dtype}")
        self._hello = hello

    def chunk(self, chunk: int) -> bytes:
        """The next chunk."""
        return self._file.read(self._hello.length(chunk))

    def close(self) -> None:
        self._file.close()


def _head(hello: Hello) -> bytes:
    head = wire.pack(hello.to_plain())
    return len(head).to_bytes(4, "little") + head


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
