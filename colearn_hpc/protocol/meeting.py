"""A meeting of the data centers' leaders, without a wire and without a clock of its own.

Every leader sends the chair one :class:`Arrival` and gets one :class:`Outcome`. The chair alone decides whom to wait
for: that is the decision that must not be taken twice. Whoever owns the wire hands in what came (``receive``), asks
``due(now)``, and sends what ``outbox()`` holds. Times are seconds on one clock. README.md has the table of transitions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.messages import (
    Absent,
    Arrival,
    Brought,
    LeftOut,
    Message,
    News,
    Outcome,
    Present,
    Topic,
    TopicKind,
)

FINISHED = Topic(TopicKind.FINISHED)  # the outcome for a data center that was left out and comes after the run's end


class ProtocolError(RuntimeError):
    """Something that the state does not allow: a mistake of ours. The state is as it was."""


@dataclass(frozen=True)
class GaveUp:
    """Patience is over, and the meeting cannot do without ``missing``."""

    topic: Topic
    missing: frozenset[int]


class Chair:
    """The one who knows who is there. Transitions: README.md, table "The chair".

    Args:
        names: of the data centers, in order.

    Attributes:
        members: indices of the data centers that are waited for.
        messages: for people: who was left out, and who is back.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.members = set(range(len(names)))
        self.messages: list[str] = []
        self._names = list(names)
        self._inbox: dict[int, Arrival] = {}
        self._out: list[tuple[int, Message]] = []
        self._topic: Topic | None = None
        self._since, self._may_miss = 0.0, False
        self._patience: float | None = None

    @property
    def missing(self) -> set[int]:
        """Who is waited for."""
        return self.members - set(self._inbox)

    def open(self, topic: Topic, now: float, patience: float | None, may_miss: bool) -> None:
        """Begin to wait for all members.

        Args:
            topic: where the data centers meet.
            now: seconds.
            patience: seconds after which who is missing is given up; None: never.
            may_miss: then the others go on without them; otherwise the meeting fails.
        """
        if self._topic is not None:
            raise ProtocolError(f"the meeting {self._topic} is open, and {topic} would begin")
        self._topic, self._since, self._patience, self._may_miss = topic, now, patience, may_miss

    def receive(self, leader: int, arrival: Arrival) -> None:
        """A data center has come; to the open meeting, or ahead of the next."""
        self._inbox[leader] = arrival

    def withdraw(self, leader: int) -> None:
        """A data center that had come is gone again: it is waited for as if it had not come."""
        self._inbox.pop(leader, None)

    def cancel(self) -> None:
        """The open meeting does not take place. Who had come to it has still arrived."""
        self._topic = None

    def due(self, now: float) -> Outcome | GaveUp | None:
        """The end of the open meeting, once it has one."""
        if (topic := self._topic) is None:
            raise ProtocolError("no meeting is open")
        if missing := self.missing:
            if self._patience is None or now - self._since <= self._patience:
                return None
            if not self._may_miss:
                self._topic = None
                return GaveUp(topic, frozenset(missing))
            self._out += [(k, LeftOut(topic)) for k in sorted(missing)]
            self.members -= missing
        # Who was left out earlier and has come since takes part from here on.
        returned = set(self._inbox) - self.members if self._may_miss else set()
        self.members |= returned
        here = {k: self._inbox.pop(k) for k in sorted(self.members)}
        for k in sorted(returned):
            self.messages.append(f"{topic}: {self._names[k]} is back; it missed {here[k].topic}")
            here[k] = as_back(here[k], topic)
        outcome = Outcome(topic, tuple(here.get(k) for k in range(len(self._names))))
        self._out += [(k, outcome) for k in here]
        self._topic = None
        return outcome

    def close(self) -> set[int]:
        """The run is over. Who was left out, and is not back, hears it when it arrives; returns them."""
        silent = set(range(len(self._names))) - self.members
        over = Outcome(FINISHED, (None,) * len(self._names))
        self._out += [(k, over) for k in sorted(silent)]
        return silent

    def arrived(self, leaders: set[int]) -> set[int]:
        """Those of ``leaders`` that have come since the last meeting."""
        return leaders & set(self._inbox)

    def outbox(self) -> list[tuple[int, Message]]:
        """What is to be sent, (leader, message) in order; taken out."""
        out, self._out = self._out, []
        return out


def as_back(arrival: Arrival, topic: Topic) -> Arrival:
    """What is told of a data center that had been left out: it listens to this round, and gives nothing to it."""
    if not isinstance(arrival.brought, Present | Absent):
        return arrival  # a failure or a stop stays what it is
    return Arrival(topic, Absent(f"missed {arrival.topic}", arrival.brought.content))


class Attendee:
    """A leader that does not chair. Transitions: README.md, table "The attendee".

    Args:
        index: of its data center. Of several that lose patience with a silent chair, the first speaks first.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._topic: Topic | None = None
        self._since = 0.0
        self._patience: float | None = None
        self._left_out = False
        self._outcome: Outcome | None = None

    def arrive(self, topic: Topic, brought: Brought, now: float, patience: float | None) -> Arrival:
        """Come to a meeting; returns the message for the chair."""
        if self._topic is not None:
            raise ProtocolError(f"the meeting {self._topic} is awaited, and {topic} would begin")
        self._topic, self._since, self._patience = topic, now, patience
        return Arrival(topic, brought)

    def receive(self, message: Outcome | LeftOut) -> None:
        """The chair has spoken."""
        if isinstance(message, LeftOut):
            self._left_out = True
        else:
            self._outcome, self._left_out = message, False

    def due(self, now: float, chair_heard: float, chair_waits_here: bool) -> Outcome | GaveUp | None:
        """What came of the meeting, once something has.

        Args:
            now: seconds.
            chair_heard: when the chair was last heard of.
            chair_waits_here: whether it has come to this meeting.
        """
        if (topic := self._topic) is None:
            raise ProtocolError("no meeting is awaited")
        if (outcome := self._outcome) is not None:
            self._topic = self._outcome = None
            return outcome
        if self._patience is None:
            return None
        # The chair, once it has come, gives up before the others: it is the one to say who is missing. Its own patience
        # began when it came, up to one whole patience after this one's.
        limit = self._patience + 0.5 * self._index + (self._patience + pacing.GRACE if chair_waits_here else 0.0)
        # Whoever was left out waits for the end of the others' round, as long as the chair is heard of.
        silent = now - chair_heard > pacing.SILENCE + self._patience
        if now - self._since > limit and (silent or not self._left_out):
            self._topic = None
            return GaveUp(topic, frozenset({0}))
        return None


@dataclass
class _Heard:
    text: str = "nothing heard yet"
    waiting_at: Topic | None = None
    when: float = 0.0


class NewsBook:
    """What the other leaders last said of themselves, unasked.

    Args:
        index: of this data center.
        names: of all.
        now: seconds.
    """

    def __init__(self, index: int, names: Sequence[str], now: float) -> None:
        self._index, self._names = index, list(names)
        self._heard = {k: _Heard(when=now) for k in range(len(names))}
        self._past: deque[Topic] = deque(maxlen=8)

    def receive(self, leader: int, news: News, now: float) -> str:
        """Take in what a leader said; returns what people should see of it at once, or nothing."""
        if news.waiting_at is not None and news.waiting_at in self._past:
            return ""  # it came to a meeting that is over
        before = self._heard[leader].text
        self._heard[leader] = _Heard(news.text, news.waiting_at, now)
        return f"{self._names[leader]}: {news.text}" if "restart" in news.text and news.text != before else ""

    def met(self, outcome: Outcome, now: float) -> None:
        """Those who were at a meeting have gone on."""
        self._past.append(outcome.topic)
        for k in outcome.present:
            self._heard[k] = _Heard(f"went on from {outcome.topic}", when=now)

    def when(self, leader: int) -> float:
        """When a leader was last heard of, in seconds."""
        return self._heard[leader].when

    def waits_at(self, leader: int, topic: Topic) -> bool:
        """Whether a leader has said that it waits there."""
        return self._heard[leader].waiting_at == topic

    def not_at(self, topic: Topic) -> set[int]:
        """The others that have not said that they wait there."""
        return {k for k in self._heard if k != self._index and not self.waits_at(k, topic)}

    def speaks(self, missing: set[int]) -> bool:
        """Whether this leader is the first of those who wait: it alone names the others, so people read it once."""
        return self._index == min(set(self._heard) - missing, default=self._index)

    def text(self, missing: set[int], now: float) -> str:
        """The missing, each with what it last said."""
        return ", ".join(f"{self._names[k]} ({self._last(k, now)})" for k in sorted(missing)) or "the first leader"

    def gave_up(self, topic: Topic, missing: set[int], patience: float, now: float) -> str:
        """What is said when patience is over."""
        return (
            f"{topic}: {self.text(missing, now)} did not arrive within {patience:g} s (round_timeout); "
            'look at its log, allow more time, or set on_failure="continue_without"'
        )

    def _last(self, k: int, now: float) -> str:
        heard = self._heard[k]
        age = now - heard.when
        if age < pacing.SILENCE:
            return f"{heard.text}, {age:.0f} s ago" if heard.text else f"{age:.0f} s ago"
        return f"silent since {age:.0f} s, last: {heard.text}"
