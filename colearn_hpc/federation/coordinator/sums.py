"""Equation 2 on chunks, in NumPy: the same bits as ``algorithm/slice_sums.py``; and sums of whole numbers.

Weights are whole numbers below 2^29, so a float32 times a weight is exact in float64, with or without a fused
multiply-add; sums run in float64 in the order of the sites, and one division and one rounding follow.

Source: Mi et al. 2020, eq. 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Row: TypeAlias = "np.ndarray[Any, Any]"
_BLOCK = 1 << 15  # elements worked on at a time: they and their float64 copies stay in a core's cache


class ChunkSums:
    """The mean of one chunk after the other. Its memory is kept."""

    def __init__(self) -> None:
        self._sum, self._part = np.empty(_BLOCK), np.empty(_BLOCK)

    def mean(self, rows: Sequence[Row], weights: Sequence[float]) -> Row:
        """``Σ_k n_k w_k / Σ_k n_k`` in float64, summed in the order of ``rows``.

        Args:
            rows: of w_k, each of shape ``(n,)``, float32 or float64.
            weights: n_k per row, positive.

        Returns:
            Shape ``(n,)``, of the rows' dtype.
        """
        total, result = float(sum(weights)), np.empty_like(rows[0])
        for start in range(0, len(result), _BLOCK):
            place = slice(start, min(start + _BLOCK, len(result)))
            length = place.stop - start
            accumulated, part = self._sum[:length], self._part[:length]
            np.copyto(accumulated, rows[0][place])
            if weights[0] != 1:
                np.multiply(accumulated, weights[0], out=accumulated)
            for row, weight in zip(rows[1:], weights[1:], strict=True):
                if weight == 1:
                    np.add(accumulated, row[place], out=accumulated)
                else:
                    np.multiply(row[place], weight, out=part, dtype=np.float64)
                    np.add(accumulated, part, out=accumulated)
            np.divide(accumulated, total, out=accumulated)
            with np.errstate(over="ignore"):
                np.copyto(result[place], accumulated, casting="same_kind")
        return result


def total(rows: Sequence[Row]) -> Row:
    """The sum of whole numbers, modulo 2^32 or 2^64: the same bits in any order, and under masks that cancel in it.

    Args:
        rows: each of shape ``(n,)``, int32 or int64.
    """
    result = rows[0].copy()
    for row in rows[1:]:
        np.add(result, row, out=result)
    return result
