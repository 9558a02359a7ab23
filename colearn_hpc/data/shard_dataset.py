"""A shard as a torch data set that fetches whole batches. Format: :mod:`colearn_hpc.data.shards`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from colearn_hpc.data.shard_file import open_shard
from colearn_hpc.data.shard_info import info_of
from colearn_hpc.errors import DataError

PRELOAD_LIMIT = 2**30

Decoder = Callable[[bytes, np.random.Generator], NDArray[np.uint8]]


class _Rows:
    """Rows of a contiguous HDF5 data set, read past HDF5: they lie in the file one after the other.

    One ``pread`` a row takes a fraction of the time of HDF5's selection machinery, and it is safe where HDF5 is not:
    it has no file position and no library state that a forked worker could share with its parent.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.start = int(dataset.id.get_offset())
        self.dtype = dataset.dtype
        self.shape = tuple(int(length) for length in dataset.shape[1:])
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def take(self, handle: int, positions: list[int]) -> NDArray[Any]:
        """(B, …) the rows at ``positions``."""
        batch = np.empty((len(positions), *self.shape), dtype=self.dtype)
        view = batch.reshape(-1).view(np.uint8).data
        size = self.row_bytes
        for row, position in enumerate(positions):
            read_at(handle, view[row * size : (row + 1) * size], self.start + position * size)
        return batch


class ShardDataset(Dataset):
    """The examples of one shard; ``dataset[[3, 1, 4]]`` fetches a batch in one call.

    A small shard is read into memory at open. A larger one is read row by row into the batch. The file is opened on
    first use, again in each process that the data set is pickled to.

    Args:
        path: the shard.
        preload: ``True``: read it whole now; ``False``: never; ``"auto"``: up to ``preload_limit``.
        preload_limit: bytes, 1 GiB by default.
        decode: for shards of images kept as bytes: (file's bytes, random generator) → (3, H, W) uint8 of one
            size. Default: plain decoding, which only works where all images have one size.
        seed: of the generator given to ``decode``, together with epoch and index.

    Attributes:
        info: the shard's description.

    Raises:
        DataError: see :func:`colearn_hpc.data.shards.read_info`.
    """

    def __init__(
        self,
        path: str | Path,
        preload: Literal["auto"] | bool = "auto",
        *,
        preload_limit: int = PRELOAD_LIMIT,
        decode: Decoder | None = None,
        seed: int = 0,
    ) -> None:
        if preload not in ("auto", True, False):
            raise DataError(f"preload: {preload!r} was set; choose auto, true or false.")
        path = Path(path)
        self._decode = decode
        self._seed = seed
        self._handle: BinaryIO | None = None
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self._offsets: NDArray[np.int64] | None = None
        with open_shard(path) as file:
            self.info = info_of(file, path)
            self._rows = {name: _Rows(file[name]) for name in ("x", "y")}
            size = file["x"].nbytes + file["y"].nbytes
            if preload is True or (preload == "auto" and size <= preload_limit):
                self._x = torch.from_numpy(file["x"][...])
                self._y = torch.from_numpy(file["y"][...])
            if self.info.encoding == "jpeg":
                self._offsets = file["offsets"][...]
            self._state = _state(path)

    @property
    def preloaded(self) -> bool:
        """Whether the shard is held in memory."""
        return self._x is not None

    def __len__(self) -> int:
        """Number of examples."""
        return self.info.examples

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """One example, or a whole batch.

        Args:
            index: a position, or a list of B positions; negative ones count from the end.

        Returns:
            ``x`` (…) and ``y`` () or (classes,); for a list ``x`` (B, …) and ``y`` (B,) or (B, classes),
            with the types that the shard stores.

        Raises:
            IndexError: a position outside the shard.
            DataError: the file vanished, was replaced, or cannot be read any more.
        """
        if isinstance(index, int | np.integer):
            x, y = self[[int(index)]]
            return x[0], y[0]
        if self._x is not None and self._y is not None and self._offsets is None:
            positions = torch.tensor(index, dtype=torch.int64)
            return self._x[positions], self._y[positions]
        chosen = self._positions(index)
        if self.info.encoding == "jpeg":
            x = self._decoded(chosen, getattr(index, "epoch", 0))
        else:
            x = torch.from_numpy(self._read("x", chosen))
        return x, torch.from_numpy(self._read("y", chosen))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def _positions(self, index: Sequence[int]) -> list[int]:
        n = len(self)
        if any(not -n <= position < n for position in index):
            raise IndexError(f"{self.info.path}: no example {list(index)}; there are {n}")
        return [int(position) % n for position in index]

    def _read(self, name: str, positions: list[int]) -> NDArray[Any]:
        held = self._y if name == "y" else None
        if held is not None:
            return held[torch.tensor(positions, dtype=torch.int64)].numpy()
        try:
            return self._rows[name].take(self._open(), positions)
        except OSError as error:
            raise DataError(f"{self.info.path}: cannot be read any more: {error}. Was it moved?") from error

    def _open(self) -> int:
        if self._handle is None:
            self._handle = self.info.path.open("rb", buffering=0)
            if _state(self.info.path) != self._state:
                raise DataError(f"{self.info.path}: was replaced while it was in use; start again.")
        return self._handle.fileno()

    def _bytes(self, start: int, stop: int) -> bytes:
        if self._x is not None:
            return self._x[start:stop].numpy().tobytes()
        content = bytearray(stop - start)
        try:
            read_at(self._open(), memoryview(content), self._rows["x"].start + start)
        except OSError as error:
            raise DataError(f"{self.info.path}: cannot be read any more: {error}. Was it moved?") from error
        return bytes(content)

    def _decoded(self, positions: list[int], epoch: int) -> Tensor:
        assert self._offsets is not None, "encoding jpeg has offsets"
        images = []
        for position in positions:
            content = self._bytes(int(self._offsets[position]), int(self._offsets[position + 1]))
            try:
                images.append(self._decode_one(content, epoch, position))
            except DataError as error:
                raise DataError(f"{self.info.path}: example {position} {error}") from error
        if len({image.shape for image in images}) > 1:
            raise DataError(
                f"{self.info.path}: images of several sizes cannot form a batch; set image_size on the data module."
            )
        return torch.from_numpy(np.stack(images))

    def _decode_one(self, content: bytes, epoch: int, position: int) -> NDArray[np.uint8]:
        if self._decode is not None:
            return self._decode(content, np.random.default_rng([self._seed, epoch, position]))
        from colearn_hpc.data.images import decode_image

        return decode_image(content)


def read_at(handle: int, buffer: memoryview, offset: int) -> None:
    """Fill ``buffer`` from ``offset`` on.

    Raises:
        OSError: the file ends before.
    """
    while buffer:
        count = os.preadv(handle, [buffer], offset)
        if count == 0:
            raise OSError("the file is shorter than it was")
        buffer, offset = buffer[count:], offset + count


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
