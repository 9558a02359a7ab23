"""What a data center has heard from the others since its last resume point, so that it can be replayed.

After a restart from its last resume point a data center comes to the same meetings and means again, without the others,
who have long gone on. :class:`Remembered` stands between it and them: it writes down what is heard, and replays it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from colearn_hpc.protocol.meeting import ProtocolError
from colearn_hpc.protocol.messages import Brought, Outcome, Topic


@dataclass
class _Mean:
    """A mean: once it is there, what is known about it, and what its offer has kept; that is not copied."""

    facts: Any = None
    kept: Any = None
    still_there: bool = True


class Remembered:
    """A :class:`~colearn_hpc.between.Between` that remembers what passed through it since the last resume point.

    A mean's vector is not copied: it stays as it is until the next round's mean begins, and then the older one is
    forgotten.

    Args:
        inner: what lies between the data centers.

    Attributes:
        remembers: whether a restart may want it; until then nothing is written down.
        credentials: with what this data center signs, and by what it knows the others (``privacy/keys.py``); None:
            nobody has a certificate.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.index, self.names, self.carries = inner.index, inner.names, inner.carries
        self.separate, self.may_preside, self.roster = inner.separate, inner.may_preside, inner.roster
        self.credentials: Any = getattr(inner, "credentials", None)  # most transports have none
        self.remembers = False
        self._gap = False  # something was heard that cannot be replayed
        self._begun_before = False  # a mean is under way that began before the last resume point
        self._under_way = 0
        self._entries: list[tuple[str, Outcome | _Mean]] = []
        self._again: deque[tuple[str, Outcome | _Mean]] = deque()

    # --- memory -----------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all that was heard since the last resume point can be replayed."""
        means = (entry for _, entry in self._entries if isinstance(entry, _Mean))
        return self.remembers and not self._gap and all(mean.still_there and mean.facts is not None for mean in means)

    @property
    def replays(self) -> bool:
        """Whether the next meeting or mean is replayed."""
        return bool(self._again)

    def forget(self) -> None:
        """A resume point was written: nothing before it will be asked for again."""
        self._entries.clear()
        self._gap, self._begun_before = False, self._under_way > 0

    def replay(self) -> None:
        """The data center begins again at its last resume point."""
        self._again = deque(self._entries)

    def stop_replay(self) -> None:
        """It has failed once more, before all was replayed."""
        self._again.clear()

    def _next(self, what: str) -> Outcome | _Mean:
        before, entry = self._again.popleft()
        if before != what:
            raise ProtocolError(
                f"after its restart this data center came to `{what}` where it had come to `{before}` before; "
                "please report this"
            )
        return entry

    def _note(self, what: str, entry: Outcome | _Mean) -> None:
        if self.remembers:
            self._entries.append((what, entry))

    # --- what it remembers ------------------------------------------------------------------------------

    def meet(self, topic: Topic, brought: Brought, patience: float | None, may_miss: bool) -> Outcome:
        if self._again:
            outcome = self._next(str(topic))
            assert isinstance(outcome, Outcome), "no meeting has a mean's name"
            return outcome
        outcome = self._inner.meet(topic, brought, patience, may_miss)
        self._note(str(topic), outcome)
        return outcome

    def begin_mean(self, offer: Any, present: tuple[int, ...]) -> Any:
        if self._again:
            mean = self._next(_MEAN)
            assert isinstance(mean, _Mean), "no mean has a meeting's name"
            return _Told(mean, offer)
        for _, entry in self._entries:
            if isinstance(entry, _Mean) and not offer.follows:
                entry.still_there = False
        self._under_way += 1
        mean = _Mean()
        self._note(_MEAN, mean)  # here, before the meetings that are held while it is under way
        return _Noted(self._inner.begin_mean(offer, present), lambda facts: self._finished(mean, facts, offer))

    def _finished(self, mean: _Mean, facts: Any, offer: Any) -> None:
        mean.facts, mean.kept = facts, offer.keep()
        self._under_way -= 1
        # The resume point before this one asks for a mean that the others have done with.
        self._gap |= self._begun_before
        self._begun_before = False

    # --- what it passes on ------------------------------------------------------------------------------

    @property
    def agreed(self) -> Mapping[str, str]:
        return self._inner.agreed

    @property
    def from_round(self) -> int | None:
        return self._inner.from_round

    @property
    def somebody_joins(self) -> bool:
        return self._inner.somebody_joins

    @property
    def joined(self) -> int | None:
        return self._inner.joined

    @property
    def meanwhile(self) -> Callable[[], object]:
        return self._inner.meanwhile

    @meanwhile.setter
    def meanwhile(self, call: Callable[[], object]) -> None:
        self._inner.meanwhile = call

    def broadcast(self, tensors: Iterable[Any]) -> None:
        self._inner.broadcast(tensors)

    def hand_on(self, tensors: Iterable[Any], round_index: int, giver: int) -> None:
        self._inner.hand_on(tensors, round_index, giver)

    def tell(self, text: Callable[[], str], now: bool = False) -> None:
        self._inner.tell(text, now)

    def listen(self) -> None:
        self._inner.listen()

    def ask_to_stop(self, reason: str) -> None:
        self._inner.ask_to_stop(reason)

    @property
    def stop_asked(self) -> str:
        return self._inner.stop_asked

    def finish(self, patience: float | None) -> list[str]:
        return self._inner.finish(patience)

    def give_up(self, code: int) -> NoReturn:
        self._inner.give_up(code)
        raise RuntimeError("giving up ends the process")


_MEAN = "a mean"


class _Noted:
    """A mean under way, that is written down when it is there."""

    def __init__(self, inner: Any, finished: Callable[[Any], None]) -> None:
        self._inner, self._done = inner, finished

    def advance(self) -> None:
        self._inner.advance()

    def finish(self, *how: Any) -> Any:
        facts = self._inner.finish(*how)
        self._done(facts)
        return facts

    def abandon(self, *how: Any) -> None:
        self._inner.abandon(*how)


class _Told:
    """A mean that is replayed."""

    def __init__(self, mean: _Mean, offer: Any) -> None:
        self._mean, self._offer = mean, offer

    def advance(self) -> None:
        pass

    def finish(self, *how: Any) -> Any:
        self._offer.take_over(self._mean.kept)
        return self._mean.facts

    def abandon(self, *how: Any) -> None:
        pass
