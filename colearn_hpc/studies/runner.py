"""Runs a study's grid: several runs at once, finished ones skipped, failed ones tried once more.

OUT/study.yaml            the study file, as given
OUT/plan.json             the study and its grid: which run folder is which arm, model, data set and seed
OUT/runs/NAME/            a run folder, as `fit` writes it, and beside its files
    settings.yaml           the configuration it was started with
    attempt.json            fingerprint of that configuration, and how each attempt ended
    output.txt              what it printed
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.grid import RunPlan
from colearn_hpc.studies.launchers import Launcher
from colearn_hpc.studies.run_folder import last_error, read_run
from colearn_hpc.studies.study_file import Study

ATTEMPTS = 2
_PATIENCE = 20.0  # s that a run is given to end after SIGTERM


@dataclass
class Attempt:
    """One run under way."""

    plan: RunPlan
    number: int
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)


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
        for plan in plans:
            if is_finished(self.folder(plan), plan):
                self.outcome.skipped.append(plan.name)
            else:
                waiting.append((plan, 1))
        if self.outcome.skipped:
            self.tell(f"{len(self.outcome.skipped)} of {len(plans)} runs are finished already")
        under_way: list[Attempt] = []
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self.jobs:
                    under_way.append(self._start(*waiting.popleft()))
                time.sleep(0.5)
                for attempt in [a for a in under_way if a.process.poll() is not None]:
                    under_way.remove(attempt)
                    if self._ended(attempt) and attempt.number < ATTEMPTS:
                        waiting.append((attempt.plan, attempt.number + 1))
                if self.tick is not None:
                    self.tick(under_way)
        except BaseException:
            _end(under_way)
            raise
        return self.outcome

    def folder(self, plan: RunPlan) -> Path:
        return self.out / "runs" / plan.name

    def _start(self, plan: RunPlan, number: int) -> Attempt:
        folder = self.folder(plan)
        folder.mkdir(parents=True, exist_ok=True)
        same = _notes(folder).get("fingerprint") == plan.fingerprint
        if not same:
            _write(folder / "attempt.json", json.dumps({"fingerprint": plan.fingerprint, "attempts": []}, indent=1))
        _write(folder / "settings.yaml", yaml.safe_dump(plan.settings, sort_keys=False, allow_unicode=True))
        fit = ["fit", "--config", str(folder / "settings.yaml"), "--name", plan.name, "--runs", str(folder.parent)]
        # Spelled out, because `launch` would otherwise add the number of groups of ranks that it starts.
        fit += ["--centers", json.dumps(plan.settings["centers"])]
        fit += ["--resume" if same else "--overwrite"]
        command = self.launcher.command(plan, fit)
        with (folder / "output.txt").open("ab") as output:
            output.write(f"--- attempt {number}: {' '.join(command)}\n".encode())
            output.flush()
            # A session of its own: Ctrl-C reaches us alone, and we end the runs in order.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Attempt(plan, number, process)

    def _ended(self, attempt: Attempt) -> bool:
        """Note how an attempt ended; True if it failed."""
        plan, code = attempt.plan, attempt.process.returncode
        folder, seconds = self.folder(plan), time.monotonic() - attempt.started
        notes = _notes(folder)
        notes.setdefault("attempts", []).append({"exit_code": code, "seconds": round(seconds, 1)})
        _write(folder / "attempt.json", json.dumps(notes, indent=1))
        run = read_run(folder)
        if code == 0 and run.status == "finished":
            self.outcome.finished.append(plan.name)
            self.tell(f"{plan.name}: finished in {seconds:.0f} s")
            return False
        reason = last_error(folder / "output.txt") or f"exit code {code}, and no word in output.txt"
        again = attempt.number < ATTEMPTS
        if not again:
            self.outcome.failed[plan.name] = reason
        self.tell(f"{plan.name}: FAILED ({reason}); {'trying once more' if again else 'given up'}")
        return True

    def done(self) -> int:
        """Runs that are finished or given up."""
        return len(self.outcome.skipped) + len(self.outcome.finished) + len(self.outcome.failed)


def write_plan(out: Path, study: Study, plans: Sequence[RunPlan]) -> None:
    """Write ``plan.json``: what the report needs to know of the study and its runs, those never started included."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"study": asdict(study), "runs": [asdict(plan) for plan in plans]}
    _write(out / "plan.json", json.dumps(content, indent=1, default=str) + "\n")


def is_finished(folder: Path, plan: RunPlan) -> bool:
    """Whether a run is there, whole, and of this very configuration."""
    return _notes(folder).get("fingerprint") == plan.fingerprint and read_run(folder).status == "finished"


def _notes(folder: Path) -> dict[str, Any]:
    try:
        notes = json.loads((folder / "attempt.json").read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _end(attempts: Sequence[Attempt]) -> None:
    """Ask every run to end, then make it: no rank may outlive the study."""
    for attempt in attempts:
        if attempt.process.poll() is None:
            attempt.process.send_signal(signal.SIGTERM)  # `launch` passes it on
    deadline = time.monotonic() + _PATIENCE
    for attempt in attempts:
        try:
            attempt.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(attempt.process.pid, signal.SIGKILL)
            attempt.process.wait()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
