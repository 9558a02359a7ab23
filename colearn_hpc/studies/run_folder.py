"""A run folder as a reader finds it: whole, half-written, damaged or absent. Reading never fails; it notes problems."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from colearn_hpc.studies.records import cleaned, is_roster_line, parse_json, read_json, round_record, status_record
from colearn_hpc.studies.settings import lookup
from colearn_hpc.studies.words import printable

_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)\b")  # the last line of a traceback
_FALLING = re.compile(r"loss|err|perplexity|mae|mse", re.IGNORECASE)  # metrics of which less is better


@dataclass
class RunFolder:
    """What a run left.

    Attributes:
        path: the folder.
        rounds: the records of ``rounds.jsonl`` (see :func:`~colearn_hpc.studies.records.round_record`), without
            damaged lines.
        summary: of ``summary.json``; empty if there is none.
        config: of ``config.yaml``; empty if there is none.
        statuses: data center -> what it last said of itself, empty if nothing; all data centers that are known.
        status: ``finished``, ``failed``, ``running`` (or killed), or ``missing``.
        problems: what could not be read, for people.
    """

    path: Path
    rounds: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "missing"
    problems: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What T counts, for people."""
        return "steps" if self.rounds and self.rounds[0]["unit"] == "steps" else "local epochs"

    @property
    def epochs(self) -> int:
        """Local epochs done, or steps."""
        return int(self.rounds[-1]["epochs_done"]) if self.rounds else 0

    @property
    def method(self) -> str:
        return str(self.config.get("method", "colearning"))

    @property
    def center_names(self) -> list[str]:
        return [center["name"] for center in self.rounds[0]["centers"]] if self.rounds else []

    @property
    def last_seen(self) -> float | None:
        """When a data center last gave a sign of life, in seconds since 1970; a finished run's end."""
        times = [status["time"] for status in self.statuses.values() if status and 0 <= status["time"] < 1 << 32]
        return max(times, default=None)

    @property
    def seconds(self) -> float | None:
        """How long the run took, if its summary says."""
        found = self.summary.get("seconds")
        return float(found) if isinstance(found, int | float) and 0 <= found < 1 << 32 else None

    @property
    def model_name(self) -> str:
        """The network's name where the configuration has one, else its class; empty if unknown."""
        network = lookup(self.config, "model.init_args.network")
        return str(network or lookup(self.config, "model.class_path") or self.summary.get("model") or "")

    @property
    def samples(self) -> int:
        """Training examples that all data centers together went through."""
        return sum(center["examples"] for line in self.rounds for center in line["centers"])

    @property
    def bytes_sent(self) -> int:
        return sum(center["bytes_sent"] for line in self.rounds for center in line["centers"])

    @property
    def batch(self) -> int | None:
        """Examples per optimizer step of a data center, if the configuration says."""
        size, ranks = lookup(self.config, "data.init_args.batch_size"), self.summary.get("ranks")
        if not isinstance(size, int) or not isinstance(ranks, int) or not self.center_names:
            return None
        return size * ranks // len(self.center_names)

    @property
    def steps(self) -> float | None:
        """Optimizer steps of a data center over the run, mean over data centers; None where a round does not say.

        With secure sums no data center tells its own.
        """
        steps = [center["steps"] for line in self.rounds for center in line["centers"]]
        return sum(steps) / len(self.center_names) if any(steps) and None not in steps else None

    @property
    def parameters(self) -> int | None:
        """Trainable parameters, if the summary says."""
        found = self.summary.get("parameters")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def synchronous_bytes(self) -> float | None:
        """What synchronous training would have sent between the data centers; None where steps or sizes are unknown.

        It averages the gradients after every step. By a ring all-reduce among K data centers each of them sends
        2 (K - 1) / K times the gradients' bytes (Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002), so all of
        them together 2 (K - 1) times.
        """
        size = self.summary.get("parameter_bytes")
        if self.steps is None or not isinstance(size, int) or size < 1:
            return None
        return 2.0 * (len(self.center_names) - 1) * size * self.steps

    @property
    def saving(self) -> float | None:
        """How many times fewer bytes co-learning sent than synchronous training would have; None if unknown."""
        if self.method != "colearning" or not self.bytes_sent or not self.synchronous_bytes:
            return None
        return self.synchronous_bytes / self.bytes_sent

    @property
    def shared_metrics(self) -> list[str]:
        """Names of the shared model's metrics, the main one first: what rises (an accuracy) before what falls."""
        return _main_first(m for line in self.rounds for m in line["centers"][0]["shared_metrics"])

    @property
    def local_metrics(self) -> list[str]:
        """Names of the metrics of the data centers' own models, losses first."""
        names = _main_first(m for line in self.rounds for center in line["centers"] for m in center["local_metrics"])
        return sorted(names, key=lambda name: not falls(name))

    def curve(self, metric: str, center: int = 0) -> list[tuple[int, float]]:
        """(epochs done, shared model's metric) at each round's end that has it, as a data center measured it."""
        found = []
        for line in self.rounds:
            value = line["centers"][center]["shared_metrics"].get(metric) if center < len(line["centers"]) else None
            if value is not None:
                found.append((int(line["epochs_done"]), float(value)))
        return found

    def final(self, metric: str) -> float:
        """The metric after the last round; NaN without one."""
        curve = self.curve(metric)
        return curve[-1][1] if curve else math.nan

    def best_round(self, metric: str) -> dict[str, Any] | None:
        """The round after which the shared model's metric was best, the first of equals."""
        having = [line for line in self.rounds if _finite(line["centers"][0]["shared_metrics"].get(metric))]
        sign = 1 if falls(metric) else -1
        return min(having, key=lambda line: sign * line["centers"][0]["shared_metrics"][metric], default=None)

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
        local = {c["name"]: c["local_metrics"].get(metric) for c in last}
        return {name: value for name, value in local.items() if value is not None}


def falls(metric: str) -> bool:
    """Whether less of a metric is better, by its name."""
    return _FALLING.search(metric) is not None


def read_run(path: Path) -> RunFolder:
    """Read what there is."""
    run = RunFolder(path)
    if not path.is_dir():
        run.problems.append("there is no such run folder")
        return run
    run.summary = _read(path / "summary.json", parse_json, run.problems)
    run.config = _read(path / "config.yaml", lambda text: cleaned(yaml.safe_load(text)), run.problems)
    run.rounds = read_rounds(path, run.problems)
    run.statuses = read_statuses(path, run.summary)
    run.status = str(run.summary.get("status", "running" if run.rounds or run.config else "missing"))
    if run.status != "finished" and (reason := run.summary.get("error") or last_error(path / "output.txt")):
        run.problems.insert(0, str(reason))
    return run


def read_rounds(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rounds of a run folder; a line that cannot be read is left out and named in ``problems``."""
    file = path / "rounds.jsonl"
    rounds: list[dict[str, Any]] = []
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problems.append(f"{file.name} is missing" if missing else f"{file.name} cannot be read: {error.strerror}")
        return rounds
    for number, line in enumerate(lines, 1):
        try:
            if not is_roster_line(line):
                rounds.append(round_record(line))
        except ValueError:
            what = "is cut off or damaged" if number == len(lines) else "is damaged"
            problems.append(f"{file.name}: line {number} of {len(lines)} {what}; its round is missing here")
    return rounds


def read_statuses(path: Path, summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Data center -> its status, empty where it has said nothing yet; all that the run folder or summary names."""
    folders = {folder.name: folder / "status.json" for folder in (path / "centers").glob("*") if folder.is_dir()}
    # What others may read lies apart: a run keeps its centers' folders to itself. There is the loss, for who may look.
    apart = {file.stem: file for file in (path / "status").glob("*.json")}
    found = {
        name: (read_json(folders[name]) if name in folders else {}) | (read_json(apart[name]) if name in apart else {})
        for name in {*folders, *apart}
    }
    named = summary.get("centers")
    names = {*found, *(name for name in named if isinstance(name, str))} if isinstance(named, list) else set(found)
    return {printable(name): status_record(found.get(name, {})) for name in sorted(names, key=_order)}


def forget(path: Path) -> None:
    """Remove what a run would be continued from, as ``fit --overwrite`` does: its configuration has changed."""
    names = ("rounds.jsonl", "rounds.damaged.jsonl", "contract.json", "summary.json", "shared.ckpt")
    old = [*path.glob("centers/*/resume-*.ckpt"), *(path / name for name in names)]
    for file in old:
        file.unlink(missing_ok=True)


def last_error(path: Path) -> str:
    """The last line of an output that speaks of an error."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    start = max((i for i, line in enumerate(lines) if line.startswith("--- attempt ")), default=0)
    lines = [printable(line.strip()) for line in lines[start + 1 :]]
    own = [line for line in lines if line.startswith("colearn-hpc: error: ") and not line.endswith("):")]
    raised = [line for line in lines if _RAISED.match(line)]
    # Other libraries wrap our error in their own; ours says what to do.
    ours = [line for line in raised if line.startswith("colearn_hpc.errors.")]
    chosen = (own or ours or raised or [line for line in lines if "error" in line.lower()] or [""])[-1]
    chosen = chosen.removeprefix("colearn-hpc: error: ")
    return chosen if len(chosen) <= 300 else chosen[:297] + "..."


def _read(path: Path, parse: Any, problems: list[str]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(errors="replace"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(printable(str(error)).split())[:200]}")
    else:
        if isinstance(content, dict):
            return content
        problems.append(f"{path.name} does not hold settings")
    return {}


def _main_first(names: Any) -> list[str]:
    known = list(dict.fromkeys(names))
    return sorted(known, key=lambda name: (falls(name), not name.startswith("val_")))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _order(name: str) -> tuple[str, int]:
    """dc2 before dc10."""
    digits = name[len(name.rstrip("0123456789")) :]
    return name.removesuffix(digits), int(digits[:15] or 0) if digits.isascii() else 0
