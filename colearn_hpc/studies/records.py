"""What the files of a run folder may hold, checked field by field: other people and half-written disks make them.

Every text that comes out of here is free of control characters, so that no file can steer a terminal.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from colearn_hpc.studies.words import printable


def cleaned(value: Any) -> Any:
    """A value of JSON or YAML with all its texts printable, those of keys included."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value


def parse_json(text: str) -> Any:
    """The cleaned content of a JSON text.

    Raises:
        ValueError: it is no JSON, or is nested too deep to be ours.
    """
    try:
        return cleaned(json.loads(text))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: Path) -> dict[str, Any]:
    """The cleaned content of a file; empty where it is missing or damaged, or is just being replaced."""
    try:
        content = parse_json(path.read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def round_record(line: str) -> dict[str, Any]:
    """A line of ``rounds.jsonl`` as every reader may rely on it; the fields are those of ``protocol/reports.py``.

    Numbers that the writer left out are 0, those that are optional None: ``relative_change``, a data center's
    ``divergence``, ``steps`` and ``epsilon``, and metrics.

    Raises:
        ValueError: the line is cut off or damaged.
    """
    given = parse_json(line)
    if not isinstance(given, dict) or not isinstance(given.get("centers"), list) or not given["centers"]:
        raise ValueError("a round without data centers")
    record: dict[str, Any] = {key: _whole(given.get(key)) for key in ("round", "local_epochs", "epochs_done")}
    record["unit"] = "steps" if given.get("unit") == "steps" else "epochs"
    record["next_local_epochs"] = _whole(given.get("next_local_epochs", given["local_epochs"]))
    record["relative_change"] = _number(given.get("relative_change"))
    rates = given.get("learning_rates", [])
    if not isinstance(rates, list):
        raise ValueError("learning_rates is no list")
    record["learning_rates"] = [rate for rate in map(_number, rates) if rate is not None]
    record["centers"] = [_center(center) for center in given["centers"]]
    return record


def is_roster_line(line: str) -> bool:
    """Whether a line of ``rounds.jsonl`` tells of no round, but of who joined and who left.

    Raises:
        ValueError: the line is cut off or damaged.
    """
    given = parse_json(line)
    return isinstance(given, dict) and isinstance(given.get("roster"), dict)


def _center(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError("a data center without a name")
    center: dict[str, Any] = {"name": given["name"], "absent": str(given.get("absent", ""))}
    for key in ("examples", "bytes_sent"):
        center[key] = _whole(given.get(key) or 0)
    for key in ("train_seconds", "wait_seconds", "exchange_seconds"):
        center[key] = _number(given.get(key)) or 0.0
    center["divergence"] = _number(given.get("divergence"))
    center["epsilon"] = _number(given.get("epsilon"))
    center["steps"] = None if given.get("steps") is None else _whole(given["steps"])
    for key in ("local_metrics", "shared_metrics"):
        metrics = given.get(key, {})
        if not isinstance(metrics, dict):
            raise ValueError(f"{key} is no mapping")
        center[key] = {name: _number(value) for name, value in metrics.items()}
    return center


def status_record(content: dict[str, Any]) -> dict[str, Any]:
    """A data center's status, cleaned, with every field that ``watch`` shows; empty if it is none.

    The fields are those of ``trainer/heartbeat.py``; ``batches``, ``loss`` and ``seconds_left`` may be None.
    """
    try:
        status: dict[str, Any] = {
            key: _whole(content.get(key) or 0) for key in ("round", "local_epoch", "local_epochs", "batch")
        }
        status["unit"] = "steps" if content.get("unit") == "steps" else "epochs"
        status["batches"] = None if content.get("batches") is None else _whole(content["batches"])
        for key in ("loss", "seconds_left"):
            status[key] = _number(content.get(key))
        status["samples_per_second"] = _number(content.get("samples_per_second")) or 0.0
        status["time"] = _number(content.get("time"))
    except ValueError:
        return {}
    if status["time"] is None:
        return {}
    return status | {key: str(content.get(key, "")) for key in ("state", "host")}


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise ValueError(f"{value!r:.40} is no whole number")
    return value


def _number(value: Any) -> float | None:
    """A float; None for NaN and infinity, in the place of which JSON has null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is no number")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError as error:
        raise ValueError("a number without end") from error
