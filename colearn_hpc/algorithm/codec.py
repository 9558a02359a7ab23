"""Fewer bytes for equation 2: how the steps of the local models are written for the wire.

A codec never encodes a weight. It encodes the weight's step since the last shared model, which all data centers hold:
steps are small, and so are the errors of few bits. Blocks of 256 values share a scale, so a large value costs only its
neighbours precision. Codecs of 8 bits and fewer need *error feedback*: what a message could not say is added to the
next message.

    fp32   as it is
    bf16   2 bytes a value: relative error up to 2⁻⁸ (8 bits of mantissa)
    fp16   2 bytes a value and 2 a block: up to 2⁻¹¹ of a value, 2⁻²⁶ of a block's largest
    int8   1 byte a value and 4 a block: up to 1/254 of a block's largest
    int4   half a byte a value and 4 a block: up to 1/14 of a block's largest
    topk   2 bytes for one value of 32, those with the largest size in each chunk of 4096, and 4 a chunk: of those up to
           1/14 of the chunk's largest; the others wait for a later message

Values must be finite. A block with NaN or ±Inf comes back as not finite, and the mean is then refused.

Source: Mi et al. 2020 name compression as possible and use none. Block scales: Dettmers 2016 (arXiv 1511.04561).
Error feedback: Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (arXiv 1901.09847); of local steps: Basu et al.
2019 (arXiv 1906.02367). The largest of each chunk in few bits, with error feedback: Sarfi et al. 2025 (SparseLoCo,
arXiv 2508.15706), who take 1 to 3 of 100 values in 2 bits and let the feedback decay, as an outer momentum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256  # values that share a scale
_PIECE = 512 * BLOCK  # values that are worked on at a time: fewer, and Python takes longer than the work


class Codec(Protocol):
    """What a codec must offer. Decoding must give the same bits on every processor: elementwise operations only.

    Attributes:
        name: as in ``exchange: {codec: name}``.
        feedback: whether the error of a message is to be added to the next one.
    """

    name: str
    feedback: bool

    def nbytes(self, count: int) -> int:
        """Length of the message for ``count`` values, in bytes."""

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write ``values``, float32 of shape ``(n,)``, into ``out``, uint8 of shape ``(nbytes(n),)``."""

    def decode(self, message: Tensor, out: Tensor) -> None:
        """Write the values of a message into ``out``, float32 of shape ``(n,)``."""


class BFloat16:
    """float32 without its last 16 bits, rounded to nearest."""

    name, feedback = "bf16", False

    def nbytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Tensor, out: Tensor) -> None:
        out.view(torch.bfloat16).copy_(values)

    def decode(self, message: Tensor, out: Tensor) -> None:
        out.copy_(message.view(torch.bfloat16))


class Float16:
    """IEEE half precision of values divided by a power of two, one per block; so the range is float32's."""

    name, feedback = "fp16", False

    def nbytes(self, count: int) -> int:
        return 2 * count + 2 * _blocks(count)

    def encode(self, values: Tensor, out: Tensor) -> None:
        halves, exponents = self._parts(out, len(values))
        scratch = torch.empty(_PIECE)
        for piece, blocks in _pieces(len(values)):
            table = _table(values[piece])
            work = scratch[: table.numel()].view(-1, BLOCK)
            # The largest of a block comes to lie in [2¹⁴, 2¹⁵): never over half's 65504. 2¹²⁶ is a float32, and enough.
            powers = torch.frexp(_largest(table, work)).exponent.sub_(15).clamp_(min=-126)
            torch.mul(table, _power_of_two(-powers), out=work)
            halves[piece] = work.view(-1)[: len(halves[piece])]
            exponents[blocks] = powers.view(-1)

    def decode(self, message: Tensor, out: Tensor) -> None:
        halves, exponents = self._parts(message, len(out))
        for piece, blocks in _pieces(len(out)):
            _scale(out[piece].copy_(halves[piece]), _power_of_two(exponents[blocks].int()))

    def _parts(self, message: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return message[: 2 * count].view(torch.float16), message[2 * count :].view(torch.int16)


class Int8:
    """Whole numbers from -127 to 127, times a float32 scale per block."""

    name, feedback = "int8", True

    def nbytes(self, count: int) -> int:
        return count + 4 * _blocks(count)

    def encode(self, values: Tensor, out: Tensor) -> None:
        steps, scales = self._parts(out, len(values))
        scratch = torch.empty(_PIECE)
        for piece, blocks in _pieces(len(values)):
            table = _table(values[piece])
            work = scratch[: table.numel()].view(-1, BLOCK)
            scale = _largest(table, work).div_(127)
            scales[blocks] = scale.view(-1)
            # Blocks of zeros, and of numbers so small that their scale is 0, are written as zeros.
            torch.div(table, scale.masked_fill_(scale == 0, 1), out=work).round_().clamp_(-127, 127)
            steps[piece] = work.view(-1)[: len(steps[piece])]

    def decode(self, message: Tensor, out: Tensor) -> None:
        steps, scales = self._parts(message, len(out))
        for piece, blocks in _pieces(len(out)):
            _scale(out[piece].copy_(steps[piece]), scales[blocks])

    def _parts(self, message: Tensor, count: int) -> tuple[Tensor, Tensor]:
        scales = 4 * _blocks(count)
        return message[scales:].view(torch.int8), message[:scales].view(torch.float32)


class Int4:
    """Whole numbers from -7 to 7, two in a byte, times a float32 scale per block."""

    name, feedback = "int4", True

    def nbytes(self, count: int) -> int:
        return -(-count // 2) + 4 * _blocks(count)

    def encode(self, values: Tensor, out: Tensor) -> None:
        pairs, scales = self._parts(out, len(values))
        for piece, blocks in _pieces(len(values)):
            steps, scale = _levels(_table(values[piece]))
            scales[blocks] = scale.view(-1)
            place = _bytes(piece)
            # An odd last value is paired with a zero of the table's.
            low, high = steps.add_(8).byte().view(-1)[: 2 * (place.stop - place.start)].view(-1, 2).unbind(1)
            pairs[place] = low | (high << 4)

    def decode(self, message: Tensor, out: Tensor) -> None:
        pairs, scales = self._parts(message, len(out))
        for piece, blocks in _pieces(len(out)):
            both = pairs[_bytes(piece)]
            steps = torch.stack([both & 15, both >> 4], dim=1).view(-1)[: piece.stop - piece.start]
            _scale(out[piece].copy_(steps).sub_(8), scales[blocks])

    def _parts(self, message: Tensor, count: int) -> tuple[Tensor, Tensor]:
        scales = 4 * _blocks(count)
        return message[scales:], message[:scales].view(torch.float32)


class TopK:
    """The values of largest size in each chunk, as whole numbers from -7 to 7 times its scale, and their places.

    A kept value is one 16-bit number, 4096 times the whole number plus its place in the chunk.

    A value waits about 32 rounds for its turn. The mean is coded too, and its value waits for another 32. So rates must
    be lower than with other codecs. Where the data centers' steps disagree even at the minimum, what still waits keeps
    the shared model away from the minimum, in proportion to the rate.
    """

    name, feedback = "topk", True
    _CHUNK, _ONE_OF = 4096, 32

    def nbytes(self, count: int) -> int:
        return 4 * self._chunks(count) + 2 * -(-count // self._ONE_OF)

    def encode(self, values: Tensor, out: Tensor) -> None:
        for table, scales, codes in self._tables(values, out):
            places = table.abs().topk(codes.shape[1], sorted=False).indices
            steps, scale = _levels(table.gather(1, places))
            scales.copy_(scale)
            codes.copy_(steps.int() * self._CHUNK + places)

    def decode(self, message: Tensor, out: Tensor) -> None:
        out.zero_()
        for table, scales, codes in self._tables(out, message):
            codes = codes.int()
            table.scatter_(1, (codes % self._CHUNK).long(), (codes >> 12).float().mul_(scales))

    def _tables(self, values: Tensor, message: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Views of some chunks: values ``(rows, width)``, scales ``(rows, 1)``, codes ``(rows, kept)``."""
        head = 4 * self._chunks(len(values))
        scales, codes = message[:head].view(torch.float32)[:, None], message[head:].view(torch.int16)
        whole = len(values) // self._CHUNK * self._CHUNK
        for start, stop in ((start, min(start + _PIECE, whole)) for start in range(0, whole, _PIECE)):
            rows, kept = slice(start // self._CHUNK, stop // self._CHUNK), self._CHUNK // self._ONE_OF
            table = values[start:stop].view(-1, self._CHUNK)
            yield table, scales[rows], codes[rows.start * kept : rows.stop * kept].view(-1, kept)
        if whole < len(values):
            yield values[None, whole:], scales[-1:], codes[None, whole // self._ONE_OF :]

    def _chunks(self, count: int) -> int:
        return -(-count // self._CHUNK)


_CODECS: dict[str, type[Codec] | None] = {
    "fp32": None,
    "bf16": BFloat16,
    "fp16": Float16,
    "int8": Int8,
    "int4": Int4,
    "topk": TopK,
}
NAMES = tuple(_CODECS)


def codec_of(name: str) -> Codec | None:
    """The codec of that name; None for ``"fp32"``, which needs none.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _CODECS:
        raise ValueError(f"codec must be one of {', '.join(NAMES)}; found {name!r}")
    kind = _CODECS[name]
    return None if kind is None else kind()


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _pieces(count: int) -> Iterator[tuple[slice, slice]]:
    """(values, blocks) a few at a time: what is worked on stays in cache."""
    for start in range(0, count, _PIECE):
        stop = min(start + _PIECE, count)
        yield slice(start, stop), slice(start // BLOCK, _blocks(stop))


def _largest(table: Tensor, work: Tensor) -> Tensor:
    """The largest size in each row, shape ``(rows, 1)``; ``work``, of the table's shape, is overwritten."""
    return torch.abs(table, out=work).amax(1, keepdim=True)


def _levels(table: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers from -7 to 7, new float32, and its scale, shape ``(rows, 1)``.

    A row that holds NaN or ±Inf is all zeros with a scale that is not finite: so it is decoded to NaN.
    """
    scale = table.abs().amax(1, keepdim=True).div_(7)
    # Rows of zeros, and of numbers so small that their scale is 0, are written as zeros.
    steps = torch.div(table, scale.masked_fill(scale == 0, 1)).round_().clamp_(-7, 7)
    return steps.masked_fill_(~scale.isfinite(), 0), scale


def _bytes(piece: slice) -> slice:
    """Where the halves of bytes of ``piece`` lie, which begins at an even place."""
    return slice(piece.start // 2, -(-piece.stop // 2))


def _scale(values: Tensor, scales: Tensor) -> None:
    """Multiply each block of ``values`` by its scale, in place; the last block may be shorter."""
    whole = len(values) // BLOCK
    values[: whole * BLOCK].view(-1, BLOCK).mul_(scales[:whole, None])
    values[whole * BLOCK :].mul_(scales[whole:])


def _power_of_two(exponents: Tensor) -> Tensor:
    """2 to the given powers, -126 to 127, as float32: multiplying by them is exact, and far faster than ``ldexp``."""
    return torch.ldexp(torch.ones(exponents.shape), exponents)


def _table(values: Tensor) -> Tensor:
    """The values as rows of one block each, the last one filled up with zeros."""
    missing = -len(values) % BLOCK
    return (pad(values, (0, missing)) if missing else values).view(-1, BLOCK)
