"""What travels between a site and the coordinator: control messages in msgpack, numbers in raw little-endian frames.

Both are parsed within limits that are checked before anything is allocated; nothing is ever unpickled. A message of
another protocol version is refused with both versions named.

    Meet   one request, one answer: maps with plain values (README of protocol/)
    Mean   a stream each way: frames of a 20-byte header and ``length`` bytes
             HELLO    site -> coordinator   msgpack: which mean, of what length, who gives with which weight
             WELCOME  coordinator -> site   msgpack: whether rows are wanted, or the mean is there already; or that
                                            there is none, and why
             ROW      site -> coordinator   chunk ``chunk`` of this site's vector
             MEAN     coordinator -> site   the same chunk of the mean
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from colearn_hpc.federation.codecs import CODECS
from colearn_hpc.protocol.plain import DEPTH

VERSION = 1
MAGIC = b"CL"
HEADER = struct.Struct("<2sBBIIII")  # magic, version, kind, number of the mean, chunk, length, reserved: 0
HELLO, WELCOME, ROW, MEAN = range(1, 5)
_KINDS = {HELLO: "HELLO", WELCOME: "WELCOME", ROW: "ROW", MEAN: "MEAN"}

LARGEST_CONTROL = 4 << 20  # bytes; the names of a very large model's parameters take one or two MiB
CHUNK = 1 << 20  # bytes of a chunk; the last one of a mean may be shorter
WINDOW = 8  # chunks that a site may be ahead of the mean it was given; it bounds what the coordinator holds
LARGEST_MEAN = 1 << 42  # bytes of one vector
_LONGEST_LIST, _LARGEST_MAP, _LONGEST_TEXT = 1 << 17, 4096, 1 << 20
DTYPES = {"<f4": 4, "<f8": 8, "<i4": 4, "<i8": 8, "|u1": 1}  # of a vector's elements: bytes of each
ROUND_MEAN, LAST_MODEL, JOINED = range(3)  # what a vector of a round is


class WireError(ValueError):
    """What came is not what this protocol sends."""


@dataclass(frozen=True)
class Frame:
    """A frame's header.

    Attributes:
        kind: HELLO, WELCOME, ROW or MEAN.
        number: of the mean: 0 for the first shared model, i + 1 for round i.
        chunk: which one, from 0.
        length: bytes that follow.
    """

    kind: int
    number: int
    chunk: int
    length: int


def frame(kind: int, number: int, chunk: int, content: bytes | memoryview) -> bytes:
    """A frame as bytes."""
    return b"".join((HEADER.pack(MAGIC, VERSION, kind, number, chunk, len(content), 0), content))


def parse_frame(message: bytes) -> tuple[Frame, memoryview]:
    """A frame and its content, not copied.

    Raises:
        WireError: it is no frame of this version, or too long for its kind.
    """
    if len(message) < HEADER.size:
        raise WireError(f"a frame of {len(message)} bytes")
    magic, version, kind, number, chunk, length, reserved = HEADER.unpack_from(message)
    if magic != MAGIC:
        raise WireError("no co-learning frame")
    if version != VERSION:
        raise WireError(f"protocol version {version}, here {VERSION}; use the same colearn_hpc everywhere")
    if kind not in _KINDS or reserved:
        raise WireError(f"a frame of kind {kind}")
    most = CHUNK if kind in (ROW, MEAN) else LARGEST_CONTROL
    if length > most or length != len(message) - HEADER.size:
        raise WireError(f"a {_KINDS[kind]} frame that says {length} bytes and has {len(message) - HEADER.size}")
    return Frame(kind, number, chunk, length), memoryview(message)[HEADER.size :]


def expect(message: bytes, kind: int, number: int, chunk: int, length: int | None = None) -> memoryview:
    """The content of the frame that has to come next.

    Raises:
        WireError: another one came.
    """
    found, content = parse_frame(message)
    if (found.kind, found.number, found.chunk) != (kind, number, chunk) or length not in (None, found.length):
        raise WireError(
            f"{_KINDS[found.kind]} {found.number}/{found.chunk} of {found.length} bytes came, and {_KINDS[kind]} "
            f"{number}/{chunk} of {length} bytes was to come"
        )
    return content


def pack(content: Any) -> bytes:
    """Plain data as bytes.

    Raises:
        WireError: it holds something that is not plain, or is too long.
    """
    try:
        message = bytes(msgpack.packb(content, use_bin_type=True, strict_types=False))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"this cannot be sent: {error}") from None
    if len(message) > LARGEST_CONTROL:
        raise WireError(f"a message of {len(message)} bytes; at most {LARGEST_CONTROL} are sent")
    return message


def unpack(message: bytes | memoryview) -> Any:
    """Plain data from bytes of another organisation.

    Raises:
        WireError: too long, nested too deep, or not plain.
    """
    if len(message) > LARGEST_CONTROL:
        raise WireError(f"a message of {len(message)} bytes; at most {LARGEST_CONTROL} are taken")
    _check_structure(message)
    try:
        content = msgpack.unpackb(
            message,
            raw=False,
            strict_map_key=True,
            ext_hook=_no_extension,
            max_str_len=_LONGEST_TEXT,
            max_bin_len=_LONGEST_TEXT,
            max_array_len=_LONGEST_LIST,
            max_map_len=_LARGEST_MAP,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack's own, UnicodeDecodeError, RecursionError, ...
        raise WireError(f"no plain data: {type(error).__name__}") from None
    _check_plain(content, 0)
    return content


def _check_structure(message: bytes | memoryview) -> None:
    """Refuse nesting and lengths before msgpack allocates by them: it makes room for a list when it reads its length,
    on every level anew.

    Raises:
        WireError: nested too deep, longer than what is there, or of a type that is not plain.
    """
    size, place, open_items = len(message), 0, [1]
    while open_items:
        if not open_items[-1]:
            open_items.pop()
            continue
        open_items[-1] -= 1
        if place >= size:
            raise WireError("a message that is cut off")
        kind, items, skip = message[place], 0, 0
        place += 1
        if kind in _FIXED:
            skip = _FIXED[kind]
        elif kind in _LENGTHS:
            width, each = _LENGTHS[kind]
            length = int.from_bytes(message[place : place + width], "big")
            place += width
            items, skip = (length * each, 0) if each else (0, length)
        elif kind < 0x80 or kind >= 0xE0:
            continue
        elif kind < 0xA0:
            items = (kind & 0x0F) * (2 if kind < 0x90 else 1)
        elif kind < 0xC0:
            skip = kind & 0x1F
        else:
            raise WireError(f"a type {kind:#x} that is not plain")
        place += skip
        if place + items > size:  # each takes a byte at least
            raise WireError("a message that says more than it holds")
        if items:
            open_items.append(items)
            if len(open_items) > DEPTH + 2:
                raise WireError(f"data nested deeper than {DEPTH}")


# msgpack's types: bytes of a number; how many bytes say the length, and items per unit of it (0: bytes).
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_LENGTHS = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_LENGTHS |= {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def _no_extension(code: int, data: bytes) -> Any:
    raise WireError(f"extension type {code}")


def _check_plain(value: Any, depth: int) -> None:
    if depth > DEPTH:
        raise WireError(f"data nested deeper than {DEPTH}")
    if isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise WireError("a key that is no text")
            _check_plain(item, depth + 1)
    elif value is not None and type(value) not in (bool, int, float, str, bytes):
        raise WireError(f"a {type(value).__name__}")


@dataclass(frozen=True)
class Request:
    """What a site says with ``Meet``.

    Attributes:
        run: name of the run.
        digest: of its federation.yaml.
        session: of this process; made when it begins, so that two processes of one site are told apart.
        say: what it has to say: a list whose first item is its kind (``messages.py``, ``service.py``).
    """

    run: str
    digest: str
    session: str
    say: list[Any]

    def to_bytes(self) -> bytes:
        return pack({"v": VERSION, "run": self.run, "digest": self.digest, "session": self.session, "say": self.say})

    @classmethod
    def from_bytes(cls, message: bytes) -> Request:
        """Raises WireError where ``message`` is no request."""
        content = unpack(message)
        if isinstance(content, dict) and content.get("v") not in (None, VERSION):
            raise WireError(
                f"protocol version {content['v']!r:.20}, here {VERSION}; use the same colearn_hpc everywhere"
            )
        match content:
            case {"v": 1, "run": str(run), "digest": str(digest), "session": str(session), "say": [str(), *_] as say}:
                if max(len(run), len(digest), len(session)) > 100:
                    raise WireError("a name that is too long")
                return cls(run, digest, session, say)
        raise WireError("no request")


@dataclass(frozen=True)
class Hello:
    """How a site begins a ``Mean``. All but the site's own part must be the same at all sites.

    Attributes:
        number: of the mean: 0 for the first shared model, i + 1 for round i.
        size: elements of the vector.
        dtype: of them, as in :data:`DTYPES`; ``|u1``: bytes that one site gives to all. Of whole numbers the sum is
            taken, modulo 2^32 or 2^64, and no mean.
        weights: n_k per site, in order; 0 takes the mean without giving to it.
        present: indices of those who take it.
        part: ROUND_MEAN; LAST_MODEL: the last shared model, from one who has it to those who have missed it; or
            JOINED: all that a site needs that joins the run with round ``number``, from one who is in it.
        codec: by which the leading part is written, as in :data:`CODECS`; empty: all of it goes as it is.
        coded: elements of that part.
    """

    number: int
    size: int
    dtype: str
    weights: tuple[float, ...]
    present: tuple[int, ...]
    part: int = ROUND_MEAN
    codec: str = ""
    coded: int = 0

    @property
    def nbytes(self) -> int:
        """Of one vector as it travels."""
        coded = CODECS[self.codec].nbytes(self.coded) if self.codec else 0
        return coded + (self.size - self.coded) * DTYPES[self.dtype]

    @property
    def chunks(self) -> int:
        """Into how many chunks a vector is cut; none holds both what is coded and what is not."""
        return self._coded_chunks - (-(self.size - self.coded) // self._step)

    def place(self, chunk: int) -> tuple[int, int]:
        """Where the elements of a chunk begin and end."""
        if chunk < self._coded_chunks:
            step = CODECS[self.codec].most(CHUNK)
            return chunk * step, min((chunk + 1) * step, self.coded)
        start = self.coded + (chunk - self._coded_chunks) * self._step
        return start, min(start + self._step, self.size)

    def is_coded(self, chunk: int) -> bool:
        """Whether a chunk is coded."""
        return chunk < self._coded_chunks

    def length(self, chunk: int) -> int:
        """Bytes of a chunk."""
        start, stop = self.place(chunk)
        return CODECS[self.codec].nbytes(stop - start) if self.is_coded(chunk) else (stop - start) * DTYPES[self.dtype]

    @property
    def widest(self) -> int:
        """The most elements that a chunk can have."""
        return max(self._step, CODECS[self.codec].most(CHUNK) if self.codec else 0)

    @property
    def _step(self) -> int:
        return CHUNK // DTYPES[self.dtype]

    @property
    def _coded_chunks(self) -> int:
        return -(-self.coded // CODECS[self.codec].most(CHUNK)) if self.codec else 0

    @property
    def givers(self) -> tuple[int, ...]:
        """Indices of those whose rows are summed."""
        return tuple(k for k in self.present if self.weights[k])

    @property
    def whole_numbers(self) -> bool:
        """Whether rows are added up, and no mean is made of them."""
        return self.dtype in ("<i4", "<i8")

    @property
    def all_or_nothing(self) -> bool:
        """Whether the round is void for all where a giver is lost, for a sum over fewer would mean something else."""
        return self.whole_numbers or self.part == LAST_MODEL

    @property
    def key(self) -> tuple[int, int]:
        """What tells two vectors of a run apart."""
        return self.number, self.part

    def to_plain(self) -> Any:
        how = [self.part, self.codec, self.coded]
        return [self.number, self.size, self.dtype, list(self.weights), list(self.present), *how]

    @classmethod
    def from_plain(cls, plain: Any, sites: int) -> Hello:
        """Raises WireError where ``plain`` is no mean of ``sites`` sites."""
        match plain:
            case [int(number), int(size), str(dtype), [*weights], [*present], int(part), str(codec), int(coded)] if (
                dtype in DTYPES
                and type(part) is int
                and part in (ROUND_MEAN, LAST_MODEL, JOINED)
                and type(coded) is int
                and ((codec in CODECS and dtype in ("<f4", "<f8") and 0 <= coded <= size) or (codec, coded) == ("", 0))
                and 0 <= number < 1 << 32
                and 0 < size <= LARGEST_MEAN // DTYPES[dtype]
                and type(number) is int
                and type(size) is int
                and len(weights) == sites
                and all(type(w) is float and 0 <= w < 1 << 29 and w.is_integer() for w in weights)
                and all(type(k) is int and 0 <= k < sites for k in present)
                and list(present) == sorted(set(present))
            ):
                found = cls(number, size, dtype, tuple(weights), tuple(present), part, codec, coded)
                one_gives = dtype == "|u1" or part != ROUND_MEAN
                if found.givers and (not one_gives or len(found.givers) == 1):
                    return found
        raise WireError("no mean")


def texts(value: Any, most: int = 200) -> str:
    """What another organisation sent as a text for people: one line, no control characters."""
    text = value if isinstance(value, str) else repr(value)
    return "".join(c if c.isprintable() else " " for c in text[:most])


def indices(names: Sequence[str], chosen: Sequence[int]) -> str:
    """Names for people."""
    return ", ".join(names[k] for k in chosen) or "nobody"
