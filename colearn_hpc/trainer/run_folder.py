"""The files of a run folder that users and tools read.

    RUN/rounds.jsonl          one line per round, see :class:`~colearn_hpc.protocol.reports.RoundReport`
    RUN/shared.ckpt           the shared model, an ordinary Lightning checkpoint
    RUN/summary.json          how the run stands or ended
    RUN/centers/NAME/log.txt  what data center NAME had to say
    RUN/centers/NAME/own.ckpt the shared model with the data center's own layers, where there are `local_layers`
    RUN/centers/NAME/status.json  what it is doing, for `colearn-hpc watch` (see heartbeat.py)
    RUN/centers/NAME/resume-*.ckpt  its resume points (see epoch_end.py)

All but the log are replaced whole, so a reader never sees half a record.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from colearn_hpc.join import DataCenter
from colearn_hpc.protocol.reports import RoundReport
from colearn_hpc.protocol.run import RunState

log = logging.getLogger("colearn_hpc")


class RunFolder:
    """Writes a run folder. Only the presiding leader writes the run's files; each leader its own center's log.

    Args:
        folder: of the run.
        center: the data center's name.
        writes_run: whether this rank presides.
        writes_center: whether this rank leads its data center.

    Attributes:
        folder, center_folder: where the run's and the data center's files lie.
        writes_shared: whether this data center writes the shared model.
        last: the last line that was written.
    """

    def __init__(self, folder: Path, center: str, writes_run: bool, writes_center: bool) -> None:
        self.folder = folder
        self.center_folder = folder / "centers" / center
        self.writes_shared = False
        self.last: RoundReport | None = None
        self._writes_run = writes_run
        self._started = time.monotonic()
        self._model: dict[str, Any] = {}
        self._unwritten: list[str] = []
        if writes_run:
            folder.mkdir(parents=True, exist_ok=True)
        self._handler: logging.Handler | None = None
        if writes_center:
            self.center_folder.mkdir(parents=True, exist_ok=True)
            self._handler = logging.FileHandler(self.center_folder / "log.txt")
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(self._handler)
            if log.level == logging.NOTSET:
                log.setLevel(logging.INFO)
            if len(log.handlers) == 1 and not logging.getLogger().handlers:
                console = logging.StreamHandler()  # our own handler would otherwise silence warnings
                console.setLevel(logging.WARNING)
                console.setFormatter(logging.Formatter("colearn-hpc: %(message)s"))
                log.addHandler(console)

    def begin(self, module: nn.Module) -> None:
        """Training begins here; the summary's seconds count from now.

        Args:
            module: that is trained; the summary says how large it is.
        """
        self._started = time.monotonic()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._model = {
            "model": type(module).__name__,
            "parameters": sum(parameter.numel() for parameter in trained),
            "parameter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in trained),
        }

    def continues(self, before: RunFolder) -> None:
        """The data center begins again in place: the run goes on where ``before`` has left it."""
        self.writes_shared, self.last, self._started = before.writes_shared, before.last, before._started
        self._model = before._model
        self._unwritten = before._unwritten

    def append(self, record: RoundReport) -> None:
        """Add a round's line. Where the disk refuses, it is added with the next one."""
        self.last = record
        if not self._writes_run:
            return
        path = self.folder / "rounds.jsonl"
        self._unwritten.append(json.dumps(jsonable(asdict(record))) + "\n")
        try:
            # Whole and atomically: a line that a full disk cut in the middle would hide all after it.
            lines = [json.dumps(line) + "\n" for line in read_lines(path)] if path.exists() else []
            write_atomically(path, "".join(lines + self._unwritten))
            self._unwritten.clear()
        except OSError as error:
            log.warning("%s could not be written (%s); the line is kept for the next round", path, error)

    def rewind(self, rounds_done: int) -> None:
        """Drop the lines of rounds that a resumed run will do again."""
        path = self.folder / "rounds.jsonl"
        if self._writes_run and path.exists():
            kept = [line for line in read_lines(path) if line["round"] < rounds_done]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def summarize(self, state: RunState, center: DataCenter, **content: Any) -> None:
        """Replace ``summary.json``.

        Args:
            state: how far the run has come.
            center: this process's.
            content: ``status`` and what belongs to it.

        Raises:
            OSError: the disk refuses, and the run has finished: its result would be lost in silence.
        """
        if not self._writes_run:
            return
        content = (
            {
                "run_id": state.run_id,
                "centers": [one.name for one in center.topology.centers],
                "ranks": center.world_size,
                "rounds": state.rounds_done,
                "epochs": state.epochs_done,
                "relative_change": state.change,
                "seconds": round(time.monotonic() - self._started, 3),
                "shared_metrics": self.last.centers[0].shared_metrics if self.last else {},
            }
            | self._model
            | content
        )
        try:
            write_atomically(self.folder / "summary.json", json.dumps(jsonable(content), indent=2) + "\n")
        except OSError as error:
            if content.get("status") == "finished":
                raise
            log.warning("summary.json could not be written: %s", error)

    def close(self) -> None:
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
            self._handler = None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a ``rounds.jsonl``; a last line cut off by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: the file is old or new, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def jsonable(value: Any) -> Any:
    """The value with null for what JSON cannot say."""
    # JSON has no NaN and no infinity: null, so that every reader can read it.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value
