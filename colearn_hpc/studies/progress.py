"""Progress over the grid: a bar on a terminal, a line per finished run elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from colearn_hpc.studies.grid import RunPlan
from colearn_hpc.studies.run_folder import read_run
from colearn_hpc.studies.runner import Attempt, GridRunner

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
        self._terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=len(plans) * epochs, unit="epoch", dynamic_ncols=True, file=sys.stderr)
            if self._terminal
            else None
        )

    def tell(self, line: str) -> None:
        count = "" if self._bar is not None else f"[{self._runner.done()}/{len(self._plans)}] "
        tqdm.write(f"{count}{line}", file=sys.stderr)
        sys.stderr.flush()

    def tick(self, under_way: list[Attempt]) -> None:
        if self._bar is None or time.monotonic() - self._ticked < _INTERVAL:
            return
        self._ticked = time.monotonic()
        epochs = {attempt.plan.name: read_run(self._runner.folder(attempt.plan)).epochs for attempt in under_way}
        self._bar.n = self._runner.done() * self._epochs + sum(min(e, self._epochs) for e in epochs.values())
        self._bar.set_postfix_str(", ".join(f"{name} {e}" for name, e in epochs.items()))
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
