"""The loops of the codecs and of sums in machine code, where numba is installed (``pip install 'colearn_hpc[speed]'``).

Written with torch, a codec or a sum goes over a slice once for each operation, and each call takes as long as a
thousand values. Here one loop does all operations on a block while it is in the core's cache. Both ways carry out the
same operations on each value, so messages and means have the same bits, and data centers with numba and without may be
mixed.

Machine code is made for the processor before a run's first exchange, and kept in numba's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from colearn_hpc.algorithm.codec import BLOCK

log = logging.getLogger("colearn_hpc")


@dataclass(frozen=True)
class Kernels:
    """A codec's loops. Arrays are contiguous; a message is uint8 as the codec writes it, all others are float32.

    A slice of n values begins at ``start`` in ``base``, ``lacked``, ``lacking`` and ``result``, which are whole
    vectors: to cut them first would take Python as long as the work takes.

    Attributes:
        encode: values (n), base, lacked, lacking, start, message; takes what ``base`` holds from the values, and adds
            what earlier messages ``lacked``, where these are not empty; writes the message, and into ``lacking``, where
            that is not empty, what the message does not say.
        decode: message, base, result, start, n; writes values, added to what ``base`` holds where that is not empty.
    """

    encode: Callable[..., None]
    decode: Callable[..., None]


@dataclass(frozen=True)
class CodedSums:
    """The loop of a slice's mean step, for so many rows.

    Attributes:
        mean: rows, mine, values, base, start, weights, total, out, squares; rows are messages, but for number ``mine``,
            which is ``values`` less what ``base`` holds from ``start`` on. Writes what both loops of :class:`Sums` do.
    """

    mean: Callable[..., None]


@dataclass(frozen=True)
class Sums:
    """The loops of :class:`~colearn_hpc.algorithm.slice_sums.SliceSums` for so many rows, float32 of shape ``(n,)``.

    Attributes:
        mean: rows, weights, total, out; the weighted mean in float64, summed in the order of the rows. The weights must
            be float32's numbers: then float64 holds each product exactly, as torch does, which adds it unrounded.
        distances: rows, mean, squares; each row's ``‖w_k - w̄‖²``, summed in float64.
    """

    mean: Callable[..., None]
    distances: Callable[..., None]


# Values of a vector from which on a run earns back the half second that numba's import takes; with a codec, without.
WORTH, SUMS_WORTH = 1 << 23, 1 << 25

_IN_PAIRS = 7  # whole numbers up to this one lie two in a byte
_LEVELS = {"int8": 127, "int4": _IN_PAIRS}
# By codec, by codec and rows, and by rows. None: numba does not work here, which has been said.
_made: dict[str, Kernels | None] = {}
_coded_sums: dict[tuple[str, int], CodedSums | None] = {}
_sums: dict[int, Sums | None] = {}


def prepare(codec: str) -> None:
    """Compile the loops of ``"int8"`` or ``"int4"``, where numba is installed and works; once in a process."""
    if codec in _LEVELS:
        _prepare(_made, codec, f"codec {codec} goes", _compile)


def kernels(codec: str) -> Kernels | None:
    """The compiled loops of a codec; None where none were prepared."""
    return _made.get(codec)


def prepare_coded_sums(codec: str, rows: int) -> None:
    """Compile the mean of so many rows, where the codec's loops are compiled; once in a process."""
    if rows > 1 and kernels(codec):
        _prepare(_coded_sums, (codec, rows), f"sums of codec {codec} go", _compile_coded_sums)


def coded_sums(codec: str, rows: int) -> CodedSums | None:
    """The compiled mean of so many rows of a codec; None where none was prepared."""
    return _coded_sums.get((codec, rows))


def prepare_sums(rows: int) -> None:
    """Compile the sums of so many rows, where numba is installed and works; once in a process."""
    if rows > 1:
        _prepare(_sums, rows, "sums go", _compile_sums)


def sums(rows: int) -> Sums | None:
    """The compiled sums of so many rows; None where none were prepared."""
    return _sums.get(rows)


def _prepare(made: dict[Any, Any], key: Any, goes: str, compiled: Callable[[Any], Any]) -> None:
    if key in made or find_spec("numba") is None:
        return
    try:
        made[key] = compiled(key)
    except Exception as error:  # another NumPy than numba knows, a processor that it does not know
        made[key] = None
        log.warning("%s without numba, which does not work here: %s", goes, error)


def _compile(codec: str) -> Kernels:
    import numba

    values, message, place = numba.float32[::1], numba.uint8[::1], numba.int64
    encode, decode, _ = _loops(_LEVELS[codec])
    return Kernels(
        _compiled(encode, values, values, values, values, place, message),
        _compiled(decode, message, values, values, place, place),
    )


def _compile_coded_sums(key: tuple[str, int]) -> CodedSums:
    import numba

    codec, rows = key
    values, doubles, place = numba.float32[::1], numba.float64[::1], numba.int64
    given = numba.types.UniTuple(numba.uint8[::1], rows)
    mean = _loops(_LEVELS[codec])[2]
    return CodedSums(_compiled(mean, given, place, values, values, place, doubles, numba.float64, values, doubles))


def _compile_sums(rows: int) -> Sums:
    import numba

    values, doubles = numba.float32[::1], numba.float64[::1]
    given = numba.types.UniTuple(values, rows)
    return Sums(_compiled(_mean, given, doubles, numba.float64, values), _compiled(_distances, given, values, doubles))


def _compiled(loop: Callable[..., None], *types: Any) -> Callable[..., None]:
    """The types are named, so that all is compiled now and none of it in the middle of a mean."""
    import numba

    signature = numba.void(*types)
    try:
        found: Callable[..., None] = numba.njit(signature, error_model="numpy", cache=True)(loop)
    except RuntimeError:  # no folder where it may keep machine code
        found = numba.njit(signature, error_model="numpy")(loop)
    return found


# What follows is numba's Python: loops over single values, which it makes vector instructions of.


def _loops(levels: int) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Of whole numbers from -levels to levels, for which all are made: a constant is faster than an argument. Those of
    int4 lie in pairs, of which each half is the number plus 8.

    Decoding stands in two of them: numba keeps a loop that calls another compiled one under a name that the next
    process does not find again.
    """

    def encode(values: Any, base: Any, lacked: Any, lacking: Any, start: int, message: Any) -> None:
        work, largest = np.zeros(BLOCK, np.float32), np.zeros(1, np.uint32)
        sizes, largest_value, steps = work.view(np.uint32), largest.view(np.float32), np.zeros(BLOCK + 1, np.int32)
        blocks = -(-len(values) // BLOCK)
        scales, written = message[: 4 * blocks].view(np.float32), message[4 * blocks :]
        for b in range(blocks):
            first, last = b * BLOCK, min((b + 1) * BLOCK, len(values))
            numbers, bits, given = work[: last - first], sizes[: last - first], values[first:last]
            if len(base):
                before = base[start + first : start + last]
                for i in range(len(given)):
                    numbers[i] = given[i] - before[i]
            else:
                for i in range(len(given)):
                    numbers[i] = given[i]
            if len(lacked):
                owed = lacked[start + first : start + last]
                for i in range(len(numbers)):
                    numbers[i] += owed[i]
            # Sizes of floats are ordered as their bits are, NaN above all; and whole numbers are compared faster.
            top = np.uint32(0)
            for i in range(len(bits)):
                size = bits[i] & np.uint32(0x7FFFFFFF)
                top = size if size > top else top
            largest[0] = top
            scale = largest_value[0] / np.float32(levels)
            scales[b] = scale
            divisor = np.float32(1) if scale == 0 else scale
            finite = top < np.uint32(0x7F800000)  # else zeros times a scale that is not finite, which is NaN
            for i in range(len(numbers)):
                step = np.int32(np.rint(numbers[i] / divisor))
                step = np.int32(levels) if step > levels else step
                step = np.int32(-levels) if step < -levels else step
                steps[i] = step if finite else np.int32(0)
            if levels == _IN_PAIRS:
                steps[len(numbers)] = 0  # an odd last value is paired with a zero
                out = written[first // 2 : (last + 1) // 2]
                for i in range(len(out)):
                    out[i] = (steps[2 * i] + 8) | ((steps[2 * i + 1] + 8) << 4)
            else:
                out = written[first:last]
                for i in range(len(out)):
                    out[i] = steps[i]
            if len(lacking):
                rest = lacking[start + first : start + last]
                for i in range(len(numbers)):
                    rest[i] = numbers[i] - np.float32(steps[i]) * scale

    def decode(message: Any, base: Any, result: Any, start: int, count: int) -> None:
        steps = np.zeros(BLOCK + 1, np.int32)
        blocks = -(-count // BLOCK)
        scales, written = message[: 4 * blocks].view(np.float32), message[4 * blocks :]
        for b in range(blocks):
            first, last = b * BLOCK, min((b + 1) * BLOCK, count)
            out, scale = result[start + first : start + last], scales[b]
            if levels == _IN_PAIRS:
                pairs = written[first // 2 : (last + 1) // 2]
                for i in range(len(pairs)):
                    steps[2 * i] = np.int32(pairs[i] & 15) - 8
                    steps[2 * i + 1] = np.int32(pairs[i] >> 4) - 8
            else:
                numbers = written[first:last].view(np.int8)
                for i in range(len(numbers)):
                    steps[i] = numbers[i]
            if len(base):
                before = base[start + first : start + last]
                for i in range(len(out)):
                    out[i] = np.float32(steps[i]) * scale + before[i]
            else:
                for i in range(len(out)):
                    out[i] = np.float32(steps[i]) * scale

    def mean(
        rows: Any, mine: int, values: Any, base: Any, start: int, weights: Any, total: float, out: Any, squares: Any
    ) -> None:
        # Block by block, so that all rows of one are in the core's nearest cache until their distances are taken.
        work, steps = np.zeros((len(rows), BLOCK), np.float32), np.zeros(BLOCK + 1, np.int32)
        sums, lanes = np.zeros(BLOCK, np.float64), np.zeros((len(rows), BLOCK), np.float64)
        blocks = -(-len(out) // BLOCK)
        for b in range(blocks):
            first, last = b * BLOCK, min((b + 1) * BLOCK, len(out))
            some, means = sums[: last - first], out[first:last]
            for k in range(len(rows)):
                row, weight = work[k, : last - first], weights[k]
                if k == mine:
                    given, before = values[first:last], base[start + first : start + last]
                    for i in range(len(row)):
                        row[i] = given[i] - before[i]
                else:
                    scale, written = rows[k][4 * b : 4 * b + 4].view(np.float32)[0], rows[k][4 * blocks :]
                    if levels == _IN_PAIRS:
                        pairs = written[first // 2 : (last + 1) // 2]
                        for i in range(len(pairs)):
                            steps[2 * i] = np.int32(pairs[i] & 15) - 8
                            steps[2 * i + 1] = np.int32(pairs[i] >> 4) - 8
                    else:
                        numbers = written[first:last].view(np.int8)
                        for i in range(len(numbers)):
                            steps[i] = numbers[i]
                    for i in range(len(row)):
                        row[i] = np.float32(steps[i]) * scale
                if k:
                    for i in range(len(row)):
                        some[i] += np.float64(row[i]) * weight
                else:
                    for i in range(len(row)):
                        some[i] = np.float64(row[i]) * weight
            for i in range(len(means)):
                means[i] = np.float32(some[i] / total)
            for k in range(len(rows)):
                row, apart = work[k, : last - first], lanes[k]
                for i in range(len(row)):
                    away = np.float64(row[i] - means[i])
                    apart[i] += away * away
        for k in range(len(rows)):
            squares[k] = lanes[k].sum()

    return encode, decode, mean


def _mean(rows: Any, weights: Any, total: float, out: Any) -> None:
    sums = np.zeros(1024, np.float64)
    for first in range(0, len(out), len(sums)):
        last = min(first + len(sums), len(out))
        some, row, weight = sums[: last - first], rows[0][first:last], weights[0]
        for i in range(len(some)):
            some[i] = np.float64(row[i]) * weight
        for k in range(1, len(rows)):
            row, weight = rows[k][first:last], weights[k]
            for i in range(len(some)):
                some[i] += np.float64(row[i]) * weight
        means = out[first:last]
        for i in range(len(some)):
            means[i] = np.float32(some[i] / total)


def _distances(rows: Any, mean: Any, squares: Any) -> None:
    lanes = np.zeros(128, np.float64)  # sums side by side, which vector instructions can add to
    for k in range(len(rows)):
        lanes[:] = 0
        for first in range(0, len(mean), len(lanes)):
            last = min(first + len(lanes), len(mean))
            row, middle = rows[k][first:last], mean[first:last]
            for i in range(len(row)):
                apart = np.float64(row[i] - middle[i])
                lanes[i] += apart * apart
        squares[k] = 0.0
        for i in range(len(lanes)):
            squares[k] += lanes[i]
