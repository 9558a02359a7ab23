"""A shard's HDF5 file: opened, with whatever HDF5 dislikes in a sentence, and held to what can be read past HDF5."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

_MOST_VALUES = 2**16  # of one attribute; mean and std have one per channel
_BLOCK_BYTES = 16 * 2**20


@contextmanager
def open_shard(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file, for reading; whatever HDF5 dislikes becomes a DataError that names the file.

    Locking is off: shards never change under their final name, and many cluster file systems refuse locks.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such shard. Make shards with `colearn-hpc data`, or correct the path.")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"{path}: is {what}, a shard (an .h5 file) was expected; name the file itself.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: {_why_unreadable(path, error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, PermissionError):
        return "may not be read by this user; correct its permissions."
    if "unable to lock file" in text:  # only where HDF5_USE_FILE_LOCKING=TRUE overrules what we ask for
        return (
            "is locked by another program, or lies on a file system without locks; wait until that program has "
            "closed it, or set HDF5_USE_FILE_LOCKING=FALSE."
        )
    if "already open for" in text:
        return (
            "is marked as open for writing: a program writes it now, or was killed while it did; wait, or write it "
            "again."
        )
    size = path.stat().st_size
    reason = "is empty (0 bytes)" if size == 0 else f"cannot be read as HDF5 ({size} bytes): {text}"
    return f"{reason}. It is damaged, cut short, or no shard; write or copy it again."


def read_attribute(file: h5py.File, name: str, path: Path) -> Any:
    """An attribute as Python's own number, text or list.

    Raises:
        DataError: it claims more values than any attribute of a shard has.
    """
    # Before it is read: a damaged length would have HDF5 make millions of values of nothing.
    values = math.prod(file.attrs.get_id(name).shape or ())
    if values > _MOST_VALUES:
        raise DataError(
            f"{path}: attribute {name} has {values} values, at most {_MOST_VALUES} are read; it is damaged."
        )
    return _plain(file.attrs[name])


def stored_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A data set whose rows lie in this very file, one after the other, as the machine's own numbers.

    Raises:
        DataError: it is missing, or stored in any other way.
    """
    # Rows are read past HDF5, at their place in this file: everything that lies elsewhere, or is stored in another form
    # than the machine's own, would be read as other numbers.
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
        target = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
        raise DataError(f"{path}: data set {name!r} is a link to {target}, a shard holds its own; write it again.")
    try:
        found = file[name] if link is not None else None
    except (KeyError, OSError) as error:
        raise DataError(
            f"{path}: data set {name!r} cannot be opened: {error}; write or copy the shard again."
        ) from error
    if not isinstance(found, h5py.Dataset):
        present = ", ".join(sorted(file)) or "nothing"
        raise DataError(f"{path}: has no data set {name!r} (found: {present}); write the shard again.")
    if found.is_virtual or found.external:
        form = "is a view of other data sets (virtual)" if found.is_virtual else "lies in another file (external)"
        raise DataError(f"{path}: data set {name!r} {form}, a shard holds its own; write it again.")
    if found.dtype.kind in "iuf":
        if not found.dtype.isnative:
            raise DataError(
                f"{path}: data set {name!r} has the byte order of another machine ({found.dtype.str}); write the shard "
                "again on this one, or convert it with NumPy."
            )
        if not found.id.get_type().equal(h5py.h5t.py_create(found.dtype)):
            raise DataError(
                f"{path}: data set {name!r} is stored in a form of its own that HDF5 converts to {found.dtype}; write "
                "the shard again with plain numbers."
            )
    if found.size and found.chunks is None and found.id.get_storage_size() == 0:
        raise DataError(f"{path}: data set {name!r} was announced but never written; write the shard again.")
    if found.ndim and found.size and found.id.get_offset() is None:
        raise DataError(
            f"{path}: data set {name!r} is chunked or compressed, a shard's must be contiguous; write it again, or "
            "convert it with `h5repack -l CONTI`."
        )
    return found


def blocks(dataset: h5py.Dataset, block_bytes: int = _BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first row, rows) of a data set, in pieces of about ``block_bytes``, so that memory stays flat."""
    row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64)))
    step = max(1, block_bytes // row_bytes)
    for start in range(0, len(dataset), step):
        yield start, dataset[start : start + step]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value
