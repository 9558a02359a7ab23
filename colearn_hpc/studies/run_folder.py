"""A run folder as a reader finds it: whole, half-written, damaged or absent. Reading never fails; it notes problems."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from colearn_hpc.studies.settings import lookup

_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)\b")  # the last line of a traceback


@dataclass
class RunFolder:
    """What a run left.

    Attributes:
        path: the folder.
        rounds: the records of ``rounds.jsonl`` (see trainer/round_log.py), up to the first damaged line.
        summary: of ``summary.json``; empty if there is none.
        config: of ``config.yaml``; empty if there is none.
        status: ``finished``, ``failed``, ``running`` (or killed), or ``missing``.
        problems: what could not be read, for people.
    """

    path: Path
    rounds: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "missing"
    problems: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Local epochs done."""
        return int(self.rounds[-1]["epochs_done"]) if self.rounds else 0

    @property
    def method(self) -> str:
        return str(self.config.get("method", "colearning"))

    @property
    def center_names(self) -> list[str]:
        return [center["name"] for center in self.rounds[0]["centers"]] if self.rounds else []

    @property
    def samples(self) -> int:
        """Training examples that all data centers together went through."""
        return sum(center.get("examples", 0) for line in self.rounds for center in line["centers"])

    @property
    def bytes_sent(self) -> int:
        return sum(center.get("bytes_sent", 0) for line in self.rounds for center in line["centers"])

    @property
    def batch(self) -> int | None:
        """Examples per optimizer step of a data center, if the configuration says."""
        size, ranks = lookup(self.config, "data.init_args.batch_size"), self.summary.get("ranks")
        if not isinstance(size, int) or not isinstance(ranks, int) or not self.center_names:
            return None
        return size * ranks // len(self.center_names)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(epochs done, shared model's metric) at each round's end that has it."""
        found = []
        for line in self.rounds:
            value = line["centers"][0].get("shared_metrics", {}).get(metric)
            if isinstance(value, int | float):
                found.append((int(line["epochs_done"]), float(value)))
        return found

    def final(self, metric: str) -> float:
        """The metric after the last round; NaN without one."""
        curve = self.curve(metric)
        return curve[-1][1] if curve else math.nan

    def doublings(self) -> list[int]:
        """Epochs after which T grew."""
        grown = []
        for line, after in zip(self.rounds, self.rounds[1:], strict=False):
            if line["next_local_epochs"] > line["local_epochs"] and after["local_epochs"] > line["local_epochs"]:
                grown.append(int(line["epochs_done"]))
        return grown

    def members(self, metric: str) -> dict[str, float]:
        """Each data center's own final metric, where it validated its local model (ensemble members)."""
        last = self.rounds[-1]["centers"] if self.rounds else []
        local = {c["name"]: c.get("local_metrics", {}).get(metric) for c in last}
        return {name: float(value) for name, value in local.items() if isinstance(value, int | float)}


def read_run(path: Path) -> RunFolder:
    """Read what there is."""
    run = RunFolder(path)
    if not path.is_dir():
        run.problems.append("there is no such run folder")
        return run
    run.summary = _read(path / "summary.json", json.loads, run.problems)
    run.config = _read(path / "config.yaml", yaml.safe_load, run.problems)
    run.rounds = _rounds(path / "rounds.jsonl", run.problems)
    run.status = str(run.summary.get("status", "running" if run.rounds or run.config else "missing"))
    if run.status != "finished" and (reason := run.summary.get("error") or last_error(path / "output.txt")):
        run.problems.insert(0, str(reason))
    return run


def forget(path: Path) -> None:
    """Remove what a run would be continued from, as ``fit --overwrite`` does: its configuration has changed."""
    old = [*path.glob("centers/*/resume-*.ckpt"), *(path / n for n in ("rounds.jsonl", "summary.json", "shared.ckpt"))]
    for file in old:
        file.unlink(missing_ok=True)


def last_error(path: Path) -> str:
    """The last line of an output that speaks of an error."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    start = max((i for i, line in enumerate(lines) if line.startswith("--- attempt ")), default=0)
    lines = [line.strip() for line in lines[start + 1 :]]
    own = [line for line in lines if line.startswith("colearn-hpc: error: ") and not line.endswith("):")]
    raised = [line for line in lines if _RAISED.match(line)]
    # Other libraries wrap our error in their own; ours says what to do.
    ours = [line for line in raised if line.startswith("colearn_hpc.errors.")]
    chosen = (own or ours or raised or [line for line in lines if "error" in line.lower()] or [""])[-1]
    chosen = chosen.removeprefix("colearn-hpc: error: ")
    return chosen if len(chosen) <= 300 else chosen[:297] + "..."


def _read(path: Path, parse: Any, problems: list[str]) -> dict[str, Any]:
    try:
        content = parse(path.read_text())
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())[:200]}")
    else:
        if isinstance(content, dict):
            return content
        problems.append(f"{path.name} does not hold settings")
    return {}


def _rounds(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        problems.append(f"{path.name} is missing")
        return rounds
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            _check_record(record)
        except (ValueError, KeyError, TypeError):
            problems.append(f"{path.name}: line {number} is damaged; {len(lines) - number + 1} lines left out")
            break
        rounds.append(record)
    return rounds


def _check_record(record: Any) -> None:
    """Raise unless a line has what every part of the report relies on."""
    for key in ("round", "local_epochs", "epochs_done", "next_local_epochs"):
        int(record[key])
    if not record["centers"] or not all(isinstance(center["name"], str) for center in record["centers"]):
        raise ValueError("no data centers")
    [float(rate) for rate in record["learning_rates"]]
