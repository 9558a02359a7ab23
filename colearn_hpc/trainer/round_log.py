"""What a round cost and did: the files of a run folder that users and tools read.

    RUN/rounds.jsonl          one line per round, see :class:`RoundRecord`
    RUN/shared.ckpt           the shared model, an ordinary Lightning checkpoint
    RUN/summary.json          how the run stands or ended
    RUN/centers/NAME/log.txt  what data center NAME had to say
    RUN/centers/NAME/status.json  what it is doing, for `colearn-hpc watch` (see heartbeat.py)
    RUN/centers/NAME/resume-*.ckpt  its resume points (see recovery.py)

Files are replaced whole or appended by line, so a reader never sees half a record.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

log = logging.getLogger("colearn_hpc")


@dataclass
class CenterRecord:
    """One data center's part in a round.

    Attributes:
        name: the data center's.
        examples: training examples it went through in the round, over all its ranks and local epochs.
        train_seconds, wait_seconds, exchange_seconds: local training (validation left out), waiting for the
            others, and averaging.
        bytes_sent: payload sent to other data centers for the mean.
        divergence: ‖w_k - w̄‖ / ‖w̄‖, with the mean of eq. 2 as w̄; NaN for who gave nothing to it.
        local_metrics: metrics of the data center's own model, from its last local epoch.
        shared_metrics: metrics of the shared model, from this data center's validation after averaging.
        absent: why it gave nothing to the round's mean, empty if it did.
    """

    name: str
    examples: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    exchange_seconds: float = 0.0
    bytes_sent: int = 0
    divergence: float = 0.0
    local_metrics: dict[str, float] = field(default_factory=dict)
    shared_metrics: dict[str, float] = field(default_factory=dict)
    absent: str = ""


@dataclass
class RoundRecord:
    """A line of ``rounds.jsonl``.

    Attributes:
        round: i, from 0.
        local_epochs: T_i, as trained.
        learning_rates: rate of each local epoch (first parameter group).
        relative_change: of eq. 4; null if infinite.
        epochs_done: local epochs finished since the start of the run.
        next_local_epochs: T_{i+1} as decided.
        centers: one :class:`CenterRecord` each.
    """

    round: int
    local_epochs: int
    learning_rates: list[float]
    relative_change: float
    epochs_done: int
    next_local_epochs: int
    centers: list[CenterRecord] = field(default_factory=list)


class RoundLog:
    """Writes a run folder. Only the first leader writes the run's files; each leader its own center's log."""

    def __init__(self, folder: Path, center: str, writes_run: bool, writes_center: bool) -> None:
        self.folder = folder
        self.center_folder = folder / "centers" / center
        self._writes_run = writes_run
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

    def append(self, record: RoundRecord) -> None:
        """Add a round's line. Where the disk refuses, it is added with the next one."""
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

    def summarize(self, **content: Any) -> None:
        """Replace ``summary.json``.

        Raises:
            OSError: the disk refuses, and the run has finished: its result would be lost in silence.
        """
        if not self._writes_run:
            return
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


def summary_of(colearning: CoLearning) -> dict[str, Any]:
    """What ``summary.json`` says of a run, as far as it has come."""
    last = getattr(colearning, "last_record", None)
    return {
        "run_id": colearning.run_id,
        "centers": [center.name for center in colearning.center.topology.centers],
        "ranks": colearning.center.world_size,
        "rounds": colearning.rounds_done,
        "epochs": colearning.epochs_done,
        "relative_change": colearning.relative_change,
        "seconds": round(time.monotonic() - colearning.started, 3),
        "shared_metrics": last.centers[0].shared_metrics if last else {},
    }


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
