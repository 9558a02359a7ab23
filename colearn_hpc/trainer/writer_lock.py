"""One writer per run folder: ``RUN/writer.json`` says who it is, as long as it lives.

Two starts of one run at once (sbatch twice, a chain beside a requeue, a `launch` whose mpirun lives on) would each
write rounds and resume points of their own into the same files. So the first leader of each file system holds a lock:

* on the same machine its process decides: while it lives nobody else may write, and when it is gone, at once;
* on another one a start of the same Slurm job with a higher restart count takes over at once: Slurm has ended the
  other; anybody else watches the lock's time of change, which its owner renews. Renewed: refused. Not renewed for
  60 s: taken over.

So no crash locks a folder for good. What is assumed of a network file system: a file is created exclusively (NFS 3 and
later), one that is opened shows what was written before (close-to-open), and the server sets times of change. Only
times of the server are compared, never this host's clock.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer.writing import opened_new, write_atomically

log = logging.getLogger("colearn_hpc")

NAME = "writer.json"
STALE = 60.0  # s without a sign of life, by the file server's clock
BEAT = 10.0  # s between two signs of life
LOOK = 1.0  # s between two looks of one who waits


@dataclass(frozen=True)
class Writer:
    """Who writes, or wrote, a run folder.

    Attributes:
        start: of the run, ``DataCenter.start``.
        run_id: of the run; empty until it is known.
        host: its name, for people.
        machine: tells machines apart, and what on one of them cannot see each other's processes; empty if unknown.
        pid, began: the process, and when it began, in the kernel's ticks; 0 if unknown.
        since: when the lock was taken, for people.
        slurm_job, slurm_restarts: of the batch job; empty and 0 outside one.
    """

    start: str
    run_id: str
    host: str
    machine: str
    pid: int
    began: int
    since: str
    slurm_job: str = ""
    slurm_restarts: int = 0

    @classmethod
    def this_process(cls, start: str, environ: Mapping[str, str] = os.environ) -> Writer:
        """Who this process is."""
        return cls(
            start=start,
            run_id="",
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            began=_began(os.getpid()),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            slurm_job=environ.get("SLURM_JOB_ID", ""),
            slurm_restarts=int(environ.get("SLURM_RESTART_COUNT", "0") or 0),
        )

    @classmethod
    def read(cls, path: Path) -> Writer | None:
        """Who has written the lock; None where there is none, or it cannot be read."""
        try:
            found = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if all(type(getattr(found, k)) is type(v) for k, v in asdict(_NOBODY).items()) else None

    def is_process_of(self, other: Writer) -> bool:
        """Whether both are one process."""
        return (self.machine, self.pid, self.began) == (other.machine, other.pid, other.began)

    def describe(self) -> str:
        """For people."""
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}, since {self.since}{job}"


_NOBODY = Writer("", "", "", "", 0, 0, "")


class Judgement(Enum):
    """What one who wants to write is to do about a lock."""

    TAKE = "take it over"
    REFUSE = "leave it: its owner lives"
    WAIT = "look again"


def judge(theirs: Writer | None, mine: Writer, lives: Callable[[Writer], bool], age: float, renewed: bool) -> Judgement:
    """The rules of this module.

    Args:
        theirs: what the lock says; None where it cannot be read, as while it is written.
        mine: who wants it.
        lives: whether a process of this machine lives.
        age: of the owner's last sign of life, in seconds by the file server's clock.
        renewed: whether it has given one since the first look.
    """
    if theirs is not None:
        if theirs.is_process_of(mine):
            return Judgement.TAKE
        if theirs.machine and theirs.machine == mine.machine:
            return Judgement.REFUSE if lives(theirs) else Judgement.TAKE
        if theirs.slurm_job and theirs.slurm_job == mine.slurm_job and theirs.slurm_restarts < mine.slurm_restarts:
            return Judgement.TAKE
    if age > STALE:
        return Judgement.TAKE
    return Judgement.REFUSE if renewed and theirs is not None else Judgement.WAIT


class WriterLock:
    """The lock of a run folder, held. Made by :func:`hold`.

    Args:
        folder: of the run.
        writer: who holds it.
    """

    def __init__(self, folder: Path, writer: Writer) -> None:
        self.folder, self.writer = folder, writer
        self._path = folder / NAME
        self._over = threading.Event()
        self._lost: Writer | None = None
        self._thread = threading.Thread(target=self._beat, name="colearn-writer-lock", daemon=True)
        self._thread.start()

    def note_run(self, run_id: str) -> None:
        """Write down which run it is, for people."""
        self.writer = replace(self.writer, run_id=run_id)
        if self._is_ours():
            with suppress(OSError):
                _write(self._path, self.writer)

    def check(self) -> None:
        """Raises ConfigurationError where another start has taken over: this one gave no sign of life for 60 s."""
        if self._lost is not None:
            raise ConfigurationError(
                f"{self.folder} has been taken over by {self._lost.describe()}: this start gave no sign of life for "
                f"{STALE:.0f} s. It ends here; the other one goes on"
            )

    def release(self) -> None:
        """Give it back. Nothing may be written afterwards."""
        if os.getpid() != self.writer.pid:
            return  # a loader's worker
        self._over.set()
        _held.pop(_key(self.folder), None)
        if self._is_ours():
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        found = Writer.read(self._path)
        return found is not None and found.is_process_of(self.writer)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            found = Writer.read(self._path)
            if found is not None and not found.is_process_of(self.writer):
                self._lost = found
                log.error("%s has been taken over by %s", self.folder, found.describe())
                return
            with suppress(OSError):  # the next beat may succeed, and there are six before it is too late
                os.utime(self._path)


_held: dict[str, WriterLock] = {}  # this process's, by folder


def hold(folder: Path, start: str, meanwhile: Callable[[str], object] = lambda text: None) -> WriterLock | None:
    """Become the one writer of a run folder, or stay it. It is given back when the process ends, at the latest.

    Args:
        folder: of the run; made if it is not there.
        start: of the run.
        meanwhile: called with what is waited for, while it is waited for.

    Returns:
        None where another process of the same start holds it: a data center that has this file system in common.

    Raises:
        ConfigurationError: another start writes it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _held.get(_key(folder))
        if before is not None:
            if before.writer.start == start and before._is_ours():
                return before
            before._over.set()
        writer = Writer.this_process(start)
        if not _acquire(folder / NAME, writer, meanwhile):
            return None
    except OSError as error:
        raise ConfigurationError(
            f"run folder {folder} cannot be made or written ({error.strerror}); choose another --runs (in a script: "
            "run_dir)"
        ) from error
    lock = _held[_key(folder)] = WriterLock(folder, writer)
    atexit.register(lock.release)
    return lock


def is_held_by(folder: Path, start: str) -> bool:
    """Whether the lock that lies here is this start's, be it held by another host."""
    found = Writer.read(folder / NAME)
    return found is not None and found.start == start


def living_writer(folder: Path) -> Writer | None:
    """Who writes a run folder, where that is a process of this machine that lives."""
    found = Writer.read(folder / NAME)
    return found if found is not None and found.machine == _machine() and _lives(found) else None


def taken(folder: Path, writer: Writer) -> str:
    """What is said to who comes second."""
    return (
        f"{folder} is written by another start of this run ({writer.describe()}); wait for its end, or choose another "
        "--name (run_dir)"
    )


def _acquire(path: Path, mine: Writer, meanwhile: Callable[[str], object]) -> bool:
    """Whether the lock is ours now; False where it is another process's of the same start."""
    first: tuple[str, float] | None = None
    said = 0.0
    while True:
        with suppress(FileExistsError):
            with opened_new(path) as file:
                file.write(json.dumps(asdict(mine)))
            return True
        try:
            with path.open() as file:  # opened, so that a network file system asks its server for the time
                changed = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            continue  # given back this moment
        theirs = Writer.read(path)
        if theirs is not None and theirs.start == mine.start and not theirs.is_process_of(mine):
            return False
        look = ("" if theirs is None else theirs.start, changed)
        if first is None or first[0] != look[0]:
            first = look
        age = _now(path.parent) - changed
        match judge(theirs, mine, _lives, age, renewed=look[1] > first[1]):
            case Judgement.TAKE:
                if _take_over(path, theirs, mine):
                    return True
            case Judgement.REFUSE:
                assert theirs is not None, "who is not known is waited for"
                raise ConfigurationError(taken(path.parent, theirs))
            case Judgement.WAIT:
                who = "somebody" if theirs is None else theirs.describe()
                text = f"{path.parent} is locked by {who}; waiting for a sign of life, or {STALE:.0f} s without one"
                meanwhile(text)
                if time.monotonic() - said > STALE / 2:
                    said = time.monotonic()
                    log.warning("%s (the last is %.0f s old)", text, age)
        time.sleep(LOOK)


def _take_over(path: Path, theirs: Writer | None, mine: Writer) -> bool:
    """Replace a lock whose owner is gone; False where somebody else does, or it is another one by now.

    Two may have judged the same lock: the one replaces it who has made the claim, and who has made it looks again.
    """
    claim = path.with_name(f".{path.name}.claim")
    try:
        with opened_new(claim):
            pass
    except FileExistsError:
        with suppress(FileNotFoundError):  # it is there for an instant; who made it may have been killed in that
            if _now(path.parent) - claim.stat().st_mtime > STALE:
                claim.unlink()
        return False
    try:
        if Writer.read(path) != theirs:
            return False
        _write(path, mine)
        return True
    finally:
        claim.unlink(missing_ok=True)


def _write(path: Path, writer: Writer) -> None:
    write_atomically(path, json.dumps(asdict(writer)), writer.start)


def _now(folder: Path) -> float:
    """The file server's clock: the time of a file that is made this moment."""
    probe = folder / f".clock-{secrets.token_hex(8)}"
    number = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        return os.fstat(number).st_mtime
    finally:
        os.close(number)
        probe.unlink(missing_ok=True)


def _key(folder: Path) -> str:
    return os.path.realpath(folder)


def _machine() -> str:
    """This boot of this machine, and which processes can be seen here: containers may share a host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return platform.node()


def _lives(writer: Writer) -> bool:
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(writer.pid, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return True
    return _began(writer.pid) == writer.began


def _began(pid: int) -> int:
    """When a process began, in the kernel's ticks since the machine's start; 0 where it is gone, or cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
