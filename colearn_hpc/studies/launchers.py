"""How a run of a study is started and ended: a seam, one class per way. On Slurm: slurm_launcher.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from colearn_hpc.studies.grid import RunPlan

_PATIENCE = 20.0  # s that a run is given to end after SIGTERM


class Run(Protocol):
    """A run under way.

    Attributes:
        id: by which a later study finds it again; empty where a run cannot outlive its study.
    """

    id: str

    def poll(self) -> int | None:
        """The exit code, or None before the end."""

    def said(self) -> str:
        """How it ended, where more is known than an exit code."""


class Launcher(ABC):
    """Starts runs, and ends them.

    Attributes:
        tell: called with a line for people; the runner sets it.
    """

    tell: Callable[[str], None] = staticmethod(print)

    @abstractmethod
    def command(self, plan: RunPlan, fit: Sequence[str], folder: Path) -> list[str]:
        """The command line that starts ``fit`` (arguments after ``colearn-hpc``) on the plan's ranks.

        Args:
            plan: the run.
            fit: what its ranks run.
            folder: the run's.
        """

    @abstractmethod
    def jobs(self, plans: Sequence[RunPlan]) -> int:
        """How many of these runs may go at once where the user does not say."""

    @abstractmethod
    def start(self, plan: RunPlan, fit: Sequence[str], folder: Path) -> Run:
        """Start a run; what it prints is appended to ``output.txt`` in ``folder``."""

    def find(self, identity: str) -> Run | None:
        """The run of that id, if an earlier study has left it under way."""
        return None

    @abstractmethod
    def end(self, runs: Sequence[Run]) -> None:
        """End runs, and return when they have ended: no rank may outlive the study."""


class Process:
    """A run as a process of this machine."""

    id = ""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        with output.open("ab") as file:
            # A session of its own: Ctrl-C reaches us alone, and we end the runs in order.
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def poll(self) -> int | None:
        return self.popen.poll()

    def said(self) -> str:
        return ""


class ProcessLauncher(Launcher):
    """Runs as processes of this machine."""

    def start(self, plan: RunPlan, fit: Sequence[str], folder: Path) -> Process:
        return Process(self.command(plan, fit, folder), folder / "output.txt")

    def end(self, runs: Sequence[Run]) -> None:
        processes = [run.popen for run in runs if isinstance(run, Process)]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # `launch` passes it on
        deadline = time.monotonic() + _PATIENCE
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class MpirunLauncher(ProcessLauncher):
    """Ranks on this machine, through ``colearn-hpc launch``.

    Args:
        threads: per rank. The same for all runs of a study: sums in another order are other bits.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def command(self, plan: RunPlan, fit: Sequence[str], folder: Path) -> list[str]:
        size = ["--centers", str(plan.centers), "--ranks-per-center", str(plan.ranks_per_center)]
        launch = [sys.executable, "-m", "colearn_hpc", "launch", *size, "--threads", str(self.threads)]
        return [*launch, "--", *fit]

    def jobs(self, plans: Sequence[RunPlan]) -> int:
        return max(1, cores() // (widest(plans) * self.threads))


def make_mpirun_launcher(plans: Sequence[RunPlan], threads: int | None, jobs: int | None) -> MpirunLauncher:
    """With as many threads a rank as the cores allow, where the study does not say."""
    return MpirunLauncher(threads or max(1, cores() // (widest(plans) * (jobs or 1))))


def cores() -> int:
    """Cores that this process may use (a container or a batch job may have been given fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def widest(plans: Sequence[RunPlan]) -> int:
    """Ranks of the largest run."""
    return max((plan.ranks for plan in plans), default=1)
