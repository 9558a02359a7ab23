"""Stand-ins for a batch system and MPI: scripts run as they are, and no cluster is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from slurm_cluster import REPOSITORY


class Job:
    """A script under bash with stand-ins on PATH, which write down how they are called.

    Args:
        folder: to run in.
        script: to run.
        environment: Slurm's.
        step: shell, in place of the ranks.
        scontrol: its exit code.
        nodes: exit code of asking all nodes whether they answer.
        here: exit code of asking this one.
        state: what squeue says of the job.
    """

    def __init__(
        self,
        folder: Path,
        script: Path,
        environment: dict,
        step: str = "exit 0",
        scontrol=0,
        nodes=0,
        here=0,
        state="RUNNING None",
    ):
        self.folder = folder
        self.calls = folder / "calls"
        tools = folder / "bin"
        tools.mkdir()
        note = 'echo "$(basename "$0") $*" >>"$CALLS"'
        bodies = {
            "python": f'[ "$3" != again ] || exec {sys.executable} "$@"\n{step}',
            "srun": f"[[ $* != *--overlap* ]] || {{ [[ $* != *--nodelist* ]] || exit {here}; exit {nodes}; }}\n{step}",
            "mpirun": f'[ "$1" = --version ] && {{ echo "mpirun (Open MPI) 5.0"; exit; }}; {note}; {step}',
            "qsub": "",
            "flux": f'[ "$1" = --parent ] || {{ {step}\n}}',
            "scontrol": f"exit {scontrol}",
            "squeue": f"echo '{state}'",
            "sbatch": 'n=$(wc -l <"$CALLS"); echo "$((100 + n));mini"',
        }
        for name, body in bodies.items():
            (tools / name).write_text(f"#!/bin/bash\n{note if name != 'mpirun' else ''}\n{body}\n")
            (tools / name).chmod(0o755)
        kept = {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(self.calls), "PYTHONPATH": str(REPOSITORY)}
        self.command, self.environment = ["bash", str(script)], kept | environment

    def run(self, *arguments: str) -> int:
        return subprocess.run([*self.command, *arguments], env=self.environment, cwd=self.folder, timeout=60).returncode

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.command, env=self.environment, cwd=self.folder)

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    @property
    def requeued(self) -> bool:
        return any(call.startswith("scontrol requeue") for call in self.called)
