"""The loops of the codecs in machine code, where numba is installed (``pip install 'colearn_hpc[speed]'``).

Written with torch, a codec goes over a slice once for each operation, and each call takes as long as a thousand values.
Here one loop does all operations on a block while it is in the core's cache. Both ways carry out the same operations on
each value, so their messages have the same bits, and data centers with numba and without may be mixed.

Machine code is made for the processor before a run's first exchange, and kept in numba's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

log = logging.getLogger("colearn_hpc")


@dataclass(frozen=True)
class Kernels:
    """A codec's loops. Arrays are contiguous; values are float32 of shape ``(n,)``. A block of values shares a scale,
    float32; the last block may be shorter.

    Attributes:
        encode: values, whole numbers, scales, lacking, block; writes whole numbers and scales, and into
            ``lacking``, where it is not empty, the values less what the message says.
        decode: whole numbers, scales, values, base, block; writes values, added to ``base`` where that is not empty.
    """

    encode: Callable[..., None]
    decode: Callable[..., None]


WORTH = 1 << 23  # values of a vector from which on a run earns back the half second that numba's import takes

_IN_PAIRS = 7  # whole numbers up to this one lie two in a byte
_CODECS = {"int8": (127, "int8"), "int4": (_IN_PAIRS, "uint8")}  # levels, and dtype of what holds whole numbers
_made: dict[str, Kernels] = {}


def prepare(codec: str) -> None:
    """Compile the loops of ``"int8"`` or ``"int4"``, where numba is installed and works; once in a process."""
    if codec in _made or codec not in _CODECS or find_spec("numba") is None:
        return
    try:
        _made[codec] = _compile(codec)
    except Exception as error:  # another NumPy than numba knows, a processor that it does not know
        log.warning("codec %s goes without numba, which does not work here: %s", codec, error)


def kernels(codec: str) -> Kernels | None:
    """The compiled loops of a codec; None where none were prepared."""
    return _made.get(codec)


def _compile(codec: str) -> Kernels:
    import numba

    levels, unit = _CODECS[codec]
    values, steps = numba.float32[::1], getattr(numba, unit)[::1]

    def compiled(loop: Callable[..., None], *arrays: Any) -> Callable[..., None]:
        # The types are named, so that all is compiled now and none of it in a round.
        signature = numba.void(*arrays, numba.int64)
        try:
            return numba.njit(signature, error_model="numpy", cache=True)(loop)
        except RuntimeError:  # no folder where it may keep machine code
            return numba.njit(signature, error_model="numpy")(loop)

    encode, decode = _loops(levels)
    return Kernels(compiled(encode, values, steps, values, values), compiled(decode, steps, values, values, values))


# What follows is numba's Python: loops over single values, which it makes vector instructions of.


def _loops(levels: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Encoder and decoder of whole numbers from -levels to levels, for which both are made: a constant is faster than
    an argument. Those of int4 lie in pairs, of which each half is the number plus 8."""

    def encode(values: Any, written: Any, scales: Any, lacking: Any, block: int) -> None:
        sizes, largest = values.view(np.uint32), np.zeros(1, np.uint32)
        largest_value, steps = largest.view(np.float32), np.zeros(block + 1, np.int32)
        for b in range(len(scales)):
            first, last = b * block, min((b + 1) * block, len(values))
            numbers, bits = values[first:last], sizes[first:last]
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
                rest = lacking[first:last]
                for i in range(len(numbers)):
                    rest[i] = numbers[i] - np.float32(steps[i]) * scale

    def decode(written: Any, scales: Any, values: Any, base: Any, block: int) -> None:
        steps = np.zeros(block + 1, np.int32)
        for b in range(len(scales)):
            first, last = b * block, min((b + 1) * block, len(values))
            out, scale = values[first:last], scales[b]
            if levels == _IN_PAIRS:
                pairs = written[first // 2 : (last + 1) // 2]
                for i in range(len(pairs)):
                    steps[2 * i] = np.int32(pairs[i] & 15) - 8
                    steps[2 * i + 1] = np.int32(pairs[i] >> 4) - 8
            else:
                numbers = written[first:last]
                for i in range(len(numbers)):
                    steps[i] = numbers[i]
            if len(base):
                start = base[first:last]
                for i in range(len(out)):
                    out[i] = np.float32(steps[i]) * scale + start[i]
            else:
                for i in range(len(out)):
                    out[i] = np.float32(steps[i]) * scale

    return encode, decode
