"""A site's own random numbers: its noise, and who is in a batch.

They must be unknown to everyone else. ``seed_everything`` is in ``config.yaml``, so whoever reads that file could
subtract noise that came from it. Here a key of 32 bytes comes from the operating system and never leaves the site's
resume points. PyTorch's generator would not do: on a CPU it uses 32 bits of its seed, which can be tried one by one.

Everything is a function of the key and of the step's number, so a resumed run draws what the interrupted one drew,
wherever it stopped, and a step that is repeated releases the same thing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 15  # pairs of numbers made at a time: they stay in a core's cache


def new_key() -> bytes:
    """A key from the operating system, 32 bytes."""
    return secrets.token_bytes(32)


def poisson_batch(key: bytes, step: int, examples: int, rate: float) -> list[int]:
    """The records of one batch: each is in it with probability ``rate``, independently.

    Args:
        key: the site's, 32 bytes.
        step: number of the step in the run.
        examples: number of records.
        rate: q; it is rounded down to a multiple of 2⁻³².

    Returns:
        Sorted indices in [0, examples); possibly none.
    """
    stream = _Keystream(_derive(key, b"batch", step, b""))
    return np.flatnonzero(stream.words(examples) < np.uint64(int(rate * 2**32))).tolist()


class Noise:
    """Standard normal numbers of one step, from ChaCha20 by the method of Box and Muller.

    Args:
        key: the site's, 32 bytes.
        step: number of the step in the run.
        context: on what the step's gradient depends, as bytes: the weights from which its local epoch began, and
            settings. Two different gradients must never get the same noise, for their difference would be bare; a run
            that went back to an older resume point and came by with other weights would do that.
    """

    def __init__(self, key: bytes, step: int, context: bytes) -> None:
        self._stream = _Keystream(_derive(key, b"noise", step, context))

    def normal(self, count: int) -> NDArray[np.float32]:
        """The next ``count`` numbers, shape (count,)."""
        return np.concatenate([*self._blocks(-(-count // 2)), np.empty(0, np.float32)])[:count]

    def _blocks(self, pairs: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, pairs, _BLOCK):
            size = min(_BLOCK, pairs - start)
            first, second = self._stream.words(2 * size).astype(np.float32).reshape(2, size)
            # (word + 1) / 2³² lies in (0, 1] and is fine near 0, so that the tail reaches to 6.6.
            radius = np.sqrt(np.float32(-2) * np.log((first + np.float32(1)) * np.float32(2**-32)))
            angle = second * np.float32(2 * np.pi * 2**-32)
            yield radius * np.cos(angle)
            yield radius * np.sin(angle)


class _Keystream:
    """ChaCha20 under a key that serves one purpose in one step, hence the nonce 0."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms  # of the extra "privacy"

        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

    def words(self, count: int) -> NDArray[np.uint32]:
        return np.frombuffer(self._cipher.update(bytes(4 * count)), "<u4")


def _derive(key: bytes, purpose: bytes, step: int, context: bytes) -> bytes:
    return hashlib.blake2b(step.to_bytes(8, "little") + context, key=key, person=purpose, digest_size=32).digest()
