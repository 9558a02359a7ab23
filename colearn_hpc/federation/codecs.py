"""The codecs of ``algorithm/codec.py`` that a coordinator decodes and encodes too, in NumPy: the same bits, no torch.

    bf16   2 bytes a value
    fp16   2 bytes a value and 2 a block
    int8   1 byte a value and 4 a block; what a mean's message could not say is added to the next mean

Others write in ways that would have to be sorted, or packed in half bytes; they travel inside one MPI world alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Numbers: TypeAlias = "np.ndarray[Any, Any]"
BLOCK = 256  # values that share a scale


@dataclass(frozen=True)
class WireCodec:
    """How steps are written.

    Attributes:
        value, block: bytes of a value, and of a block's scale.
        feedback: what the mean's messages lack is added to the next mean.
        encode: float32 of shape ``(n,)`` -> bytes.
        decode: (bytes, n) -> float32 of shape ``(n,)``.
    """

    value: int
    block: int
    feedback: bool
    encode: Callable[[Numbers], bytes]
    decode: Callable[[bytes | memoryview, int], Numbers]

    def nbytes(self, count: int) -> int:
        """Length of the message for ``count`` values."""
        return count * self.value + _blocks(count) * self.block

    def most(self, nbytes: int) -> int:
        """Values of whole blocks whose message has at most ``nbytes``."""
        return nbytes // (BLOCK * self.value + self.block) * BLOCK


def _encode_bf16(values: Numbers) -> bytes:
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.tobytes()


def _decode_bf16(message: bytes | memoryview, count: int) -> Numbers:
    return (np.frombuffer(message, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _encode_fp16(values: Numbers) -> bytes:
    table = _table(values)
    # The largest of a block comes to lie in [2¹⁴, 2¹⁵); see algorithm/codec.py.
    powers = np.maximum(np.frexp(np.abs(table).max(1, keepdims=True))[1] - 15, -126)
    halves = (table * _power_of_two(-powers)).astype("<f2").reshape(-1)[: len(values)]
    return halves.tobytes() + powers.astype("<i2").tobytes()


def _decode_fp16(message: bytes | memoryview, count: int) -> Numbers:
    content = memoryview(message)
    values = np.frombuffer(content[: 2 * count], "<f2").astype(np.float32)
    return _scaled(values, _power_of_two(np.frombuffer(content[2 * count :], "<i2").astype(np.int32)))


def _encode_int8(values: Numbers) -> bytes:
    table = _table(values)
    scale = np.abs(table).max(1, keepdims=True) / np.float32(127)
    steps = np.clip(np.rint(table / np.where(scale == 0, np.float32(1), scale)), -127, 127)
    return scale.astype("<f4").tobytes() + steps.astype("i1").reshape(-1)[: len(values)].tobytes()


def _decode_int8(message: bytes | memoryview, count: int) -> Numbers:
    content, head = memoryview(message), 4 * _blocks(count)
    return _scaled(np.frombuffer(content[head:], "i1").astype(np.float32), np.frombuffer(content[:head], "<f4"))


CODECS = {
    "bf16": WireCodec(2, 0, False, _encode_bf16, _decode_bf16),
    "fp16": WireCodec(2, 2, False, _encode_fp16, _decode_fp16),
    "int8": WireCodec(1, 4, True, _encode_int8, _decode_int8),
}


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _table(values: Numbers) -> Numbers:
    """The values as rows of one block each, the last one filled up with zeros."""
    missing = -len(values) % BLOCK
    return (np.pad(values, (0, missing)) if missing else values).reshape(-1, BLOCK)


def _scaled(values: Numbers, scales: Numbers) -> Numbers:
    """Each block of ``values`` times its scale, in place; the last block may be shorter."""
    whole = len(values) // BLOCK
    values[: whole * BLOCK].reshape(-1, BLOCK)[...] *= scales[:whole, None]
    values[whole * BLOCK :] *= scales[whole:]
    return values


def _power_of_two(exponents: Numbers) -> Numbers:
    return np.ldexp(np.float32(1), exponents).astype(np.float32)
