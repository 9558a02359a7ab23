"""Pairwise masks: each site's vector looks random, and their sum is the sum.

Site k sends ``q_k + Σ_{j after k} PRG(k, j) - Σ_{j before k} PRG(j, k)`` modulo 2³² or 2⁶⁴. Each stream is added once
and subtracted once, so the sum over the roster is ``Σ q_k``, to the bit and in any order; sums over fewer are random.

Source: Bonawitz et al. 2017, section 4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.keys import PairSeed, Transcript

Whole: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]

_BLOCK = 1 << 16  # bytes of keystream at a time: they and what they are added to stay in a core's cache
_CHACHA_BLOCK = 64


class Masks:
    """One site's masks for one vector, chunk by chunk in any order.

    Args:
        seeds: shared with the other sites; they are used up.
        transcript: what is summed.

    Raises:
        PrivacyError: seeds that are not for this roster, or that have been used.
    """

    def __init__(self, seeds: Sequence[PairSeed], transcript: Transcript) -> None:
        if len({seed.other for seed in seeds} & set(transcript.roster)) != len(transcript.roster) - 1:
            raise PrivacyError(
                f"{len(seeds)} seeds for a roster of {len(transcript.roster)}; one for each other is needed"
            )
        self._size = transcript.size
        self._dtype = np.dtype(f"<u{transcript.bits // 8}")
        self._streams = [(np.add if seed.adds else np.subtract, seed.take()) for seed in seeds]
        self._masked: list[tuple[int, int]] = []  # [start, stop) of what has been masked, sorted
        self._zeros = bytes(_BLOCK)
        self._keystream = bytearray(_BLOCK)

    def add(self, values: Whole, offset: int) -> None:
        """Mask a chunk in place.

        Args:
            values: whole numbers of the transcript's bits, unsigned, shape (n,); the vector's elements
                ``offset : offset + n``.
            offset: place in the vector.

        Raises:
            PrivacyError: other numbers, a place outside the vector, or one that has been masked: send again what was
                sent, for two values under one mask give away their difference.
        """
        if values.dtype != self._dtype or values.ndim != 1:
            raise PrivacyError(
                f"masks are for vectors of {self._dtype.name}, found {values.dtype} of {values.ndim} axes"
            )
        self._mark(offset, offset + len(values))
        for combine, seed in self._streams:
            self._add(combine, seed, values, offset * self._dtype.itemsize)

    def again(self) -> None:
        """The vector is to be sent once more, because it was lost on its way. Whoever calls this has not changed it
        since: then each message is what it was, and tells nothing new."""
        self._masked.clear()

    def _add(self, combine: Any, seed: bytes, values: Whole, place: int) -> None:
        """One stream from byte ``place`` on. A seed serves one vector, so the nonce is 0 and only the counter moves."""
        counter, skip = divmod(place, _CHACHA_BLOCK)
        stream = Cipher(algorithms.ChaCha20(seed, counter.to_bytes(8, "little") + bytes(8)), None).encryptor()
        stream.update(self._zeros[:skip])
        words = np.frombuffer(self._keystream, self._dtype)
        for start in range(0, len(values), len(words)):
            part = values[start : start + len(words)]
            stream.update_into(self._zeros[: part.nbytes], self._keystream)
            combine(part, words[: len(part)], out=part)

    def _mark(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._size:
            raise PrivacyError(f"elements {start} to {stop} are outside of the vector of {self._size}")
        if start == stop:
            return
        at = bisect_left(self._masked, (start, stop))
        before = self._masked[at - 1] if at else (0, 0)
        after = self._masked[at] if at < len(self._masked) else (self._size, self._size)
        if before[1] > start or after[0] < stop:
            raise PrivacyError(
                f"elements {start} to {stop} have been masked, in part at least; send what was sent again"
            )
        self._masked.insert(at, (start, stop))
