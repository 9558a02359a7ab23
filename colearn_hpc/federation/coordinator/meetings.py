"""Meetings of the sites, as the coordinator holds them: what each that comes is told, and when.

The pure :class:`~colearn_hpc.protocol.meeting.Chair` decides who is waited for. Here is what a federation adds:

* An outcome is written down before anyone hears it. A site that comes again, because it was killed or its link was cut,
  is told what it was told, and the others do not notice.
* Before the run's id is decided nothing is settled: a site may be corrected and started again, and all begin anew. So
  it is again with another roster (``change.py``): all of it are awaited until they have agreed, also who was left out.
* Who joins comes to a meeting of its own, at which the others are when they have done with the rounds before.
* A site that is left out may be any; and at any meeting of a round, since it may have died anywhere. It comes in again
  at the end of a later round; where there is none any more, it is led through the last one, and so ends with the shared
  model that all others have.

No wire and no clock here: times are seconds on one clock, handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from colearn_hpc.federation import wire
from colearn_hpc.federation.coordinator.store import Came, Store, is_of_start
from colearn_hpc.protocol.meeting import FINISHED, Chair, GaveUp, as_back
from colearn_hpc.protocol.messages import Arrival, Outcome, Present, Topic, TopicKind, to_plain

_MAY_DIFFER_NOT = (TopicKind.START, TopicKind.DIFFERENCE)


@dataclass(frozen=True)
class BeginAgain:
    """This process cannot go on; a new one of its site can. ``why`` is for people."""

    why: str


@dataclass(frozen=True)
class Refused:
    """This site cannot go on as it is. ``why`` is for people."""

    why: str


Answer: TypeAlias = Outcome | BeginAgain | Refused


class Meetings:
    """Holds the meetings of one run.

    Args:
        names: of the sites, in order.
        store: what survives.
        patience: seconds that a round's meeting waits for a site, from when the first has come; None: for ever.
        may_miss: the others then go on without it; otherwise their processes end, and may be started again.
    """

    def __init__(self, names: Sequence[str], store: Store, patience: float | None, may_miss: bool) -> None:
        self._names, self._store = list(names), store
        self._patience, self._may_miss = patience, may_miss
        self._chair = Chair(names)
        standing = store.standing
        self._active = set(range(len(names))) if standing is None else set(standing.active)
        self._members = set(store.fact("members", self._active))
        self._newcomers = set(store.fact("newcomers", ()))
        self._came: dict[int, Came] = {}
        # Who was left out, and has come to a round's end since; and who has come to join.
        self._returning: dict[int, Came] = {}
        self._open: Topic | None = None
        self._opened: tuple[float, float | None, bool] = (0.0, None, False)  # since, patience, may miss
        self._answers: dict[int, tuple[Topic, Answer]] = {}  # that nobody has fetched, and that are not written down
        self._anew: dict[int, tuple[Topic, Answer]] = {}  # what came of something else than the open meeting
        self.messages: list[str] = []
        self.concluded: list[Outcome] = []

    @property
    def members(self) -> set[int]:
        """Indices of the sites that are waited for."""
        return set(self._members)

    def is_left_out(self, site: int) -> bool:
        """Whether the others have gone on without a site, which has not come back yet."""
        return site not in self._members | self._newcomers

    @property
    def awaited(self) -> set[int]:
        """Who is missing at the meeting that is open; empty where none is."""
        return self._chair.missing - set(self._returning) if self._open is not None else set()

    @property
    def open_topic(self) -> Topic | None:
        """Of the meeting that is open."""
        return self._open

    @property
    def run_id(self) -> str:
        """Of the run; empty before it is decided."""
        return str(self._store.fact("run_id", ""))

    def waits(self, site: int) -> bool:
        """Whether a site has come, and waits for the others."""
        return site in self._came or site in self._returning

    def ask(self, site: int, arrival: Arrival, session: str, now: float) -> Answer | None:
        """A site comes to a meeting, for the first time or again.

        Args:
            site: index.
            arrival: where to, and with what.
            session: of its process.
            now: seconds.

        Returns:
            What it is told; None: it has to wait.

        Raises:
            sqlite3.Error, OSError: the disk refuses; nothing has happened then.
        """
        asked = arrival.topic
        if asked.kind is TopicKind.RUN_ID and self.run_id and isinstance(arrival.brought, Present):
            arrival = Arrival(asked, Present(self.run_id))  # with another roster too; who has no resume point learns it
        if (answer := self._answers.pop(site, None)) is not None and answer[0] == asked:
            return answer[1]
        if (answered := self._told(site, arrival, session)) is not None:
            return answered
        came = Came(arrival, session)
        awaited = self._awaited_at(asked)
        if site in self._newcomers and asked.kind is TopicKind.JOINING:
            self._returning[site] = came  # until one comes who hands the run on
            return None
        if site not in awaited:
            if self._store.fact("finished"):
                return self._afterwards(site, came)
            if asked.kind is not TopicKind.ROUND:
                return BeginAgain(f"{self._names[site]} was left out of the round while it was at {asked}")
            self._returning[site] = came
            return None
        self._came[site] = came
        self._chair.receive(site, arrival)
        if self._open is None:
            in_round = asked.round is not None
            self._chair.members = awaited
            self._opened = (now, self._patience if in_round else None, in_round and self._may_miss)
            self._chair.open(asked, *self._opened)
            self._open = asked
        return None

    def hold(self, site: int, topic: Topic, answer: Answer) -> None:
        """Keep an answer for a site that is not listening, until it asks again."""
        if not isinstance(answer, Outcome):  # those are written down
            self._answers[site] = (topic, answer)

    def due(self, now: float) -> dict[int, tuple[Topic, Answer]]:
        """What those who wait are told, once there is something: by site, with the topic at which it waits.

        Raises:
            sqlite3.Error, OSError: the disk refuses; nothing has happened then, and the next call tries again.
        """
        anew, self._anew = self._anew, {}
        if anew or (topic := self._open) is None:
            return anew
        joins = topic.kind is TopicKind.JOINING
        back = dict(self._returning) if joins or (topic.kind is TopicKind.ROUND and self._may_miss) else {}
        back = {k: came for k, came in back.items() if (k in self._newcomers) is joins}
        before, members = set(self._chair.members), set(self._members)
        for k, came in back.items():
            self._chair.receive(k, came.arrival)
        found = self._chair.due(now)
        if found is None:
            for k in back:
                self._chair.withdraw(k)
            return {}
        self._chair.outbox()
        self._open = None
        if isinstance(found, GaveUp):
            return self._gave_up(found)
        here = {k: back.get(k) or self._came[k] for k in found.present}
        if not is_of_start(topic):
            self._members = set(self._chair.members)
        try:
            self._conclude(found, here)
        except BaseException:
            # As if nothing had happened: those who wait are here, and the next look may have more luck.
            self._chair.members, self._members = before, members
            for k, one in self._came.items():
                self._chair.receive(k, one.arrival)
            self._chair.open(topic, *self._opened)
            self._open = topic
            raise
        if joins:
            self._newcomers.clear()
        if left_out := before - set(found.present):
            self.messages.append(f"{found.topic}: going on without {wire.indices(self._names, sorted(left_out))}")
            for k in left_out:
                self._forget_round(k, found.topic)
        self.messages += self._chair.messages
        self._chair.messages.clear()
        self.concluded.append(found)
        for k in here:
            self._came.pop(k, None)
            self._returning.pop(k, None)
        return {k: (one.arrival.topic, found) for k, one in here.items()}

    def withdraw(self, site: int, session: str) -> None:
        """A site has left the meeting to which it had come: its link is cut, or it stops."""
        for waiting in (self._came, self._returning):
            if site in waiting and waiting[site].session == session:
                del waiting[site]
                self._chair.withdraw(site)

    def leave_out(self, site: int, topic: Topic) -> None:
        """The others go on without a site that had come to the end of this round."""
        self._members.discard(site)
        self._chair.members.discard(site)
        self._forget_round(site, topic)
        self.messages.append(f"{topic}: going on without {self._names[site]}")

    def finish(self) -> None:
        """The run is over: whoever was left out and has come goes through the last round."""
        self._store.note(finished=True)
        self._anew |= {k: (came.arrival.topic, self._afterwards(k, came)) for k, came in self._returning.items()}
        self._returning.clear()

    # --- inside -----------------------------------------------------------------------------------------

    def _awaited_at(self, topic: Topic) -> set[int]:
        """Who has to come to a meeting."""
        if is_of_start(topic):
            return set(self._active)
        return self._members | (self._newcomers if topic.kind is TopicKind.JOINING else set())

    def _told(self, site: int, arrival: Arrival, session: str) -> Answer | None:
        """What is written down for a site that comes again."""
        found = self._store.told(site, arrival.topic)
        if found is None:
            return None
        if self.is_left_out(site) and self._store.is_past(found.outcome.topic):
            self._forget_round(site, found.outcome.topic)  # it cannot go on from there, only from a later round
            return None
        same = found.content == wire.pack(to_plain(arrival))
        each_its_own = arrival.topic.detail == "terms"  # what a site says of itself in the contract
        if arrival.topic.kind in _MAY_DIFFER_NOT and not same and found.settled:
            return Refused(
                f"{self._names[site]} runs something else than it began the run with; use the same code, "
                "configuration and package versions as before, or begin a new run"
            )
        agreed = len({wire.pack(to_plain(one)) for one in found.outcome.arrivals if one is not None}) == 1
        if found.settled or found.session == session or (same and (agreed or each_its_own)):
            return found.outcome
        self._begin_anew(f"{self._names[site]} has begun again")
        return None

    def _afterwards(self, site: int, came: Came) -> Answer:
        """What a site is told that was left out, and comes when the run is over: what was said in the last round."""
        asked = came.arrival.topic
        found = self._store.last_round() if asked.kind is TopicKind.ROUND else self._store.outcome(asked)
        if found is None:
            return Outcome(FINISHED, (None,) * len(self._names))
        arrivals = list(found.arrivals)
        arrivals[site] = came.arrival
        if asked.kind is TopicKind.ROUND:
            arrivals[site] = as_back(came.arrival, found.topic)
            self.messages.append(f"{self._names[site]} is back after the run's end; it is led through {found.topic}")
        outcome = Outcome(found.topic, tuple(arrivals))
        self._store.conclude(outcome, {site: came}, True, self._members, newcomers=self._newcomers)
        return outcome

    def _begin_anew(self, why: str) -> None:
        """Nothing holds of what was said before round 0."""
        self._store.forget_unsettled()
        for k, came in self._came.items():
            self._anew[k] = (came.arrival.topic, BeginAgain(f"{why} before all had agreed"))
            self._chair.withdraw(k)
        self._came.clear()
        if self._open is not None:
            self._chair.cancel()
            self._open = None
        self.messages.append(f"{why} before all had agreed; all begin anew")

    def _conclude(self, outcome: Outcome, came: dict[int, Came]) -> None:
        together = {one.arrival.topic for k, one in came.items() if k in self._came} == {outcome.topic}
        if outcome.topic.kind is TopicKind.RUN_ID and together:
            run_id = next(getattr(a.brought, "content", "") for a in outcome.arrivals if a is not None)
            self._store.conclude(
                outcome, came, True, self._members, run_id=wire.texts(run_id), newcomers=self._newcomers
            )
            return
        settled = together and bool(self._store.fact("agreed", bool(self.run_id)))
        newcomers = () if outcome.topic.kind is TopicKind.JOINING else self._newcomers
        self._store.conclude(outcome, came, settled, self._members, newcomers=newcomers)

    def _gave_up(self, found: GaveUp) -> dict[int, tuple[Topic, Answer]]:
        missing = wire.indices(self._names, sorted(found.missing))
        why = f"{found.topic}: {missing} did not come within {self._patience:g} s (round_timeout)"
        self.messages.append(f"{why}; the others' processes end, and may be started again")
        told: dict[int, tuple[Topic, Answer]] = {k: (c.arrival.topic, BeginAgain(why)) for k, c in self._came.items()}
        for k in self._came:
            self._chair.withdraw(k)
        self._came.clear()
        return told

    def _forget_round(self, site: int, topic: Topic) -> None:
        """Whoever was left out in mid-round comes to that round's end again, and is told the next one's outcome."""
        self._returning.pop(site, None)
        self._came.pop(site, None)
        self._chair.withdraw(site)
        if topic.round is not None:
            self._store.leave_out(site, Topic(TopicKind.ROUND, topic.round), self._members)
