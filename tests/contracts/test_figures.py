"""Figures of studies in the documentation are those of the JSON beside the benchmarks."""

import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from colearn_hpc.studies.methods import label

ROOT = Path(__file__).parents[2]
BENCH = json.loads((ROOT / "benchmarks" / "results" / "bench_digits.json").read_text())
CIFAR = json.loads((ROOT / "benchmarks" / "results" / "bench_cifar10.json").read_text())


def table(page, heading):
    """Cells of the tables under a heading, without their heads."""
    text = (ROOT / "docs" / page).read_text()
    section = re.search(rf"^## {heading}$.*?^## ", text, re.DOTALL | re.MULTILINE)
    assert section
    lines = [line for line in section[0].splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if not line.startswith("| :--")][1:]


def test_the_bench_has_all_arms_of_its_study() -> None:
    study = yaml.safe_load((ROOT / "configs" / "studies" / "bench_digits.yaml").read_text())
    assert BENCH["command"].endswith("configs/studies/bench_digits.yaml")
    assert [(row["arm"], row["seed"]) for row in BENCH["rows"]] == [
        (arm, seed) for seed in study["seeds"] for arm in study["arms"]
    ]


def test_the_table_of_the_bench_is_its_json() -> None:
    """Validation accuracies of the trials, test accuracies and losses of the seeds, rounds and bytes of every arm."""
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
    assert table("measurements/studies.md", "All methods on digits") == expected


def test_the_table_of_cifar10_is_its_json() -> None:
    """Accuracy over seeds, loss, paired differences to co-learning, rounds and bytes."""
    arms = list(dict.fromkeys(row["arm"] for row in CIFAR["rows"]))
    by_arm = {arm: {row["seed"]: row for row in CIFAR["rows"] if row["arm"] == arm} for arm in arms}
    ours, expected = by_arm["clr+ile"], []
    for arm, runs in by_arm.items():
        accuracies = [100 * run["final_val_acc"] for run in runs.values()]
        gaps = [100 * (ours[seed]["final_val_acc"] - runs[seed]["final_val_acc"]) for seed in sorted(runs)]
        megabytes = mean(run["bytes_sent"] for run in runs.values()) / 1e6
        expected.append(
            [
                label(arm),
                f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f} ({len(runs)})",
                f"{mean(run['final_val_loss'] for run in runs.values()):.3f}",
                "" if arm == "clr+ile" else ", ".join(f"{gap:+.2f}".replace("-", "−") for gap in gaps),
                f"{mean(run['rounds'] for run in runs.values()):g}",
                f"{megabytes:.1f}" if megabytes else "0",
            ]
        )
    assert table("results.md", "All methods on CIFAR-10") == expected


def test_what_tuning_chose_on_cifar10_is_its_json() -> None:
    def text(settings: dict[str, Any]) -> str:
        values = (next(iter(value.values())) if isinstance(value, dict) else value for value in settings.values())
        return ", ".join(f"{value:g}" for value in values)

    expected = [
        [
            label(search["arm"]),
            text(search["trials"][search["chosen"]]["settings"]),
            "; ".join(f"{text(trial['settings'])} → {100 * trial['scores'][0]:.2f}" for trial in search["trials"]),
        ]
        for search in CIFAR["tuning"]["searches"]
    ]
    assert table("measurements/studies.md", "All methods on CIFAR-10") == expected
