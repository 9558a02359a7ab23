"""``colearn-hpc watch``: a run from its folder alone, live or afterwards. It never touches the job."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SILENT = 30.0  # s without a sign of life, after which a data center is said to be silent
_ENDED = ("finished", "interrupted", "failed")


def main(argv: Sequence[str]) -> int:
    """Run ``watch``; returns 0, or 2 where there is no run."""
    parser = argparse.ArgumentParser(prog="colearn-hpc watch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the run folder, e.g. runs/NAME")
    parser.add_argument("--once", action="store_true", help="show it once (also: when the output is no terminal)")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks (default 2)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of the history to show (default 10)")
    arguments = parser.parse_args(argv)
    folder = arguments.folder
    live = not arguments.once and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if not (folder / "centers").is_dir():
        print(f"colearn-hpc: error: {folder} is no run folder: it has no centers/; give runs/NAME", file=sys.stderr)
        return 2
    if not live:
        print(view(folder, time.time(), arguments.rounds))
        return 0
    try:
        # What was on the screen moves up, where one can scroll back to it.
        print("\n" * (shutil.get_terminal_size().lines - 1), end="")
        while True:
            over = _json(folder / "summary.json").get("status") in _ENDED and not _alive(folder, time.time())
            size = shutil.get_terminal_size()
            page = fitted(folder, time.time(), arguments.rounds, size.columns, size.lines)
            # Line by line over the page before, and clear what is left of it: no flicker. Nothing has to be put back
            # when this ends, however it ends.
            print("\033[H" + "".join(f"{line}\033[K\n" for line in page.splitlines()) + "\033[J", end="", flush=True)
            if over:
                return 0
            time.sleep(max(0.1, arguments.interval))
    except KeyboardInterrupt:
        print()  # the terminal has written ^C there
        return 0


def fitted(folder: Path, now: float, history: int, columns: int, lines: int) -> str:
    """The page for a terminal: no line is longer than ``columns``, and one of the ``lines`` stays free.

    Old rounds go first, then data centers; the headline is wrapped, because the time left stands at its end.
    """
    headline, centers, rounds = [part.splitlines() for part in _parts(folder, now, history)]
    headline = textwrap.wrap(headline[0], columns)
    room = max(lines - 1 - len(headline) - 1, 3)  # below the headline and a blank line
    if len(centers) > room:
        hidden = len(centers) - (room - 1)
        centers = [*centers[: room - 1], f"... {hidden} more data centers; they need a taller terminal"]
    room -= len(centers) + 1
    rounds = [*rounds[:2], *rounds[2:][-(room - 2) :]] if rounds and room > 2 else []
    page = "\n\n".join("\n".join(part) for part in (headline, centers, rounds) if part)
    return "\n".join(line if len(line) <= columns else line[: columns - 1] + "~" for line in page.splitlines())


def view(folder: Path, now: float, history: int = 10) -> str:
    """The page as text, as long and as wide as it is.

    Args:
        folder: the run folder.
        now: seconds since 1970.
        history: rounds to show.
    """
    return "\n\n".join(filter(None, _parts(folder, now, history)))


def _parts(folder: Path, now: float, history: int) -> tuple[str, str, str]:
    """Headline, data centers, rounds."""
    summary = _json(folder / "summary.json")
    rounds = _lines(folder / "rounds.jsonl")
    centers = {path.name: _json(path / "status.json") for path in sorted((folder / "centers").iterdir(), key=_order)}
    ended = summary.get("status") in _ENDED
    shown = rounds[-history:] if history > 0 else []
    return _headline(folder, summary, rounds, centers, now, ended), _centers(centers, now), _history(shown)


def _alive(folder: Path, now: float) -> bool:
    """Whether a data center has given a sign of life: a resumed run's summary is still the last start's."""
    beats = [_json(path / "status.json") for path in (folder / "centers").iterdir()]
    return any(s.get("state") not in _ENDED and now - s.get("time", 0) < _SILENT for s in beats if s)


def _headline(
    folder: Path,
    summary: dict[str, Any],
    rounds: list[dict[str, Any]],
    centers: dict[str, Any],
    now: float,
    ended: bool,
) -> str:
    beats = [status for status in centers.values() if status]
    # A resumed run's summary is the last start's until its first round ends.
    alive = [s for s in beats if s.get("state") not in _ENDED and now - s.get("time", 0) < _SILENT]
    status = "running" if alive else summary.get("status", "starting") if ended or not beats else "silent"
    text = f"{folder}: {status}, {len(rounds)} round{'s'[: len(rounds) != 1]} done"
    if summary.get("stopped_by") and status == "finished":
        text += f" ({summary['stopped_by']})"
    if summary.get("error") and status in ("failed", "interrupted"):
        text += f" ({summary['error'].splitlines()[-1]})"
    left = [max(0.0, s["seconds_left"] - (now - s["time"])) for s in alive if s.get("seconds_left") is not None]
    if left:
        # The round ends when its slowest data center arrives.
        text += f"; this round's end in about {_duration(max(left))}"
    return text


def _centers(centers: dict[str, Any], now: float) -> str:
    rows = [["center", "state", "round", "local epoch", "batch", "samples/s", "loss", "last seen", "host"]]
    for name, status in centers.items():
        if not status:
            rows.append([name, "no sign of life yet", *[""] * 7])
            continue
        age = max(0.0, now - status["time"])
        silent = age > _SILENT and status["state"] not in _ENDED
        rows.append(
            [
                name,
                f"silent ({status['state']})" if silent else status["state"],
                str(status["round"]),
                f"{status['local_epoch']}/{status['local_epochs']}",
                f"{status['batch']}/{status['batches'] or '?'}",
                f"{status['samples_per_second']:.1f}",
                "-" if status["loss"] is None else f"{status['loss']:.4f}",
                f"{_duration(age)} ago",
                status["host"],
            ]
        )
    return _table(rows)


def _history(rounds: list[dict[str, Any]]) -> str:
    if not rounds:
        return ""
    metrics = list(dict.fromkeys(name for record in rounds for name in record["centers"][0]["shared_metrics"]))
    rows = [["round", "T", "epochs", "change", *metrics, "train s", "wait s", "exchange s"]]
    for record in rounds:
        shared = record["centers"][0]["shared_metrics"]
        times = [max(c[key] or 0.0 for c in record["centers"]) for key in ("train_seconds", "wait_seconds")]
        rows.append(
            [
                str(record["round"]),
                str(record["local_epochs"]),
                str(record["epochs_done"]),
                "-" if record["relative_change"] is None else f"{record['relative_change']:.4f}",
                *("-" if shared.get(name) is None else f"{shared[name]:.4f}" for name in metrics),
                *(f"{seconds:.1f}" for seconds in times),
                f"{max(c['exchange_seconds'] or 0.0 for c in record['centers']):.2f}",
            ]
        )
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _order(path: Path) -> tuple[str, int]:
    """dc2 before dc10."""
    digits = path.name[len(path.name.rstrip("0123456789")) :]
    return path.name.removesuffix(digits), int(digits or 0)


def _json(path: Path) -> dict[str, Any]:
    """Its content; empty where it is missing, or is just being replaced on a network file system."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    records = []
    try:
        for line in path.read_text().splitlines():
            records.append(json.loads(line))
    except (OSError, ValueError):  # a last line under way
        pass
    return records
