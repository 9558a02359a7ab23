"""A shard as a torch data set that fetches whole batches. Format: :mod:`colearn_hpc.data.shards`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from colearn_hpc.data.shard_info import info_of, open_shard, read_info
from colearn_hpc.errors import DataError

PRELOAD_LIMIT = 2**30

Decoder = Callable[[bytes, np.random.Generator], NDArray[np.uint8]]


class ShardDataset(Dataset):
    """The examples of one shard; ``dataset[[3, 1, 4]]`` fetches a batch in one call.

    A small shard is read into memory at open. A larger one is read example by example into the
    batch (measured 64 k small images per second, against 3–32 k with fancy indexing). The file is
    opened on first use in each process: HDF5 handles do not pickle and must not cross a fork.

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
        self.info = read_info(path)
        self.preloaded = False
        self._decode = decode
        self._seed = seed
        self._file: h5py.File | None = None
        self._owner = -1
        self._x: Any = None  # a tensor when preloaded, else an HDF5 data set of this process
        self._y: Any = None
        self._offsets: NDArray[np.int64] | None = None
        with open_shard(self.info.path) as file:
            size = file["x"].nbytes + file["y"].nbytes
            if preload is True or (preload == "auto" and size <= preload_limit):
                # info_of again, because the file may have been replaced since read_info opened it.
                self.info = info_of(file, self.info.path)
                self._x = torch.from_numpy(file["x"][...])
                self._y = torch.from_numpy(file["y"][...])
                self.preloaded = True
            if self.info.encoding == "jpeg":
                self._offsets = file["offsets"][...]

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
            DataError: the file vanished or cannot be read any more.
        """
        if isinstance(index, int | np.integer):
            x, y = self[[int(index)]]
            return x[0], y[0]
        positions = self._positions(index)
        if not self.preloaded:
            self._open()
        try:
            if self.info.encoding == "jpeg":
                x = self._decoded(positions, getattr(index, "epoch", 0))
            elif self.preloaded:
                x = self._x[torch.from_numpy(positions)]
            else:
                x = self._filled(self._x, positions)
            y = self._y[torch.from_numpy(positions)] if self.preloaded else self._filled(self._y, positions)
        except OSError as error:
            raise DataError(f"{self.info.path}: cannot be read any more: {error}. Was it moved or replaced?") from error
        return x, y

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if not self.preloaded:
            state.update(_file=None, _owner=-1, _x=None, _y=None)
        return state

    def _positions(self, index: Sequence[int]) -> NDArray[np.int64]:
        positions = np.asarray(index, dtype=np.int64).reshape(-1)
        n = len(self)
        if positions.size and (positions.min() < -n or positions.max() >= n):
            raise IndexError(f"{self.info.path}: no example {list(index)}; there are {n}")
        return np.where(positions < 0, positions + n, positions)

    def _open(self) -> None:
        if self._owner == os.getpid():
            return
        # After a fork self._file is the parent's: forget it without closing, the file descriptor is shared.
        if self._file is not None:
            _inherited.append(self._file)
        try:
            self._file = h5py.File(self.info.path, "r", locking=False)
        except OSError as error:
            raise DataError(f"{self.info.path}: cannot be opened any more: {error}. Was it moved?") from error
        self._x, self._y = self._file["x"], self._file["y"]
        self._owner = os.getpid()

    @staticmethod
    def _filled(source: h5py.Dataset, positions: NDArray[np.int64]) -> Tensor:
        batch = np.empty((len(positions), *source.shape[1:]), dtype=source.dtype)
        for row, position in enumerate(positions.tolist()):
            batch[row] = source[position]
        return torch.from_numpy(batch)

    def _decoded(self, positions: NDArray[np.int64], epoch: int) -> Tensor:
        assert self._offsets is not None
        images = []
        for position in positions.tolist():
            stored = self._x[int(self._offsets[position]) : int(self._offsets[position + 1])]
            content = stored.numpy().tobytes() if self.preloaded else stored.tobytes()
            try:
                images.append(self._decode_one(content, np.random.default_rng([self._seed, epoch, position])))
            except DataError as error:
                raise DataError(f"{self.info.path}: example {position} {error}") from error
        if len({image.shape for image in images}) > 1:
            raise DataError(
                f"{self.info.path}: images of several sizes cannot form a batch; set image_size on the data module."
            )
        return torch.from_numpy(np.stack(images))

    def _decode_one(self, content: bytes, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self._decode is not None:
            return self._decode(content, rng)
        from colearn_hpc.data.images import decode_image

        return decode_image(content)


# Handles inherited through a fork, kept so that garbage collection does not close them.
_inherited: list[h5py.File] = []
