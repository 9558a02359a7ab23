"""Plain data and messages as bytes and back; what another data center may send, and what is refused."""

import contextlib
import enum
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc.protocol import plain
from colearn_hpc.protocol.messages import (
    Absent,
    Arrival,
    Failed,
    LeftOut,
    News,
    Outcome,
    Present,
    Stopping,
    StopRequest,
    Topic,
    TopicKind,
    from_plain,
    to_plain,
)
from colearn_hpc.protocol.plain import DEPTH, PlainError, decode, encode
from colearn_hpc.protocol.reports import CenterReport

TEXT = st.text(st.characters(), max_size=8)  # lone surrogates too: names of files may have them
KEYS = TEXT.filter(lambda key: key != "\0bytes")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(max_size=8)
DATA = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
TOPICS = st.builds(Topic, st.sampled_from(TopicKind), st.none() | st.integers(), TEXT)
BROUGHT = st.one_of(
    st.builds(Present, DATA), st.builds(Absent, TEXT, DATA), st.builds(Stopping, TEXT), st.builds(Failed, TEXT)
)
ARRIVALS = st.builds(Arrival, TOPICS, BROUGHT)
MESSAGES = st.one_of(
    ARRIVALS,
    st.builds(Outcome, TOPICS, st.lists(st.none() | ARRIVALS, max_size=3).map(tuple)),
    st.builds(LeftOut, TOPICS),
    st.builds(News, TEXT, st.none() | TOPICS),
    st.builds(StopRequest, TEXT),
)


def nested(depth):
    value = None
    for _ in range(depth):
        value = [value]
    return value


# --- data -------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(DATA)
def test_data_comes_back(value):
    found = decode(encode(value))
    assert found == value and repr(found) == repr(value)  # True is no 1, and -0.0 no 0.0


def test_a_tuple_comes_back_as_a_list():
    assert decode(encode((1, ("a", b"\xff")))) == [1, ["a", b"\xff"]]


def test_numbers_that_are_none():
    found = decode(encode([math.nan, math.inf, -math.inf]))
    assert math.isnan(found[0]) and found[1:] == [math.inf, -math.inf]


def test_the_same_bytes_for_the_same_value():
    assert encode({"b": 1, "a": [0.1, "é"]}) == b'{"b":1,"a":[0.1,"\xc3\xa9"]}'


class Whole(int):
    pass


class Kind(enum.StrEnum):
    ROUND = "round"


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        1j,
        np.float32(0.5),
        np.float64(0.5),
        np.zeros(2),
        Whole(3),
        Kind.ROUND,
        bytearray(b"x"),
        [[len]],
        {"a": range(3)},
        {1: "a"},
        {"\0bytes": "AAAA"},
        10**5000,
        nested(DEPTH + 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_else_is_not_sent(value):
    with pytest.raises(PlainError):
        encode(value)


def test_limits():
    assert decode(encode(nested(DEPTH))) == nested(DEPTH)
    message = encode("x" * 98)
    assert decode(message, limit=100) == "x" * 98
    with pytest.raises(PlainError, match="a message of 100 bytes; at most 99 are taken"):
        decode(message, limit=99)
    assert plain.LIMIT == 64 * 1024**2


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"\x80\x04K\x01.",  # a pickle
        b"\xff\xfe",
        b"[1] [2]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        json.dumps(nested(DEPTH + 1)).encode(),
        b"9" * 5000,
        b'{"\\u0000bytes": "A"}',
        b'{"\\u0000bytes": "A!=="}',
        '{"\\u0000bytes": "é"}'.encode(),
        b'{"\\u0000bytes": 1}',
        b'{"\\u0000bytes": "AAAA", "more": 1}',
    ],
    ids=lambda message: repr(message[:20]),
)
def test_what_is_no_plain_data(message):
    with pytest.raises(PlainError):
        decode(message)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_data_or_refused(message):
    with contextlib.suppress(PlainError):
        decode(message)


# --- messages ---------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(MESSAGES)
def test_messages_come_back(message):
    assert from_plain(decode(encode(to_plain(message)))) == message


ROUND = ["round", 3, ""]


@pytest.mark.parametrize(
    "junk",
    [
        None,
        [],
        "news",
        {"news": "text"},
        ["weather", ROUND],
        ["arrival", ROUND],
        ["arrival", ["weather", 3, ""], ["present", None]],
        ["arrival", [["round"], 3, ""], ["present", None]],
        ["arrival", ["round", True, ""], ["present", None]],
        ["arrival", ["round", 3.0, ""], ["present", None]],
        ["arrival", ["round", 3, None], ["present", None]],
        ["arrival", ["round", 3], ["present", None]],
        ["arrival", "round", ["present", None]],
        ["arrival", ROUND, []],
        ["arrival", ROUND, "present"],
        ["arrival", ROUND, [["present"], None]],
        ["arrival", ROUND, [{"present": 1}, None]],
        ["arrival", ROUND, ["present"]],
        ["arrival", ROUND, ["present", None, None]],
        ["arrival", ROUND, ["absent", "why"]],
        ["arrival", ROUND, ["absent", 1, None]],
        ["arrival", ROUND, ["failed", None]],
        ["arrival", ROUND, ["stopping", ["why"]]],
        ["outcome", ROUND, None],
        ["outcome", ROUND, [["news", "text", None]]],
        ["outcome", ROUND, [["outcome", ROUND, []]]],
        ["outcome", ROUND, [1]],
        ["left out", None],
        ["news", b"text", None],
        ["news", "text", "round"],
        ["stop", None],
    ],
    ids=str,
)
def test_what_is_no_message(junk):
    with pytest.raises(PlainError):
        from_plain(junk)


@settings(max_examples=100, deadline=None)
@given(DATA)
def test_any_data_is_a_message_or_refused(value):
    with contextlib.suppress(PlainError):
        from_plain(value)


@settings(max_examples=200, deadline=None)
@given(MESSAGES, st.data())
def test_a_message_with_other_bytes_in_it_is_a_message_or_refused(message, data):
    changed = bytearray(encode(to_plain(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place : place + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"[", b"]", b'"', b",", b"null", b"1", b"{}"])
        )
        changed = changed or bytearray(b"[")
    try:
        found = from_plain(decode(bytes(changed)))
    except PlainError:
        return
    assert isinstance(found, Arrival | Outcome | LeftOut | News | StopRequest)


def test_topics_for_people():
    assert str(Topic(TopicKind.ROUND, 3)) == "round 3"
    assert str(Topic(TopicKind.GOING_ON, 3)) == "round 3: going on"
    assert str(Topic(TopicKind.OUTPUT_FOLDERS, detail="ModelCheckpoint")) == "ModelCheckpoint folders"
    assert str(Topic(TopicKind.START)) == "start"


# --- reports ----------------------------------------------------------------------------------------------

REPORT = CenterReport("dc0", 64, 1.5, 0.5, 0.25, 400, 0.125, {"loss": 2.0}, {"val_loss": 1.0}, "out of luck", loss=0.75)


def test_reports_come_back():
    assert CenterReport.from_plain(decode(encode(REPORT.to_plain()))) == REPORT


@pytest.mark.parametrize(
    "change",
    [{"name": 1}, {"absent": None}, {"examples": "64"}, {"local_metrics": [2.0]}, {"shared_metrics": {"a": "b"}}],
    ids=str,
)
def test_what_is_no_report(change):
    with pytest.raises(ValueError, match=r"^no report of a data center: "):
        CenterReport.from_plain(REPORT.to_plain() | change)


@pytest.mark.parametrize("other", [None, [], {}, REPORT.to_plain() | {"more": 1}], ids=type)
def test_what_has_other_fields_is_no_report(other):
    with pytest.raises(ValueError, match=r"^no report of a data center: "):
        CenterReport.from_plain(other)
