"""How a run of a study is started: a seam, one small class per way."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Protocol

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.grid import RunPlan


class Launcher(Protocol):
    """Turns a run into a command that ends when the run ends, with its exit code.

    A batch system fits in by a command that submits and waits (``sbatch --wait``).
    """

    def command(self, plan: RunPlan, fit: Sequence[str]) -> list[str]:
        """The command line that runs ``fit`` (arguments after ``colearn-hpc``) on the plan's ranks."""

    def jobs(self, plans: Sequence[RunPlan]) -> int:
        """How many of these runs may go at once where the user does not say."""


class MpirunLauncher:
    """Ranks on this machine, through ``colearn-hpc launch``.

    Args:
        threads: per rank. The same for all runs of a study: sums in another order are other bits.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def command(self, plan: RunPlan, fit: Sequence[str]) -> list[str]:
        size = ["--centers", str(plan.centers), "--ranks-per-center", str(plan.ranks_per_center)]
        launch = [sys.executable, "-m", "colearn_hpc", "launch", *size, "--threads", str(self.threads)]
        return [*launch, "--", *fit]

    def jobs(self, plans: Sequence[RunPlan]) -> int:
        widest = max((plan.ranks for plan in plans), default=1)
        return max(1, cores() // (widest * self.threads))


def cores() -> int:
    """Cores that this process may use (a container or a batch job may have been given fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_launcher(name: str, plans: Sequence[RunPlan], threads: int | None, jobs: int | None) -> Launcher:
    """The launcher of a name.

    Raises:
        ConfigurationError: no launcher has that name.
    """
    if name != "mpirun":
        raise ConfigurationError(
            f"--launcher {name}: there is only mpirun so far; on Slurm a grid is a job array: sbatch slurm/study.sbatch"
        )
    widest = max((plan.ranks for plan in plans), default=1)
    return MpirunLauncher(threads or max(1, cores() // (widest * (jobs or 1))))
