"""A finished study as JSON for benchmarks/results: its command, what tuning chose, and a row for each run.

python benchmarks/study_rows.py runs/bench_digits --json benchmarks/results/bench_digits.json
python benchmarks/study_rows.py runs/long_cifar10 --curve val_acc --json benchmarks/results/long_cifar10.json
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

KEPT = ("run", "arm", "model", "data", "seed", "rounds", "epochs", "samples", "bytes_sent", "bytes_if_synchronous")


def rows(folder: Path, curve: str | None) -> list[dict[str, Any]]:
    """The finished runs of ``report.csv``: what was given, what it sent, its final metrics; and that ``curve`` of
    ``rounds.csv``: local epochs at each round's end, and the metric there."""
    found = []
    for line in table(folder / "report.csv"):
        if line["status"] == "finished":
            kept = [key for key in line if line[key] and (key in KEPT or key.startswith("final_"))]
            found.append({key: number(line[key]) for key in kept})
    if curve:
        lines = table(folder / "rounds.csv")
        for row in found:
            own = (line for line in lines if line["run"] == row["run"])
            row[curve] = [[number(line["epochs_done"]), number(line[curve])] for line in own]
    return found


def table(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> int | float | str:
    """What a field of a CSV says."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    """Write the JSON."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("folder", type=Path, help="of a study: runs/NAME")
    options.add_argument("--json", type=Path, required=True, help="file to write")
    options.add_argument("--curve", help="a metric, of which to keep the value at each round's end")
    chosen = options.parse_args()
    found: dict[str, Any] = {"command": f"colearn-hpc study run configs/studies/{chosen.folder.name}.yaml"}
    if (path := chosen.folder / "tuning.json").exists():
        found["tuning"] = json.loads(path.read_text())
    chosen.json.write_text(json.dumps(found | {"rows": rows(chosen.folder, chosen.curve)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
