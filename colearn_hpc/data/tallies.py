"""What is counted while the examples of a source stream by."""

from __future__ import annotations

import hashlib
from array import array
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ChannelMoments:
    """Mean and standard deviation per channel of a stream of (C, H, W) images; exact, hence free of order.

    The sums over all images are Python's fractions, which neither round nor overflow: of 16-bit images int64 would.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum: Any = 0
        self._squares: Any = 0

    def add(self, image: NDArray[Any]) -> None:
        """Count one image."""
        planes = image.reshape(image.shape[0], -1).astype(np.float64 if image.dtype.kind == "f" else np.int64)
        self._count += planes.shape[1]
        self._sum = self._sum + _fractions(planes.sum(axis=1))
        self._squares = self._squares + _fractions(np.einsum("cp,cp->c", planes, planes))

    def result(self, scale: float, offset: float) -> dict[str, list[float]]:
        """``mean`` and ``std`` per channel, after scale and offset."""
        mean = (self._sum / self._count).astype(np.float64)
        # A channel without contrast would divide by zero; 1 leaves it alone.
        variance = (self._squares / self._count - (self._sum / self._count) ** 2).astype(np.float64)
        std = np.sqrt(variance) * scale
        return {"mean": (mean * scale + offset).tolist(), "std": np.where(std > 1e-8, std, 1.0).tolist()}


class Twins:
    """Counts examples for evaluation that are training examples, too; 8 bytes are kept of each example."""

    def __init__(self) -> None:
        self._train, self._evaluation = array("Q"), array("Q")

    def add(self, split: str, example: NDArray[Any] | bytes) -> None:
        """Count one example."""
        content = example if isinstance(example, bytes) else np.ascontiguousarray(example).tobytes()
        digest = hashlib.blake2b(content, digest_size=8).digest()
        (self._train if split == "train" else self._evaluation).append(int.from_bytes(digest, "little"))

    def notes(self) -> tuple[str, ...]:
        """One note, or none."""
        twins = int(np.isin(np.array(self._evaluation), np.array(self._train)).sum())
        if not twins:
            return ()
        told = f"{twins} of {len(self._evaluation)} examples for test and validation are training examples, too"
        return (f"{told}, so results look better than they are",)


def _fractions(values: NDArray[Any]) -> NDArray[np.object_]:
    return np.array([Fraction(value) for value in values.tolist()], dtype=object)
