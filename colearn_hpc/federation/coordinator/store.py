"""What survives a kill: outcomes of meetings in SQLite, durable before anybody hears them, and the last means as files.

STATE/run.db        outcomes, which site was told which, members, sessions
STATE/mean-NUMBER   a mean: its header in msgpack, then its numbers; renamed when whole, kept for two rounds
STATE/lacks-NUMBER  with a codec that is to make up for its errors: what the messages of that mean lacked
STATE/mean-NUMBER.last   the shared model before it, where a site was there that had missed it
STATE/status.json   how the run stands, for people on this machine; nothing depends on it
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from colearn_hpc.errors import FederationError
from colearn_hpc.federation import wire
from colearn_hpc.federation.codecs import CODECS
from colearn_hpc.federation.wire import LAST_MODEL, ROUND_MEAN, Hello, WireError
from colearn_hpc.protocol.messages import Arrival, Outcome, Topic, TopicKind, from_plain, to_plain

_LAYOUT = 1  # of the database
KEPT = 2  # means
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


class Store:
    """The state folder of one run.

    Args:
        folder: made if it is missing.
        run: name of the run.
        digest: of its federation.yaml.

    Raises:
        FederationError: the folder is another run's, or another coordinator uses it.
    """

    def __init__(self, folder: Path, run: str, digest: str) -> None:
        self.folder = folder
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
            self._set("digest", digest)
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

    # --- outcomes ---------------------------------------------------------------------------------------

    def told(self, site: int, asked: Topic) -> Told | None:
        """What ``site`` was told when it came to ``asked``; None: it was told nothing."""
        row = self._db.execute(
            "select value, content, session, settled from told join outcomes on outcome=number "
            "where site=? and asked=?",
            (site, _key(asked)),
        ).fetchone()
        if row is None:
            return None
        outcome = from_plain(wire.unpack(row[0]))
        assert isinstance(outcome, Outcome), "only outcomes are written"
        return Told(outcome, row[1], row[2], bool(row[3]))

    def conclude(
        self,
        outcome: Outcome,
        came: Mapping[int, Came],
        settled: bool,
        members: Iterable[int],
        run_id: str | None = None,
    ) -> None:
        """Write an outcome down, and who is told it; durable when it returns.

        Args:
            outcome: of a meeting.
            came: those who are told, by index, as they came: who had been left out came to another topic.
            settled: see :class:`Told`.
            members: who is waited for from here on.
            run_id: decided here; all that was concluded before then stays so too.
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
            if outcome.topic.kind is TopicKind.ROUND:
                self._set("last round", outcome.topic.round)
            if run_id is not None:
                self._set("run_id", run_id)
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
        if row is None:
            return None
        outcome = from_plain(wire.unpack(row[0]))
        assert isinstance(outcome, Outcome), "only outcomes are written"
        return outcome

    # --- means ------------------------------------------------------------------------------------------

    def mean_path(self, number: int, part: int = ROUND_MEAN) -> Path:
        return self.folder / f"mean-{number}{'.last' if part == LAST_MODEL else ''}"

    def means(self) -> list[int]:
        """Numbers of the means that are kept."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("mean-*") if path.name[5:].isdigit())

    def lacks_path(self, number: int) -> Path:
        return self.folder / f"lacks-{number}"

    def lacks(self) -> list[int]:
        """Numbers of the means of which it is known what their messages lacked."""
        return sorted(int(path.name[6:]) for path in self.folder.glob("lacks-*") if path.name[6:].isdigit())

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


class Spool:
    """A mean that is written, chunk by chunk in order, while it is taken; and what its messages lack."""

    def __init__(self, store: Store, hello: Hello) -> None:
        self._store, self._hello = store, hello
        name = f"{hello.number}-{os.getpid()}-{time.monotonic_ns()}"
        self._path, self._lacks_path = store.folder / f".mean-{name}", store.folder / f".lacks-{name}"
        self._file = self._path.open("wb")
        self._file.write(_head(hello))
        self._lacks: BinaryIO | None = None
        self._lacked: BinaryIO | None = None
        if hello.codec and CODECS[hello.codec].feedback:
            self._lacks = self._lacks_path.open("wb")
            before = [number for number in store.lacks() if number < hello.number]
            # That of a vector of another length is of other parameters.
            if before and store.lacks_path(before[-1]).stat().st_size == 4 * hello.coded:
                self._lacked = store.lacks_path(before[-1]).open("rb")

    def lacked(self, count: int) -> np.ndarray[Any, Any]:
        """The next ``count`` numbers that the messages of the mean before lacked, float32; zeros where there was none.

        Raises:
            OSError: the disk refuses, or the mean came to nothing meanwhile.
        """
        if self._lacked is None:
            return np.zeros(count, dtype="<f4")
        with _open():
            return np.frombuffer(self._lacked.read(4 * count), "<f4")

    def lacks(self, numbers: np.ndarray[Any, Any]) -> None:
        """What this mean's next message lacks. Raises OSError as :meth:`lacked`."""
        assert self._lacks is not None, "a codec with feedback"
        with _open():
            self._lacks.write(numbers.astype("<f4", copy=False).data)

    def write(self, content: bytes | memoryview) -> None:
        """Add a chunk. Raises OSError where the disk refuses, or the mean came to nothing meanwhile."""
        with _open():
            self._file.write(content)

    def sync(self) -> None:
        """Let the disk begin: the last chunk then waits less. May be called from another thread; so may :meth:`keep`.

        Raises:
            OSError: the disk refuses, or the mean came to nothing meanwhile.
        """
        with _open():
            for file in filter(None, (self._lacks, self._file)):
                file.flush()
                os.fdatasync(file.fileno())

    def keep(self) -> None:
        """The mean is whole: durable under its name when this returns. Older ones than the last two are removed."""
        self.sync()
        self._close()
        if self._lacks is not None:
            # First: where a kill comes before the mean has its name, this one is taken again and overwritten.
            self._lacks_path.replace(self._store.lacks_path(self._hello.number))
            for number in self._store.lacks()[:-KEPT]:
                self._store.lacks_path(number).unlink(missing_ok=True)
        self._path.replace(self._store.mean_path(*self._hello.key))
        _sync_folder(self._store.folder)
        for number in self._store.means()[:-KEPT]:
            for part in (ROUND_MEAN, LAST_MODEL):
                self._store.mean_path(number, part).unlink(missing_ok=True)

    def drop(self) -> None:
        """The mean came to nothing."""
        self._close()
        self._path.unlink(missing_ok=True)
        self._lacks_path.unlink(missing_ok=True)

    def _close(self) -> None:
        for file in filter(None, (self._file, self._lacks, self._lacked)):
            file.close()


@contextlib.contextmanager
def _open() -> Iterator[None]:
    """A file is worked on that another task may close, because the mean came to nothing."""
    try:
        yield
    except ValueError:
        raise OSError("the mean came to nothing meanwhile") from None


class KeptMean:
    """A kept mean, read chunk by chunk."""

    def __init__(self, path: Path, hello: Hello) -> None:
        self._file = path.open("rb")
        size = int.from_bytes(self._file.read(4), "little")
        kept = wire.unpack(self._file.read(size))
        same = kept[:3] == hello.to_plain()[:3] and kept[6:] == hello.to_plain()[6:]
        if not same:
            self._file.close()
            raise WireError(f"mean {hello.number} is of {kept[1]} x {kept[2]}, not of {hello.size} x {hello.dtype}")
        self._hello = hello

    def chunk(self, chunk: int) -> bytes:
        """The next chunk."""
        return self._file.read(self._hello.length(chunk))

    def close(self) -> None:
        self._file.close()


def _head(hello: Hello) -> bytes:
    head = wire.pack(hello.to_plain())
    return len(head).to_bytes(4, "little") + head


def _key(topic: Topic) -> str:
    return json.dumps(topic.to_plain(), ensure_ascii=False)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
