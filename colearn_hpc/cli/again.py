"""``colearn-hpc again CODE -- FIT...``: whether a batch job is to start its run again after this exit code.

For the scripts in slurm/: exit code 0 says yes. Yes after 85 (all data centers have written their resume points) and
after the death of a rank (86, 128 + signal, or what MPI makes of it), as long as the run gets on: after two starts in a
row without a new resume point the answer is no, with the reason. Otherwise a run that dies at the same place each time
would start for ever.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from colearn_hpc.cli import describe
from colearn_hpc.cli.launch import may_help, say
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.cli.run_folder import run_folder
from colearn_hpc.errors import RESUME_CODE

_MEMORY = "starts.json"  # in the run folder: the resume points after the last start, and how many starts added none
_STARTS = 2


def main(argv: Sequence[str]) -> int:
    """Run ``again``; returns 0 for yes, 1 for no."""
    parser = Parser(prog="colearn-hpc again", description=describe("again"))
    parser.add_argument("code", type=int, help="exit code of the run")
    parser.add_argument("fit", nargs=argparse.REMAINDER, help="-- the arguments of `fit`, which say where the run is")
    arguments = parser.parse_args(argv)
    folder = run_folder(arguments.fit[1:] if arguments.fit[:1] == ["--"] else arguments.fit)
    return 0 if start_again(folder, arguments.code) else 1


def start_again(folder: Path, code: int) -> bool:
    """Whether to start again. Remembers the answer's grounds in the run folder.

    Args:
        folder: of the run.
        code: of the start that has just ended.
    """
    memory = folder / _MEMORY
    if code != RESUME_CODE and not may_help(code):
        _forget(memory)
        return False
    points = sorted(str(path.relative_to(folder)) for path in folder.glob("centers/*/resume-*.ckpt"))
    before, idle = _read(memory)
    idle = idle + 1 if points == before else 0
    if idle >= _STARTS:
        _forget(memory)
        say(
            f"{folder}: {_STARTS} starts in a row wrote no new resume point (exit code {code}); there is no further "
            "start by itself. Look at the output above, mend the cause, and submit the job again"
        )
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps({"resume_points": points, "starts_without_a_new_one": idle}))
    except OSError as error:
        say(f"{memory} cannot be written ({error.strerror}); without it a run that stands still would start for ever")
        return False
    return True


def _forget(memory: Path) -> None:
    with suppress(OSError):
        memory.unlink(missing_ok=True)


def _read(memory: Path) -> tuple[list[str], int]:
    try:
        content = json.loads(memory.read_text())
        return content["resume_points"], int(content["starts_without_a_new_one"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], 0
