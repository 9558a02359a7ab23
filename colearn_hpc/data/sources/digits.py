"""scikit-learn's handwritten digits: real data that needs no download."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.sources.base import Contents, Item, Source


class Digits(Source):
    """1,797 digits of 8 × 8 pixels with 17 grey levels, as (1, 8, 8) uint8; 10 classes.

    Source: Alpaydin and Kaynak, UCI, test half of "Optical Recognition of Handwritten Digits".
    """

    name = "digits"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Digits have no options."""

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> Digits:
        """Digits have no options."""
        return cls()

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images: NDArray[np.uint8] = digits.images.astype(np.uint8)[:, np.newaxis]
        self._labels: NDArray[np.int64] = digits.target.astype(np.int64)

    def parameters(self) -> dict[str, Any]:
        """Digits have no options."""
        return {}

    def fingerprint(self) -> str:
        """SHA-256 of images and labels."""
        return hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()

    def scan(self) -> Contents:
        """Task, classes and labels."""
        return Contents(
            task="classification",
            kind="image",
            classes=tuple("0123456789"),
            labels={"train": self._labels},
            metadata={"scale": 1 / 16},
            unsplit=True,
        )

    def read(self) -> Iterator[Item]:
        """Every digit, in scikit-learn's order."""
        for position, image in enumerate(self._images):
            yield Item("train", position, image)
