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

    The split into 80 % training and 20 % test is fixed and stratified; it does not follow ``--seed``, so that
    results with several seeds share one test set.

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
        self._positions = _stratified(self._labels, test_fraction=0.2)

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
            labels={split: self._labels[positions] for split, positions in self._positions.items()},
            metadata={"scale": 1 / 16},
        )

    def read(self) -> Iterator[Item]:
        """Both splits, in scikit-learn's order."""
        for split, positions in self._positions.items():
            for index, position in enumerate(positions):
                yield Item(split, index, self._images[position])


def _stratified(labels: NDArray[np.int64], test_fraction: float) -> dict[str, NDArray[np.int64]]:
    rng = np.random.RandomState(0)
    test = np.sort(
        np.concatenate(
            [
                rng.permutation(members)[: round(test_fraction * members.size)]
                for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
            ]
        )
    )
    return {"train": np.setdiff1d(np.arange(labels.size), test), "test": test}
