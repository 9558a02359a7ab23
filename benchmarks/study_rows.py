"""A finished study as JSON for benchmarks/results: its command, what tuning chose, and a row for each run.

python benchmarks/study_rows.py runs/bench_digits --json benchmarks/results/bench_digits.json
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

KEPT = ("run", "arm", "model", "data", "seed", "rounds", "epochs", "samples", "bytes_sent", "bytes_if_synchronous")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The finished runs of ``report.csv``: what was given, what it sent, and its final metrics."""
    with (folder / "report.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["status"] == "finished"]
    return [
        {key: number(text) for key, text in line.items() if text and (key in KEPT or key.startswith("final_"))}
        for line in lines
    ]


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
    chosen = options.parse_args()
    found: dict[str, Any] = {"command": f"colearn-hpc study run configs/studies/{chosen.folder.name}.yaml"}
    if (path := chosen.folder / "tuning.json").exists():
        found["tuning"] = json.loads(path.read_text())
    chosen.json.write_text(json.dumps(found | {"rows": rows(chosen.folder)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
