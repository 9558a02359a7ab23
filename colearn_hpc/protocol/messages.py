"""What leaders say to each other: topics of meetings, what each data center brings, and what came of it.

Every message has a plain form (``plain.py``). What came from another data center is checked when it is read.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, TypeAlias

from colearn_hpc.errors import ColearnError
from colearn_hpc.protocol.plain import PlainError


class TopicKind(Enum):
    """What a meeting is about; the value is its text for people."""

    START = "start"
    DIFFERENCE = "difference"
    RUN_ID = "run id"
    RUN_FOLDER = "run folder"
    FOLDER_IN_USE = "run folder in use"
    FOLDER_SEEN = "run folder seen"
    OUTPUT_FOLDERS = "folders"
    RESUME_POINTS = "resume points"
    PLACES = "places"
    JOINING = "joining"
    ROUND = "round"
    SITE_KEYS = "site keys"
    SCALES = "scales"
    MASK_KEYS = "mask keys"
    EXAMPLES = "examples under masks"
    MEAN = "mean"
    NO_MEAN = "no mean"
    UNDER_WAY = "under way"
    GOING_ON = "going on"
    METRICS = "metrics"
    REPORT = "report"
    EVALUATION = "evaluation"
    STOP = "stop"
    FAILURE = "failure"
    FINISHED = "finished"


@dataclass(frozen=True)
class Topic:
    """Where in the run a meeting is. All who meet must have come to the same one.

    Attributes:
        kind: what it is about.
        round: i, where it belongs to a round.
        detail: what tells two of one kind apart.
    """

    kind: TopicKind
    round: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.detail} {self.kind.value}".strip()
        if self.round is None:
            return text
        return f"round {self.round}" + ("" if self.kind is TopicKind.ROUND else f": {text}")

    def to_plain(self) -> Any:
        return [self.kind.value, self.round, self.detail]

    @classmethod
    def from_plain(cls, plain: Any) -> Topic:
        kind, round_, detail = _fields(plain, 3)
        if not isinstance(detail, str) or not (round_ is None or _is_whole(round_)):
            raise PlainError("no topic")
        return cls(TopicKind(kind), round_, detail)


# --- what a data center brings ------------------------------------------------------------------------


@dataclass(frozen=True)
class Present:
    """It takes part; ``content`` is for the others."""

    content: Any = None


@dataclass(frozen=True)
class Absent:
    """It has no part in this round: ``why``."""

    why: str
    content: Any = None


@dataclass(frozen=True)
class Stopping:
    """It leaves the run, for now; ``reason`` is for people."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """It cannot go on; ``text`` is for people."""

    text: str


Brought: TypeAlias = Present | Absent | Stopping | Failed
_BROUGHT: dict[str, Callable[..., Brought]] = {
    "present": Present,
    "absent": Absent,
    "stopping": Stopping,
    "failed": Failed,
}


def brought_to_plain(brought: Brought) -> Any:
    name = type(brought).__name__.lower()
    return [name, *(getattr(brought, key) for key in brought.__dataclass_fields__)]


def brought_from_plain(plain: Any) -> Brought:
    kind = _BROUGHT.get(plain[0]) if isinstance(plain, list) and plain and isinstance(plain[0], str) else None
    if kind is None:
        raise PlainError("nothing that a data center may bring")
    if len(plain) - 1 != (2 if kind is Absent else 1) or (kind is not Present and not isinstance(plain[1], str)):
        raise PlainError("nothing that a data center may bring")
    return kind(*plain[1:])


# --- messages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """To the chair: this data center has come to ``topic``."""

    topic: Topic
    brought: Brought


@dataclass(frozen=True)
class Outcome:
    """From the chair: the meeting is over.

    Attributes:
        topic: where those are who were not left out.
        arrivals: by data center: the topic that it had come to, and what it brought; None for who was left out.
    """

    topic: Topic
    arrivals: tuple[Arrival | None, ...]

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the data centers that were there."""
        return tuple(k for k, arrival in enumerate(self.arrivals) if arrival is not None)


@dataclass(frozen=True)
class LeftOut:
    """From the chair: the others have gone on from ``topic``; whoever arrives next is in again."""

    topic: Topic


@dataclass(frozen=True)
class News:
    """How far a data center is, unasked: ``text`` for people, and the topic at which it waits."""

    text: str
    waiting_at: Topic | None = None


@dataclass(frozen=True)
class StopRequest:
    """Everyone is asked to stop at the next safe point; ``reason`` is for people."""

    reason: str


Message: TypeAlias = Arrival | Outcome | LeftOut | News | StopRequest


def to_plain(message: Message) -> Any:
    """The message as plain data."""
    match message:
        case Arrival(topic, brought):
            return ["arrival", topic.to_plain(), brought_to_plain(brought)]
        case Outcome(topic, arrivals):
            return ["outcome", topic.to_plain(), [None if one is None else to_plain(one) for one in arrivals]]
        case LeftOut(topic):
            return ["left out", topic.to_plain()]
        case News(text, waiting_at):
            return ["news", text, None if waiting_at is None else waiting_at.to_plain()]
        case StopRequest(reason):
            return ["stop", reason]


def from_plain(plain: Any) -> Message:
    """What :func:`to_plain` made, in another data center.

    Raises:
        PlainError: it is no message.
    """
    try:
        match plain:
            case ["arrival", topic, brought]:
                return Arrival(Topic.from_plain(topic), brought_from_plain(brought))
            case ["outcome", topic, [*listed]]:
                return Outcome(Topic.from_plain(topic), tuple(map(_arrival_or_none, listed)))
            case ["left out", topic]:
                return LeftOut(Topic.from_plain(topic))
            case ["news", str(text), waiting_at]:
                return News(text, None if waiting_at is None else Topic.from_plain(waiting_at))
            case ["stop", str(reason)]:
                return StopRequest(reason)
    except ValueError as error:  # an unknown kind of topic too
        raise PlainError(f"no message: {error}") from None
    raise PlainError(f"no message: {plain!r:.200}")


# --- after a meeting ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attendance:
    """Who came to a meeting and with what; nobody failed, and nobody stops.

    Attributes:
        topic: of those who were not left out.
        brought: by data center; who was left out is :class:`Absent`.
        present: indices of the data centers that were there. A mean that follows is taken among them.
    """

    topic: Topic
    brought: tuple[Present | Absent, ...]
    present: tuple[int, ...] = field(default=())

    @property
    def contents(self) -> dict[int, Any]:
        """What those brought that take part, by index."""
        return {k: brought.content for k, brought in enumerate(self.brought) if isinstance(brought, Present)}


# --- texts for people ---------------------------------------------------------------------------------


def plural(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_error(error: BaseException) -> str:
    """One text for people, never empty: our own errors with their key, anything unforeseen with its traceback."""
    if isinstance(error, ColearnError):
        text = str(error) or type(error).__name__
        return f"{text} ({error.more})" if error.key else text
    try:
        return "".join(traceback.format_exception(error)).strip()
    except Exception:  # its own __str__ fails
        return f"{type(error).__name__} (its text cannot be read)"


_LIBRARIES = ("site-packages", "dist-packages", str(PurePath(__file__).parents[1]))  # where no user's code is


def describe_elsewhere(error: BaseException) -> str:
    """The same for other organisations: class, file name and line, for a text may quote a patient's row.

    Our own texts name settings, files and counts, and are told as they are.
    """
    if isinstance(error, ColearnError):
        return describe_error(error)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not any(part in frame.filename for part in _LIBRARIES)]
    kind = type(error).__name__
    if not frames:
        return kind
    frame = (users or frames)[-1]
    return f"{kind} at {PurePath(frame.filename).name}:{frame.lineno}"


def joined_failures(names: Sequence[str], outcome: Outcome) -> str:
    """Every distinct failure once, with the data centers that have it; empty if nobody failed."""
    centers: dict[str, list[str]] = {}
    for name, arrival in zip(names, outcome.arrivals, strict=True):
        if arrival is not None and isinstance(arrival.brought, Failed):
            centers.setdefault(arrival.brought.text, []).append(name)
    return "\n".join(
        text if len(have) == len(names) else f"data center{'' if len(have) == 1 else 's'} {', '.join(have)}: {text}"
        for text, have in centers.items()
    )


def different_topics(found: dict[str, Topic]) -> str:
    """The data centers have lost each other: a mistake of ours."""
    places = ", ".join(f"{name}: {topic}" for name, topic in found.items())
    return f"the data centers are at different points of the run ({places}); please report this"


def difference(name: str, mine: Sequence[str], other_name: str, others: Sequence[str]) -> str:
    """The first line in which two fingerprints differ."""
    here, there = next((a, b) for a, b in zip_longest(mine, others, fillvalue="(nothing)") if a != b)
    return (
        f"the data centers do not run the same thing: {name} has `{here}`, {other_name} has `{there}`; "
        "use the same code, configuration and package versions everywhere"
    )


def _arrival_or_none(plain: Any) -> Arrival | None:
    found = None if plain is None else from_plain(plain)
    if not (found is None or isinstance(found, Arrival)):
        raise PlainError("no arrival")
    return found


def _fields(plain: Any, count: int) -> list[Any]:
    if not isinstance(plain, list) or len(plain) != count:
        raise PlainError("another number of fields")
    return plain


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
