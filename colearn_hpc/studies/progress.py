"""Progress over the grid and over the report's runs: a bar on a terminal, and lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.text import Text

from colearn_hpc.studies.grid import RunPlan
from colearn_hpc.studies.run_folder import read_run
from colearn_hpc.studies.runner import Attempt, GridRunner
from colearn_hpc.studies.words import printable

Item = TypeVar("Item")

_INTERVAL = 2.0  # s: a look reads a file of every run under way, and on Slurm there may be a hundred


class GridProgress:
    """Counts local epochs over all runs, so that the time left is an honest guess from the first run on.

    Args:
        runner: what is watched; its ``tell`` and ``tick`` become this object's.
        plans: the grid.
        epochs: of each run.
    """

    def __init__(self, runner: GridRunner, plans: Sequence[RunPlan], epochs: int) -> None:
        self._runner, self._plans, self._epochs = runner, plans, epochs
        runner.tell, runner.tick = self.tell, self.tick
        self._ticked = 0.0
        # Outside a terminal a line is as long as it is: somebody will search the log for it.
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn(), TimeRemainingColumn())
        now = TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, now, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=len(plans) * epochs)
        self._bar.start()

    def tell(self, line: str) -> None:
        count = "" if self._console.is_terminal else f"[{self._runner.done()}/{len(self._plans)}] "
        self._console.print(Text(f"{count}{printable(line)}"))

    def tick(self, under_way: list[Attempt]) -> None:
        if not self._console.is_terminal or time.monotonic() - self._ticked < _INTERVAL:
            return
        self._ticked = time.monotonic()
        epochs = {attempt.plan.name: read_run(self._runner.folder(attempt.plan)).epochs for attempt in under_way}
        done = self._runner.done() * self._epochs + sum(min(e, self._epochs) for e in epochs.values())
        names = ", ".join(f"{name} {e}" for name, e in epochs.items())
        self._bar.update(self._task, completed=done, description=names)

    def close(self) -> None:
        self._bar.stop()


def drawing(runs: Sequence[Item]) -> Iterator[Item]:
    """The runs of a report, one after the other: the pictures of each take a second or more."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    what = f"report: drawing {len(runs)} runs"
    if not console.is_terminal:
        console.print(Text(what))
    yield from track(runs, what, console=console, transient=True, disable=not console.is_terminal)
