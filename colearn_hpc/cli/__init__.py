"""The ``colearn-hpc`` command: one file per group of subcommands, imported when it is called.

This room wires all others together; nobody imports it.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress

from colearn_hpc._quick_imports import import_quickly
from colearn_hpc._version import __version__
from colearn_hpc.errors import ColearnError

# command -> (module with a main(argv), what it does)
COMMANDS = {
    "fit": ("fit", "co-train one model over all data centers; start it with mpirun, srun or `launch`"),
    "validate": ("evaluate", "evaluate the shared model of a run folder on the validation data"),
    "test": ("evaluate", "evaluate the shared model of a run folder on the test data"),
    "predict": (
        "evaluate",
        "run the shared model of a run folder over the test data, and write what it says to a file",
    ),
    "export": ("export", "write the shared model of a run folder as an ordinary file (.ckpt, .safetensors)"),
    "launch": ("launch", "find mpirun and start a command on all ranks of one machine"),
    "data": ("data", "prepare one data file per data center, and check them"),
    "study": ("study", "run a comparison of methods (a grid of runs) and write its report"),
    "doctor": ("doctor", "check ranks, hosts, GPUs, links and disks before a run; alone or under mpirun, srun"),
    "watch": ("watch", "show how a run stands, from its run folder"),
    "report": ("report", "write the report of one run folder"),
    "configs": ("configs", "list the configuration files that come with this package, and copy them"),
    "slurm": ("slurm", "list the scripts for batch systems that come with this package, and copy them"),
    "explain": ("explain", "say more about an error, by the key at its end, or about an exit code"),
    "completion": ("completion", "print what lets bash or zsh complete commands and options"),
    "again": ("again", "for batch scripts: whether to start a run again after this exit code"),
    "stop": ("federation_watch", "ask all sites of a federation to stop"),
    "serve": ("serve", "the coordinator of a federation: for sites that share no MPI world"),
    "verify": ("verify", "check which members, settings and data made a run's shared model"),
    "federation": ("federation", "who takes part in a run over sites without a common MPI world: keys and roster"),
    "privacy": ("privacy", "plan the noise of differentially private training"),
}

_READER_LEFT = 141  # as a shell counts SIGPIPE; no 0, for what was cut off is not done
LIGHTNING = ("fit", "evaluate")  # modules whose commands are subcommands of a LightningCLI; `fit_help` has their pages

_HELP = """usage: colearn-hpc COMMAND ...

Co-learning: one model over several data centers, with PyTorch Lightning and MPI.

commands:
{commands}

`colearn-hpc COMMAND --help` tells the rest. A first run:

  colearn-hpc configs copy quickstart
  colearn-hpc data digits --out data/digits --centers 5
  colearn-hpc launch --centers 5 -- fit --config configs/quickstart.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage or configuration, 85 resume me, 141 who
    read its output has left (``| head``)."""
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as stop:
            if not stop.code:  # after a page of help; other codes say more than that nobody reads
                sys.stdout.flush()
            raise
        if code == 0:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_has_left():  # some other connection
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
        return _READER_LEFT


def _reader_has_left() -> bool:
    with suppress(OSError, ValueError):  # no file, or closed
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    return False


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(_HELP.format(commands="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())))
        return 0 if arguments else 2
    if command == "--version":
        print(f"colearn-hpc {__version__}")
        return 0
    if command not in COMMANDS:
        hint = importlib.import_module("colearn_hpc.cli.parsing").nearest(command, COMMANDS)
        says = hint or f"there are {', '.join(COMMANDS)}"
        print(f"colearn-hpc: error: no command {command!r}; {says}", file=sys.stderr)
        return 2
    lightning = COMMANDS[command][0] in LIGHTNING
    if lightning and _helped(command, arguments[1:]):
        return 0
    if command == "fit":
        # Before the heavy imports: a warning of the batch system that finds no handler kills.
        importlib.import_module("colearn_hpc.trainer.signals").listen()
    if lightning:
        import_quickly()  # before Lightning does: with a torchvision that does not load, and without what no run needs
        importlib.import_module("colearn_hpc.cli.lightning_name").settle(arguments)
    try:
        module = importlib.import_module(f"colearn_hpc.cli.{COMMANDS[command][0]}")
    except ColearnError as error:  # an extra that is not installed
        print(f"colearn-hpc: error: {error}", file=sys.stderr)
        return 2
    # These are subcommands of a LightningCLI, which wants to see their name.
    return int(module.main(arguments if lightning else arguments[1:]))


def describe(command: str) -> str:
    """What a command does, as a sentence."""
    text = COMMANDS[command][1]
    return f"{text[0].upper()}{text[1:]}."


def _helped(command: str, argv: Sequence[str]) -> bool:
    """Whether help was asked for, which is printed then. Every rank may be asked; the first one answers."""
    if not (page := importlib.import_module("colearn_hpc.cli.fit_help").asked(command, argv)):
        return False
    from colearn_hpc.mpi.startup import launched_as

    if launched_as()[0] == 0:
        print(page(), flush=True)
    return True
