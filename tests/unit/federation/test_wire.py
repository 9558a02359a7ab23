"""What travels between sites and coordinator is parsed within limits: nothing comes of bad bytes but a WireError."""

import contextlib
import random
import struct
import tracemalloc

import msgpack
import pytest

from colearn_hpc.federation import wire
from colearn_hpc.federation.wire import HEADER, HELLO, MEAN, ROW, Hello, Request, WireError

HELLO_0 = Hello(3, 600_000, "<f4", (4.0, 0.0, 7.0), (0, 1, 2))
REQUEST = Request(
    "run", "sha256:" + "0" * 64, "ab" * 16, ["arrival", ["round", 3, ""], ["present", [1, 2.5, None, b"x"]]]
)


def test_a_frame_comes_back():
    frame, content = wire.parse_frame(wire.frame(ROW, 3, 7, b"12345678"))
    assert (frame.kind, frame.number, frame.chunk, frame.length, bytes(content)) == (ROW, 3, 7, 8, b"12345678")


def test_the_header_is_as_documented():
    message = wire.frame(MEAN, 0x01020304, 5, b"abcd")
    assert message == b"CL\x01\x04" + struct.pack("<IIII", 0x01020304, 5, 4, 0) + b"abcd" and HEADER.size == 20


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"CL",
        b"XX" + wire.frame(ROW, 0, 0, b"1234")[2:],
        b"CL\x02" + wire.frame(ROW, 0, 0, b"1234")[3:],
        wire.frame(9, 0, 0, b""),
        wire.frame(ROW, 0, 0, b"1234")[:-1],
        wire.frame(ROW, 0, 0, b"1234") + b"0",
        HEADER.pack(b"CL", 1, ROW, 0, 0, wire.CHUNK + 4, 0) + bytes(wire.CHUNK + 4),
        HEADER.pack(b"CL", 1, HELLO, 0, 0, 0xFFFFFFFF, 0),
        HEADER.pack(b"CL", 1, ROW, 0, 0, 4, 1) + b"1234",
    ],
)
def test_what_is_no_frame(message):
    with pytest.raises(WireError):
        wire.parse_frame(message)


def test_another_version_is_named():
    message = msgpack.packb({"v": 2, "run": "r", "digest": "d", "session": "s", "say": ["status"]})
    with pytest.raises(WireError, match="protocol version 2, here 1"):
        Request.from_bytes(message)


@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        msgpack.ExtType(5, b"x"),
        msgpack.Timestamp(1),
        [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]],
        "x" * (wire._LONGEST_TEXT + 1),
        {str(k): 0 for k in range(wire._LARGEST_MAP + 1)},
    ],
)
def test_what_is_not_plain(value):
    with pytest.raises(WireError):
        wire.unpack(msgpack.packb(value))


@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_length_that_is_not_there_allocates_nothing(head):
    """An array, a map, bytes of 4 G."""
    with pytest.raises(WireError):
        wire.unpack(head + b"x" * 10)


def test_nesting_allocates_nothing():
    """msgpack alone takes a megabyte a level here, and half a gigabyte for a message of 6 kB."""
    message = b"\xdd\x00\x01\xff\xff" * 500 + bytes((1 << 17) + 4000)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="nested deeper"):
            wire.unpack(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


NUMBERS = [127, 128, 255, 256, 65536, 1 << 40, (1 << 64) - 1, -1, -33, -200, -70000, -(1 << 40), 0.1, float("inf")]
TEXTS = ["", "x" * 31, "x" * 32, "ü" * 300, "x" * 70000, b"", b"y" * 300, b"y" * 70000]
NESTED = [[], [1] * 15, [1] * 16, [0.5] * 70000, {}, {"a": {}}, {str(k): [k] for k in range(300)}, [[[], {}], [None]]]


@pytest.mark.parametrize("value", [None, True, *NUMBERS, *TEXTS, *NESTED], ids=lambda value: repr(value)[:20])
def test_what_is_plain_comes_back(value):
    assert wire.unpack(wire.pack(value)) == value


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [3, 0, "<f4", [1.0, 1.0], [0, 1]],
        [3, 10, "<f2", [1.0, 1.0], [0, 1]],
        [3, 10, "<f4", [1.5, 1.0], [0, 1]],
        [3, 10, "<f4", [float("nan"), 1.0], [0, 1]],
        [3, 10, "<f4", [1.0, -1.0], [0, 1]],
        [3, 10, "<f4", [1.0], [0, 1]],
        [3, 10, "<f4", [1.0, 1.0], [1, 0]],
        [3, 10, "<f4", [1.0, 1.0], [0, 2]],
        [3, 10, "<f4", [0.0, 0.0], [0, 1]],
        [3, 10, "|u1", [1.0, 1.0], [0, 1]],
        [3, 1 << 50, "<f4", [1.0, 1.0], [0, 1]],
        [True, 10, "<f4", [1.0, 1.0], [0, 1]],
        [3, 10, "<f4", [float(1 << 29), 1.0], [0, 1]],
    ],
)
def test_what_is_no_mean(plain):
    with pytest.raises(WireError):
        Hello.from_plain(plain, 2)


def test_a_mean_comes_back():
    assert Hello.from_plain(wire.unpack(wire.pack(HELLO_0.to_plain())), 3) == HELLO_0
    assert HELLO_0.givers == (0, 2) and HELLO_0.chunks == 3 and HELLO_0.length(2) == 2_400_000 - 2 * wire.CHUNK


def mutated(message: bytes, draw: random.Random) -> bytes:
    """The message with some bytes changed, cut, doubled or put in."""
    found = bytearray(message)
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(found) + 1)
        match draw.randrange(4):
            case 0:
                del found[place : place + draw.randrange(1, 9)]
            case 1:
                found[place:place] = draw.randbytes(draw.randrange(1, 9))
            case 2:
                found[place : place + 1] = draw.choice((b"\xdd", b"\xdf", b"\xc9", b"\xff", b"\x00", b"\xc7"))
            case 3:
                found[place:place] = found[: draw.randrange(40)]
    return bytes(found)


def parse(message: bytes) -> None:
    """All that a coordinator or a site does with bytes before it believes them."""
    for step in (
        lambda: Request.from_bytes(message),
        lambda: Hello.from_plain(wire.unpack(wire.parse_frame(message)[1]), 3),
        lambda: wire.expect(message, ROW, 3, 0, 8),
    ):
        with contextlib.suppress(WireError):
            step()


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("seed", range(25))
def test_bad_bytes_raise_nothing_else(seed):
    """25 x 40,000 mutated messages."""
    draw = random.Random(seed)
    good = [
        REQUEST.to_bytes(),
        wire.frame(HELLO, 3, 0, wire.pack(HELLO_0.to_plain())),
        wire.frame(ROW, 3, 0, b"12345678"),
        wire.pack(
            {"outcome": ["outcome", ["round", 1, ""], [None, ["arrival", ["round", 1, ""], ["absent", "x", 0]]]]}
        ),
    ]
    for _ in range(40_000):
        parse(mutated(draw.choice(good), draw))
