"""A study's runs as Slurm jobs, one each: submitted by ``sbatch``, followed by ``squeue``, ended by ``scancel``."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.grid import RunPlan
from colearn_hpc.studies.launchers import Launcher, Run

_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_OF_THE_SITE = ("SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
_PATIENCE = 90.0  # s for cancelled jobs to leave the queue: Slurm lets 30 s pass between TERM and KILL by default


class SubmissionError(ConfigurationError):
    """``sbatch`` did not take a job."""

    key = "slurm"


@dataclass
class Queue:
    """This user's jobs, ended ones included as long as Slurm remembers them. One ``squeue`` for all runs, and seldom:
    a login node is shared, and so is the controller.

    Args:
        interval: seconds between two looks.
        tell: called with a line for people.
    """

    interval: float = 5.0
    tell: Callable[[str], None] = print
    looks: int = 0
    jobs: dict[str, tuple[str, int]] = field(default_factory=dict)  # id -> state, exit code
    error: str = ""  # why the last look failed
    _last: float = -math.inf

    def look(self, now: bool = False) -> None:
        """Ask again, unless that was done a moment ago. A controller that does not answer leaves all as it was."""
        if not now and time.monotonic() - self._last < self.interval:
            return
        form = "JobID:32,State:32,exit_code:32"
        done = _slurm("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "-O", form)
        self._last = time.monotonic()
        if done.returncode and not self.error:
            self.tell(f"squeue does not answer ({' '.join(done.stderr.split())}); jobs go on, and I ask again")
        self.error = done.stderr.strip() or "no word of why" if done.returncode else ""
        if not done.returncode:
            self.looks += 1
            rows = [(*line.split(), "", "")[:3] for line in done.stdout.splitlines() if line.strip()]
            self.jobs = {job: (state, _exit_code(code)) for job, state, code in rows}

    def has(self, job: str) -> bool:
        """Whether a job waits or runs, as of the last look."""
        return self.jobs.get(job, ("COMPLETED", 0))[0] not in _ENDED


@dataclass
class SlurmJob:
    """A run as a job.

    Args:
        id: Slurm's.
        queue: where it stands.
        seen: looks that were taken before it was submitted.
    """

    id: str
    queue: Queue
    seen: int
    state: str = ""
    code: int = 0
    gone: int = 0  # looks in a row that showed no such job, or an ended one

    def poll(self) -> int | None:
        self.queue.look()
        if self.queue.looks > self.seen:
            self.seen = self.queue.looks
            # Ended and purged: the state and code of an earlier look, else what the run folder says.
            if self.id in self.queue.jobs:
                self.state, self.code = self.queue.jobs[self.id]
            ended = not self.queue.has(self.id)
            self.gone = self.gone + 1 if ended else 0
        # Twice: a job that Slurm requeues has ended for a moment.
        return self.code if self.gone >= 2 else None

    def said(self) -> str:
        return f"Slurm job {self.id} ended as {self.state or 'unknown'}"


class SlurmLauncher(Launcher):
    """One job per run, from a script like ``slurm/colearn.sbatch``, which is handed the arguments of ``fit``.

    Args:
        script: the user's copy of that script: partition, GPUs, time limit, modules, launcher.
        options: more of ``sbatch``, for all jobs; they win over the script's and over ours.
        ranks_per_node: None puts a run's ranks on one node.
        threads: per rank; None leaves it to the script.
        interval: seconds between two looks at the queue.

    Raises:
        ConfigurationError: no script there, or no Slurm.
    """

    def __init__(
        self,
        script: Path,
        options: Sequence[str] = (),
        ranks_per_node: int | None = None,
        threads: int | None = None,
        interval: float = 5.0,
    ) -> None:
        if not script.is_file():
            raise ConfigurationError(
                f"--script {script}: there is no such file; copy the repository's slurm/colearn.sbatch, edit "
                "the block at its top, and name it"
            )
        for tool in ("sbatch", "squeue", "scancel"):
            if shutil.which(tool) is None:
                raise ConfigurationError(
                    f"--launcher slurm: {tool} is not on PATH; run this on a login node, or take --launcher mpirun"
                )
        if ranks_per_node is not None and ranks_per_node < 1:
            raise ConfigurationError(f"--ranks-per-node must be at least 1, found {ranks_per_node}")
        self.script, self.options, self.ranks_per_node, self.threads = script, list(options), ranks_per_node, threads
        self.queue = Queue(interval, lambda line: self.tell(line))

    def command(self, plan: RunPlan, fit: Sequence[str], folder: Path) -> list[str]:
        """The submission.

        Raises:
            ConfigurationError: the run's ranks do not fill whole nodes.
        """
        per_node = min(self.ranks_per_node or plan.ranks, plan.ranks)
        if plan.ranks % per_node:
            raise ConfigurationError(
                f"--ranks-per-node {self.ranks_per_node}: run {plan.name} has {plan.ranks} ranks, which do not fill "
                "whole nodes; give a divisor"
            )
        size = [f"--nodes={plan.ranks // per_node}", f"--ntasks-per-node={per_node}"]
        if self.threads:
            size.append(f"--cpus-per-task={self.threads}")
        output = str(folder / "output.txt").replace("%", "%%")  # Slurm's patterns begin with it
        options = [f"--job-name={plan.name}", *size, "--open-mode=append", f"--output={output}", *self.options]
        # The script says `fit` and `--resume` itself: a job that Slurm starts again must resume.
        words = [word for word in fit[1:] if word != "--resume"]
        return ["sbatch", "--parsable", *options, str(self.script), *words]

    def jobs(self, plans: Sequence[RunPlan]) -> int:
        return max(1, len(plans))  # waiting is what a queue is for

    def start(self, plan: RunPlan, fit: Sequence[str], folder: Path) -> SlurmJob:
        """Submit.

        Raises:
            SubmissionError: sbatch said no.
        """
        # Where the study says how many, the login shell's number must not count: sums in another order are other bits.
        threads = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        done = _slurm(*self.command(plan, fit, folder), **threads)
        job = done.stdout.strip().split(";")[0]
        if done.returncode or not job.isdigit():
            said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
            raise SubmissionError(
                f"sbatch did not take it: {said}; correct {self.script} or --sbatch-options, or give a --jobs that "
                "your limits allow"
            )
        self.tell(f"{plan.name}: Slurm job {job}")
        return SlurmJob(job, self.queue, self.queue.looks)

    def find(self, identity: str) -> SlurmJob | None:
        if not self.queue.looks:
            self.queue.look(now=True)
            if self.queue.error:
                # Without an answer a second job might go into a run folder that the first one is still writing.
                raise ConfigurationError(f"squeue does not answer: {self.queue.error}; try again when Slurm is back")
        return SlurmJob(identity, self.queue, self.queue.looks) if self.queue.has(identity) else None

    def end(self, runs: Sequence[Run]) -> None:
        names = [run.id for run in runs]
        if not names:
            return
        self.tell(f"cancelling in Slurm: {' '.join(names)}")
        done = _slurm("scancel", *names)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            self.queue.look(now=True)
            if not self.queue.error and not any(map(self.queue.has, names)):
                return
            time.sleep(min(1.0, self.queue.interval))
        left = " ".join(filter(self.queue.has, names))
        self.tell(f"still in the queue: {left} {done.stderr.strip()}; end them by: scancel {left}")


def _slurm(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's, out of reach of the terminal's Ctrl-C: an answer lost is a job that nobody ends."""
    # A study that runs inside a job would hand that job's sizes on to those it submits.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in _OF_THE_SITE}
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, start_new_session=True)


def _exit_code(text: str) -> int:
    """``squeue`` writes a wait status; ``scontrol`` and some versions ``code:signal``."""
    code, _, number = text.partition(":")
    if number:
        return int(code) or (128 + int(number) if int(number) else 0)
    return os.waitstatus_to_exitcode(int(code)) if code.isdigit() else 0
