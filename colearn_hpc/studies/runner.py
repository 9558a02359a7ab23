"""Runs a study's grid: several runs at once, finished ones skipped, failed ones tried once more.

OUT/study.yaml            the study file, as given
OUT/plan.json             the study and its grid: which run folder is which arm, model, data set and seed
OUT/runs/NAME/            a run folder, as `fit` writes it, and beside its files
    settings.yaml           the configuration it was started with
    attempt.json            fingerprint of that configuration, how each attempt ended, and the batch system's job
    attempt.lock            is locked by the process that works on the run
    output.txt              what it printed
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from colearn_hpc.errors import RESUME_CODE, ConfigurationError
from colearn_hpc.studies.files import held, write_atomically
from colearn_hpc.studies.grid import RunPlan
from colearn_hpc.studies.launchers import Launcher, Run
from colearn_hpc.studies.run_folder import forget, last_error, read_run
from colearn_hpc.studies.slurm_launcher import SubmissionError
from colearn_hpc.studies.study_file import Study

ATTEMPTS = 2


@dataclass
class Attempt:
    """One run under way."""

    plan: RunPlan
    number: int
    run: Run
    lock: IO[bytes] | None = None
    started: float = field(default_factory=time.monotonic)

    def leave(self) -> None:
        """Others may work on the run."""
        if self.lock is not None:
            self.lock.close()


@dataclass
class Outcome:
    """What became of the grid.

    Attributes:
        skipped: names of runs that were finished already.
        finished: those finished now.
        failed: name -> why, after the last attempt.
    """

    skipped: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class GridRunner:
    """Starts the runs of a grid and waits for them.

    Args:
        out: the study's folder.
        launcher: how a run is started.
        jobs: runs at once.
        tell: called with a line for people whenever something happens.
        tick: called every half second with the runs under way.
    """

    def __init__(
        self,
        out: Path,
        launcher: Launcher,
        jobs: int,
        tell: Callable[[str], None] = print,
        tick: Callable[[list[Attempt]], None] | None = None,
    ) -> None:
        if jobs < 1:
            raise ConfigurationError(f"--jobs must be at least 1, found {jobs}")
        self.out, self.launcher, self.jobs, self.tell, self.tick = out, launcher, jobs, tell, tick
        self.outcome = Outcome()

    def run(self, plans: Sequence[RunPlan]) -> Outcome:
        """Run what is not finished. Ends the runs under way, and re-raises, when interrupted."""
        waiting: deque[tuple[RunPlan, int]] = deque()
        under_way: list[Attempt] = []
        self.launcher.tell = self.tell
        for plan in plans:
            if is_finished(self.folder(plan), plan):
                self.outcome.skipped.append(plan.name)
            elif (left := self._left_under_way(plan)) is not None:
                under_way.append(left)
            else:
                waiting.append((plan, 1))
        if self.outcome.skipped:
            self.tell(f"{len(self.outcome.skipped)} of {len(plans)} runs are finished already")
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self.jobs:
                    plan, number = waiting.popleft()
                    try:
                        with _uninterrupted():
                            under_way.append(self._start(plan, number))
                    except SubmissionError as error:
                        if not under_way:
                            raise
                        self.jobs = len(under_way)
                        self.tell(f"{error}; going on with {self.jobs} at once")
                        waiting.appendleft((plan, number))
                time.sleep(0.5)
                for attempt in under_way[:]:
                    if (code := attempt.run.poll()) is None:
                        continue
                    under_way.remove(attempt)
                    if (following := self._ended(attempt, code)) is not None:
                        waiting.append((attempt.plan, following))
                if self.tick is not None:
                    self.tick(under_way)
        except BaseException:
            self.launcher.end([attempt.run for attempt in under_way])
            for attempt in under_way:
                attempt.leave()
            raise
        return self.outcome

    def folder(self, plan: RunPlan) -> Path:
        return self.out / "runs" / plan.name

    def _left_under_way(self, plan: RunPlan) -> Attempt | None:
        """A run that an earlier study, which was killed, has left in a batch system's queue."""
        notes = _notes(self.folder(plan))
        job = notes.get("job")
        run = self.launcher.find(job) if job else None
        if run is None:
            return None
        if notes.get("fingerprint") != plan.fingerprint:
            raise ConfigurationError(
                f"job {job} still works in {self.folder(plan)}, with settings that the study no longer has; end it "
                f"(scancel {job}) or wait for it, and start the study again"
            )
        self.tell(f"{plan.name}: job {job} is under way already")
        return Attempt(plan, 1, run)

    def _start(self, plan: RunPlan, number: int) -> Attempt:
        folder = self.folder(plan)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        try:
            return Attempt(plan, number, self._launched(plan, number, folder), lock)
        except BaseException:
            lock.close()
            raise

    def _launched(self, plan: RunPlan, number: int, folder: Path) -> Run:
        notes = _notes(folder)
        same = notes.get("fingerprint") == plan.fingerprint
        if not same:
            forget(folder)
            notes = {"fingerprint": plan.fingerprint, "attempts": []}
        write_atomically(folder / "settings.yaml", yaml.safe_dump(plan.settings, sort_keys=False, allow_unicode=True))
        fit = ["fit", "--config", str(folder / "settings.yaml"), "--name", plan.name, "--runs", str(folder.parent)]
        # Spelled out, because `launch` would otherwise add the number of groups of ranks that it starts.
        fit += ["--centers", json.dumps(plan.settings["centers"])]
        fit += ["--resume"]
        command = self.launcher.command(plan, fit, folder)
        with (folder / "output.txt").open("ab") as output:
            output.write(f"--- attempt {number}: {' '.join(command)}\n".encode())
        run = self.launcher.start(plan, fit, folder)
        write_atomically(folder / "attempt.json", json.dumps(notes | {"job": run.id}, indent=1))
        return run

    def _ended(self, attempt: Attempt, code: int) -> int | None:
        """Note how an attempt ended; the number of the next one if there is to be one."""
        plan = attempt.plan
        attempt.leave()
        folder, seconds = self.folder(plan), time.monotonic() - attempt.started
        notes = _notes(folder)
        notes.setdefault("attempts", []).append({"exit_code": code, "seconds": round(seconds, 1)})
        write_atomically(folder / "attempt.json", json.dumps(notes, indent=1))
        run = read_run(folder)
        if code == 0 and run.status == "finished":
            self.outcome.finished.append(plan.name)
            self.tell(f"{plan.name}: finished in {seconds:.0f} s")
            return None
        if code == RESUME_CODE:
            self.tell(f"{plan.name}: stopped at a safe point, to be continued")
            return attempt.number
        reason = last_error(folder / "output.txt") or f"exit code {code}, and no word of an error"
        if said := attempt.run.said():
            reason += f" ({said})"
        return self._failed(plan, attempt.number, f"{reason}; output: {folder / 'output.txt'}")

    def _failed(self, plan: RunPlan, number: int, reason: str) -> int | None:
        again = number < ATTEMPTS
        if not again:
            self.outcome.failed[plan.name] = reason
        self.tell(f"{plan.name}: FAILED: {reason}; {'trying once more' if again else 'given up'}")
        return number + 1 if again else None

    def done(self) -> int:
        """Runs that are finished or given up."""
        return len(self.outcome.skipped) + len(self.outcome.finished) + len(self.outcome.failed)


def check_free(out: Path, plans: Sequence[RunPlan]) -> None:
    """Before anything is written: another study's files may be there.

    Raises:
        ConfigurationError: another study works on one of these runs.
    """
    for plan in plans:
        if (folder := out / "runs" / plan.name).is_dir():
            _lock(folder).close()


def _lock(folder: Path) -> IO[bytes]:
    try:
        return held(folder / "attempt.lock")
    except BlockingIOError:  # with other settings this one would take away what the other is writing
        raise ConfigurationError(
            f"another `study run` works on {folder}; end it, or wait until it is done, and start this one again; or "
            "choose another --out"
        ) from None


def write_plan(out: Path, study: Study, plans: Sequence[RunPlan]) -> None:
    """Write ``plan.json``: what the report needs to know of the study and its runs, those never started included."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"study": asdict(study), "runs": [asdict(plan) for plan in plans]}
    write_atomically(out / "plan.json", json.dumps(content, indent=1, default=str) + "\n")


def is_finished(folder: Path, plan: RunPlan) -> bool:
    """Whether a run is there, whole, and of this very configuration."""
    return _notes(folder).get("fingerprint") == plan.fingerprint and read_run(folder).status == "finished"


def _notes(folder: Path) -> dict[str, Any]:
    try:
        notes = json.loads((folder / "attempt.json").read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and TERM wait for a moment: a run that is started but not yet known could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    # Handlers, and not a mask: children would inherit the mask, and never hear of the end.
    before = {
        number: signal.signal(number, lambda got, _: received.append(got)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if received:
        signal.raise_signal(received[0])
