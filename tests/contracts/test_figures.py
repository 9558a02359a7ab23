"""Figures of studies in the documentation are those of the JSON beside the benchmarks."""

import json
import re
from pathlib import Path

import yaml

from colearn_hpc.studies.methods import label

ROOT = Path(__file__).parents[2]
BENCH = json.loads((ROOT / "benchmarks" / "results" / "bench_digits.json").read_text())


def test_the_bench_has_all_arms_of_its_study() -> None:
    study = yaml.safe_load((ROOT / "configs" / "studies" / "bench_digits.yaml").read_text())
    assert BENCH["command"].endswith("configs/studies/bench_digits.yaml")
    assert [(row["arm"], row["seed"]) for row in BENCH["rows"]] == [
        (arm, seed) for seed in study["seeds"] for arm in study["arms"]
    ]


def test_the_table_of_the_bench_is_its_json() -> None:
    """Validation accuracies of the trials, test accuracies and losses of the seeds, rounds and bytes of every arm."""
    text = (ROOT / "docs" / "measurements" / "studies.md").read_text()
    table = re.search(r"^## All methods on digits$.*?^## ", text, re.DOTALL | re.MULTILINE)
    assert table
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines() if line[:2] == "| "]
    expected = []
    for search in BENCH["tuning"]["searches"]:
        runs = [row for row in BENCH["rows"] if row["arm"] == search["arm"]]
        megabytes = sum(run["bytes_sent"] for run in runs) / len(runs) / 1e6
        expected.append(
            [
                label(search["arm"]),
                f"{list(search['trials'][search['chosen']]['settings'].values())[-1]}",
                ", ".join(f"{100 * trial['scores'][0]:.2f}" for trial in search["trials"]),
                ", ".join(f"{100 * run['final_val_acc']:.2f}" for run in runs),
                ", ".join(f"{run['final_val_loss']:.4f}" for run in runs),
                f"{sum(run['rounds'] for run in runs) / len(runs):g}",
                f"{megabytes:.2f}" if megabytes else "0",
            ]
        )
    assert found[2:] == expected
