"""Runs of programs/resume.py: alone, where they may end their processes; otherwise many in one start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from launched import Finished, Launch

RANKS = 4  # 2 data centers x 2


def train(
    launch: Launch,
    run: Path,
    rounds: int,
    timeout: float = 120,
    during: Callable | None = None,
    ranks: int = RANKS,
    **case,
) -> Finished:
    """One run, in a start of its own."""
    cases = [{"run": str(run), "rounds": rounds} | case]
    return launch(ranks, "resume.py", json.dumps(cases), timeout=timeout, during=during)


def together(launch: Launch, folder: Path, cases: dict[str, dict]) -> dict[str, Finished]:
    """Runs that end in order, one after the other in the same processes: starting ranks costs more than training them.

    Args:
        folder: for what the runs say.
        cases: of each its run folder, rounds and settings. Nobody may end the processes: the cases after that fail too.
    """
    into = {name: folder / f"said-{number}" for number, name in enumerate(cases)}
    given = [{**case, "run": str(case["run"]), "into": str(into[name])} for name, case in cases.items()]
    done = launch(RANKS, "resume.py", json.dumps(given), timeout=480)
    found = {}
    for name in cases:
        out, err = (sorted(into[name].glob(f"*.{kind}")) for kind in ("out", "err"))
        said = ["".join(path.read_text() for path in paths) for paths in (out, err)]
        if len(out) < RANKS:
            found[name] = Finished(done.code or 1, said[0], said[1] + done.err, done.orphans)
        else:
            found[name] = Finished(0, *said, done.orphans)
    return found


def digests(done: Finished) -> list[str]:
    return sorted(line for line in done.ok().splitlines() if line.startswith("rank "))


def one_model(done: Finished) -> bool:
    """Whether all ranks stand at one place in the run, with one shared model."""
    told = {line.split(maxsplit=2)[2] for line in digests(done) if " shared " in line or " place " in line}
    return len(told) == 2
