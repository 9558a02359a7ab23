"""Writing a shard as a stream. Format: :mod:`colearn_hpc.data.shards`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from colearn_hpc.data.shard_file import blocks
from colearn_hpc.data.shard_info import ENCODINGS, FORMAT, KINDS, LABEL_TYPES, TASKS, VERSION, read_info
from colearn_hpc.errors import DataError

# Examples gathered before HDF5 is called, whose cost per call is that of ~10 small images. One buffer per data center.
_BUFFER_BYTES = 2**20
_CHUNK_BYTES = 2**20
_INLINE_BYTES = 60_000  # of one attribute; HDF5 allows 64 KiB


class ShardWriter:
    """Append examples one by one; the shard appears under its name only when it is whole.

    Everything goes to a temporary file in the same folder, which :meth:`close` completes, syncs and
    renames. Leaving the ``with`` block by an exception (Ctrl-C included) removes it.
    Memory stays at a few MiB whatever the number of examples.

    With ``length`` the examples go straight into contiguous storage. Without it, or when fewer came
    (unreadable ones were skipped), or for images kept as bytes, closing copies the file once, since
    HDF5 cannot grow or shrink contiguous storage.

    Args:
        path: final name.
        task: ``classification`` or ``multilabel``.
        classes: names of the classes.
        source: the name of what made the shard, such as ``imagefolder``.
        encoding: ``array``, ``tokens`` or ``jpeg``.
        kind: ``image``, ``wave``, ``features`` or ``tokens``.
        length: the largest number of examples that may come; ``None`` when it is unknown.
        metadata: further attributes of the shard; :attr:`metadata` may be changed until :meth:`close`.

    Raises:
        DataError: an argument is impossible, the folder cannot be written, an example does not fit.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        task: str,
        classes: list[str] | tuple[str, ...],
        source: str = "",
        encoding: str = "array",
        kind: str = "features",
        length: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        for name, value, allowed in (("task", task, TASKS), ("encoding", encoding, ENCODINGS), ("kind", kind, KINDS)):
            if value not in allowed:
                raise DataError(f"{self.path}: {name} {value!r} is not one of {', '.join(allowed)}.")
        if not classes:
            raise DataError(f"{self.path}: no classes were given; a shard needs their names.")
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.examples = 0
        self._attributes: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "task": task,
            "classes": json.dumps(list(classes), ensure_ascii=False),
            "source": source,
            "encoding": encoding,
            "kind": kind,
        }
        self._length = length
        self._x: list[NDArray[Any]] = []
        self._y: list[Any] = []
        self._buffered = 0
        self._written_bytes = 0
        self._shape: tuple[int, ...] | None = None
        self._dtype: np.dtype[Any] | None = None
        self._temporary = temporary_name(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: h5py.File | None = h5py.File(self._temporary, "x", locking=False)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error}. Choose a folder that can be.") from error

    def append(self, x: ArrayLike | bytes, y: ArrayLike) -> None:
        """Add one example.

        Args:
            x: (…) numbers of the shape and type of the first example; the file's bytes for ``jpeg``.
            y: class number, or (classes,) of −1, 0, 1.

        Raises:
            DataError: another shape or type than the first example's, or more examples than announced.
        """
        if self._attributes["encoding"] == "jpeg":
            assert isinstance(x, bytes), "encoding jpeg takes bytes"
            array = np.frombuffer(x, dtype=np.uint8)
            if not array.size:
                raise DataError(f"{self.path}: example {self.examples} has no bytes.")
        else:
            array = np.asarray(x)
            if self._shape is None:
                self._shape, self._dtype = array.shape, array.dtype
            if array.shape != self._shape or array.dtype != self._dtype:
                raise DataError(
                    f"{self.path}: example {self.examples} has shape {array.shape} and type {array.dtype}, those "
                    f"before it {self._shape} and {self._dtype}; all must agree (images: use --size)."
                )
        if self._length is not None and self.examples >= self._length:
            raise DataError(f"{self.path}: more examples than the {self._length} announced.")
        self._x.append(array)
        self._y.append(y)
        self.examples += 1
        self._buffered += array.nbytes
        if self._buffered >= _BUFFER_BYTES or len(self._y) >= 4096:
            self._flush()

    def close(self) -> None:
        """Complete the file and give it its name.

        Raises:
            DataError: no example came, or the disk is full; no file is left then.
        """
        if self._file is None:
            return
        try:
            if self.examples == 0:
                raise DataError(f"{self.path}: would be empty, no example was written to it.")
            self._flush()
            for name, value in (self.metadata | self._attributes).items():
                self._file.attrs[name] = _inline(value)
            if self._needs_copy():
                self._copy_exact()
            self._file.close()
            self._file = None
            read_info(self._temporary)  # never give the name to a file that would be refused at open
            sync(self._temporary)
            self._temporary.replace(self.path)
            sync(self.path.parent)
        except DataError as error:
            self.abort()
            raise DataError(str(error).replace(str(self._temporary), str(self.path))) from error
        except OSError as error:
            self.abort()
            raise DataError(f"{self.path}: cannot be written: {error}. Is the disk full?") from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop everything written so far; the final name is not touched."""
        if self._file is not None:
            file, self._file = self._file, None
            # A full disk fails again while HDF5 flushes; the file goes anyway.
            with contextlib.suppress(OSError, RuntimeError):
                file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _flush(self) -> None:
        assert self._file is not None, "the shard is closed"
        if not self._y:
            return
        first = self.examples - len(self._y)
        try:
            labels = np.asarray(self._y, dtype=LABEL_TYPES[self._attributes["task"]])
            if "y" not in self._file:
                self._create_datasets(labels)
            self._put("y", first, labels)
            if self._attributes["encoding"] == "jpeg":
                ends = self._written_bytes + np.cumsum([part.size for part in self._x])
                self._put("offsets", first + 1, ends.astype(np.int64))
                self._put("x", self._written_bytes, np.concatenate(self._x))
                self._written_bytes = int(ends[-1])
            else:
                self._put("x", first, np.stack(self._x))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error}. Is the disk full?") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.path}: labels of examples {first} … {self.examples - 1}: {error}") from error
        self._x, self._y, self._buffered = [], [], 0

    def _create_datasets(self, labels: NDArray[Any]) -> None:
        assert self._file is not None
        self._create("y", labels.shape[1:], labels.dtype, self._length)
        if self._attributes["encoding"] == "jpeg":
            self._create("offsets", (), np.dtype("int64"), None if self._length is None else self._length + 1)
            self._put("offsets", 0, np.zeros(1, dtype=np.int64))
            self._create("x", (), np.dtype("uint8"), None)
        else:
            assert self._shape is not None and self._dtype is not None
            self._create("x", self._shape, self._dtype, self._length)

    def _create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], length: int | None) -> None:
        assert self._file is not None
        if length is not None:
            self._file.create_dataset(name, (length, *shape), dtype)
        else:
            rows = max(1, _CHUNK_BYTES // max(1, dtype.itemsize * int(np.prod(shape, dtype=np.int64))))
            self._file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape))

    def _put(self, name: str, first: int, rows: NDArray[Any]) -> None:
        assert self._file is not None
        dataset = self._file[name]
        if first + len(rows) > len(dataset):
            dataset.resize(first + len(rows), axis=0)
        dataset[first : first + len(rows)] = rows

    def _exact_lengths(self) -> dict[str, int]:
        jpeg = self._attributes["encoding"] == "jpeg"
        lengths = {"x": self._written_bytes if jpeg else self.examples, "y": self.examples}
        return lengths | ({"offsets": self.examples + 1} if jpeg else {})

    def _needs_copy(self) -> bool:
        file = self._file
        assert file is not None
        return any(file[name].chunks or len(file[name]) != n for name, n in self._exact_lengths().items())

    def _copy_exact(self) -> None:
        assert self._file is not None
        exact = self._temporary.with_name(self._temporary.name.replace(".tmp", ".copy.tmp"))
        try:
            with h5py.File(exact, "x", locking=False) as target:
                target.attrs.update(self._file.attrs)
                for name, length in self._exact_lengths().items():
                    dataset = self._file[name]
                    copy = target.create_dataset(name, (length, *dataset.shape[1:]), dataset.dtype)
                    for start, block in blocks(dataset):
                        if start < length:
                            copy[start : start + len(block)] = block[: length - start]
            self._file.close()
            exact.replace(self._temporary)
            self._file = h5py.File(self._temporary, "r", locking=False)
        finally:
            exact.unlink(missing_ok=True)


def _inline(value: Any) -> Any:
    """Text as bytes in the file's head: on a damaged heap, where text of any length lies, HDF5 loops for ever."""
    if not isinstance(value, str) or len(content := value.encode("utf-8")) > _INLINE_BYTES:
        return value
    return np.array(content, dtype=f"S{max(1, len(content))}")


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` that says whose it is, so that :func:`remove_leftovers` can tell the dead.

    Nobody can guess it, and whoever opens it creates it (mode ``x``): a link that somebody laid there is never
    followed.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, own: bool = False) -> None:
    """Remove temporary files in ``folder`` that killed processes of this host left behind.

    Args:
        folder: where to look.
        own: also those of this process, when it has no writer open there any more.
    """
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.removesuffix(".tmp").removesuffix(".copy").rpartition(".")[0].rpartition(".")[2]
        if pid.isdigit() and (own if int(pid) == os.getpid() else not _alive(int(pid))):
            path.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a file so that a reader sees the old content or the new, never a part."""
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}. Is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Push a file or folder to the disk, so that a rename never arrives before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
