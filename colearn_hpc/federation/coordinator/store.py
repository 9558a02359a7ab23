"""What survives a kill: outcomes of meetings in SQLite, durable before anybody hears them, and the last means as files.

STATE/run.db        outcomes, which site was told which, members, sessions
STATE/mean-NUMBER   a mean: its header in msgpack, then its numbers; renamed when whole, kept for two rounds
STATE/lacks-NUMBER  with a codec that is to make up for its errors: what the messages of that mean lacked
STATE/mean-NUMBER.last   the shared model before it, where a site was there that had missed it
STATE/mean-NUMBER.join   what was handed to the sites that joined with round NUMBER
STATE/status.json   how the run stands, for people on this machine; nothing depends on it
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colearn_hpc.errors import FederationError
from colearn_hpc.federation import wire
from colearn_hpc.federation.agreement import Federation
from colearn_hpc.federation.coordinator.change import Standing, difference, roster_of
from colearn_hpc.federation.coordinator.spool import KeptMean, MeanFiles, Spool
from colearn_hpc.federation.wire import JOINED, Hello
from colearn_hpc.protocol.messages import Arrival, Outcome, Topic, TopicKind, from_plain, to_plain

_LAYOUT = 1  # of the database
STATUS = "status.json"
_TABLES = """
create table if not exists facts(name text primary key, value text not null);
create table if not exists outcomes(
    number integer primary key autoincrement, topic text not null, value blob not null, settled int not null, at real);
create table if not exists told(
    site int not null, asked text not null, outcome int not null references outcomes(number), content blob,
    session text not null, primary key(site, asked));
"""


@dataclass(frozen=True)
class Came:
    """A site that has come to a meeting: with what, and by which process."""

    arrival: Arrival
    session: str


@dataclass(frozen=True)
class Told:
    """What a site was told at a meeting.

    Attributes:
        outcome: of the meeting.
        content: what the site brought, packed.
        session: of the process that brought it.
        settled: it stays so, whatever the site brings when it comes again.
    """

    outcome: Outcome
    content: bytes
    session: str
    settled: bool


class Store(MeanFiles):
    """The state folder of one run.

    Args:
        folder: made if it is missing.
        run: name of the run.
        digest: of its federation.yaml.

    Raises:
        FederationError: the folder is another run's, or another coordinator uses it.
    """

    def __init__(self, folder: Path, run: str, digest: str) -> None:
        super().__init__(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / "run.db", isolation_level=None, timeout=1.0)
            # Exclusive for the life of the process: two coordinators of one run would split it.
            self._db.execute("pragma locking_mode=exclusive")
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.execute("begin immediate")
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute("commit")
        except (OSError, sqlite3.Error) as error:
            raise FederationError(
                f"{folder}/run.db cannot be used ({error}); is another coordinator of this run at work, or is the disk "
                "full?"
            ) from None
        known = self.fact("run")
        mine = {"run": run, "layout": _LAYOUT}
        if known is not None and known != mine:
            raise FederationError(
                f"{folder} holds the state of {known}, and this is {mine}; give each run a --state of its own"
            )
        with self._transaction():
            self._set("run", mine)
        if self.fact("digest") is None:
            self.note(digest=digest)
        self._sites = len(self.fact("roster", ()))
        for leftover in (*folder.glob(".mean-*"), *folder.glob(".lacks-*")):
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        self._db.close()

    # --- facts ------------------------------------------------------------------------------------------

    def fact(self, name: str, default: Any = None) -> Any:
        """A fact about the run, as JSON data."""
        row = self._db.execute("select value from facts where name=?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def note(self, **facts: Any) -> None:
        """Write facts down; durable when it returns."""
        with self._transaction():
            for name, value in facts.items():
                self._set(name, value)

    # --- the roster -------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing | None:
        """Who takes part; None: :meth:`adopt` has not been called."""
        if (roster := self.fact("roster")) is None:
            return None
        return Standing(
            tuple((name, left) for name, left in roster),
            frozenset(self.fact("members")),
            frozenset(self.fact("newcomers", ())),
            self.fact("from_round", 0),
            {int(k): first for k, first in self.fact("joined", {}).items()},
        )

    def after(self, federation: Federation) -> Standing:
        """Who takes part with this ``federation.yaml``.

        Raises:
            FederationError: it cannot be this run's.
        """
        before, roster = self.standing, roster_of(federation)
        if before is None or not self.fact("run_id"):
            return Standing(roster, frozenset(federation.active))
        if federation.digest() == self.fact("digest"):
            return before
        last = self.fact("last round")
        return before.changed(roster, 0 if last is None else last + 1, bool(self.fact("finished")))

    def adopt(self, federation: Federation) -> str:
        """Go on with this ``federation.yaml``; durable when it returns.

        Returns:
            What has changed, for people; empty: nothing has.

        Raises:
            FederationError: it cannot be this run's.
        """
        before, after, digest = self.standing, self.after(federation), federation.digest()
        old, begun = self.fact("digest"), bool(self.fact("run_id"))
        if before is not None and digest == old:
            return ""
        with self._transaction():
            self._set("roster", after.roster)
            self._set("members", sorted(after.members))
            self._set("newcomers", sorted(after.newcomers))
            self._set("from_round", after.from_round)
            self._set("digest", digest)
            if digest != old:
                self._set("digests", [*(one for one in self.fact("digests", []) if one != digest), old])
            if before is not None and not begun:
                # What was said before round 0 holds no more, and who said it may have another place now.
                self._db.execute("delete from facts where name like 'sessions %' or name='stop'")
                self._db.execute("delete from told")
                self._db.execute("delete from outcomes")
            elif before is not None and not self.fact("finished"):
                self._set("agreed", False)
                self._set("joined", {str(k): first for k, first in after.joined.items()})
                for (asked,) in self._db.execute("select distinct asked from told").fetchall():
                    topic = Topic.from_plain(json.loads(asked))
                    if is_of_start(topic) or topic == joining(after.from_round):
                        self._db.execute("delete from told where asked=?", (asked,))
                # Of a change before this one with the same round: somebody else may hand the run on now.
                self.mean_path(after.from_round, JOINED).unlink(missing_ok=True)
        self._sites = len(after.roster)
        return difference(before, after) if before is not None and begun else ""

    # --- outcomes ---------------------------------------------------------------------------------------

    def told(self, site: int, asked: Topic) -> Told | None:
        """What ``site`` was told when it came to ``asked``; None: it was told nothing."""
        row = self._db.execute(
            "select value, content, session, settled from told join outcomes on outcome=number "
            "where site=? and asked=?",
            (site, _key(asked)),
        ).fetchone()
        return None if row is None else Told(self._outcome(row[0]), row[1], row[2], bool(row[3]))

    def conclude(
        self,
        outcome: Outcome,
        came: Mapping[int, Came],
        settled: bool,
        members: Iterable[int],
        run_id: str | None = None,
        newcomers: Iterable[int] = (),
    ) -> None:
        """Write an outcome down, and who is told it; durable when it returns.

        Args:
            outcome: of a meeting.
            came: those who are told, by index, as they came: who had been left out came to another topic.
            settled: see :class:`Told`.
            members: who is waited for from here on.
            run_id: decided here; all that was concluded before then stays so too.
            newcomers: who is still to join.
        """
        with self._transaction():
            number = self._db.execute(
                "insert into outcomes(topic, value, settled, at) values(?, ?, ?, ?)",
                (_key(outcome.topic), wire.pack(to_plain(outcome)), int(settled), time.time()),
            ).lastrowid
            for k, one in came.items():
                self._db.execute(
                    "insert or replace into told(site, asked, outcome, content, session) values(?, ?, ?, ?, ?)",
                    (k, _key(one.arrival.topic), number, wire.pack(to_plain(one.arrival)), one.session),
                )
            self._set("members", sorted(members))
            self._set("newcomers", sorted(newcomers))
            if outcome.topic.kind is TopicKind.ROUND:
                self._set("last round", outcome.topic.round)
            if run_id is not None:
                self._set("run_id", run_id)
                self._set("agreed", True)
                self._db.execute("update outcomes set settled=1")

    def forget_unsettled(self) -> None:
        """Outcomes before round 0 that do not hold any more."""
        with self._transaction():
            self._db.execute("delete from told where outcome in (select number from outcomes where not settled)")
            self._db.execute("delete from outcomes where not settled")

    def leave_out(self, site: int, since: Topic, members: Iterable[int]) -> None:
        """``site`` was left out of the round whose end is ``since``: it has to come there again.

        Args:
            site: index.
            since: the end of that round; all that it was told from there on is forgotten.
            members: who is waited for from here on.
        """
        with self._transaction():
            self._db.execute(
                "delete from told where site=? and outcome>="
                "(select coalesce(min(number), 1 << 62) from outcomes where topic=?)",
                (site, _key(since)),
            )
            self._set("members", sorted(members))

    def outcome(self, topic: Topic) -> Outcome | None:
        """The newest outcome of ``topic``, whoever was told it; None: there is none."""
        return self._newest("select value from outcomes where topic=? order by number desc limit 1", _key(topic))

    def last_round(self) -> Outcome | None:
        """The outcome of the last round's end that there was; None: there was none."""
        number = self.fact("last round")
        return None if number is None else self.outcome(Topic(TopicKind.ROUND, number))

    def round_present(self, site: int, round_index: int) -> tuple[int, ...] | None:
        """Who was at the end of a round, as ``site`` was told; None: it was told of no such one."""
        found = self._newest(
            "select value from told join outcomes on outcome=number where site=? and topic=? order by number desc",
            site,
            _key(Topic(TopicKind.ROUND, round_index)),
        )
        return None if found is None else found.present

    def _newest(self, select: str, *values: Any) -> Outcome | None:
        row = self._db.execute(select, values).fetchone()
        return None if row is None else self._outcome(row[0])

    def _outcome(self, packed: bytes) -> Outcome:
        outcome = from_plain(wire.unpack(packed))
        assert isinstance(outcome, Outcome), "only outcomes are written"
        later = (None,) * (self._sites - len(outcome.arrivals))  # sites that have joined since
        return Outcome(outcome.topic, outcome.arrivals + later)

    # --- means ------------------------------------------------------------------------------------------

    def is_past(self, topic: Topic) -> bool:
        """Whether ``topic`` is a round's end whose mean is not kept any more."""
        kept = self.means()
        return topic.kind is TopicKind.ROUND and topic.round is not None and bool(kept) and topic.round + 1 < kept[0]

    def spool(self, hello: Hello) -> Spool:
        """A file for the mean that ``hello`` describes."""
        return Spool(self, hello)

    def read_mean(self, hello: Hello) -> KeptMean | None:
        """The mean of that number, open to be read; None: it is not there.

        Raises:
            WireError: it is of another vector than the site says.
        """
        try:
            return KeptMean(self.mean_path(*hello.key), hello)
        except FileNotFoundError:
            return None

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Let ``watch`` on this machine see how the run stands.

        Raises:
            OSError: the disk refuses.
        """
        part = self.folder / ".status.json"
        part.write_text(json.dumps({"written": time.time(), **status}))
        part.replace(self.folder / STATUS)

    # --- inside -----------------------------------------------------------------------------------------

    def _set(self, name: str, value: Any) -> None:
        self._db.execute("insert or replace into facts values(?, ?)", (name, json.dumps(value)))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """Durable when it has ended (synchronous=FULL), or as if it had never been."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("begin immediate")

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            try:
                self._db.execute("commit")
                return
            except sqlite3.Error:
                self._roll_back()
                raise
        self._roll_back()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("rollback")


def is_of_start(topic: Topic) -> bool:
    """Whether a meeting is one of those at which all agree on a contract, before they go on with any round."""
    return topic.round is None and topic.kind is not TopicKind.JOINING


def joining(from_round: int) -> Topic:
    """Where those come that join with a round, and those that are in the run."""
    return Topic(TopicKind.JOINING, detail=f"round {from_round}")


def _key(topic: Topic) -> str:
    return json.dumps(topic.to_plain(), ensure_ascii=False)
