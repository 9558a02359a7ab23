"""Figures of studies in the documentation are those of the JSON beside the benchmarks."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml

from colearn_hpc.studies.methods import label
from colearn_hpc.studies.statistics import Difference, paired

ROOT = Path(__file__).parents[2]
BENCH = json.loads((ROOT / "benchmarks" / "results" / "bench_digits.json").read_text())
BENCH_TABLE = "measurements/studies.md", "All methods on digits"
LONG = json.loads((ROOT / "benchmarks" / "results" / "long_cifar10.json").read_text())
SITES = {
    "Data centers that hold different classes": "bench_digits_sites",
    "Data centers that hear different speakers": "bench_spoken_speakers",
}
SPLITS = {
    "iid": "at random",
    "dir1": "Dirichlet(1)",
    "dir01": "Dirichlet(0.1)",
    "random": "at random",
    "own": "a speaker each",
}
CIFAR = json.loads((ROOT / "benchmarks" / "results" / "bench_cifar10.json").read_text())


def table(page, heading):
    """Cells of the tables under a heading, without their heads."""
    text = (ROOT / "docs" / page).read_text()
    section = re.search(rf"^## {heading}$.*?^## ", text, re.DOTALL | re.MULTILINE)
    assert section
    lines = [line for line in section[0].splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if not line.startswith("| :--")][1:]


def spread(values: Collection[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def gap_with_interval(gap: Difference) -> str:
    """The mean of what one arm is ahead within a seed, and the 95 % interval of that mean."""
    low, high = gap.interval
    return f"{gap.mean:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")


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
                spread([100 * run["final_val_acc"] for run in runs]),
                f"{mean(run['final_val_loss'] for run in runs):.4f}",
                f"{sum(run['rounds'] for run in runs) / len(runs):g}",
                f"{megabytes:.2f}" if megabytes else "0",
            ]
        )
    assert table(*BENCH_TABLE) == expected


def test_the_short_table_of_the_bench_is_part_of_the_long_one() -> None:
    short = table("results.md", "All methods, equally tuned")
    long = {name: [name, accuracy, loss, sent] for name, _, _, accuracy, loss, _, sent in table(*BENCH_TABLE)}
    assert len(short) > 5 and short == [long[row[0]] for row in short]


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
                f"{spread(accuracies)} ({len(runs)})",
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


def test_the_table_of_long_training_is_its_json() -> None:
    """Accuracy of each seed after a third, two thirds and all of it; and FedAvg less synchronous SGD, their mean."""
    expected = []
    for rate in ("rate02", "rate002"):
        at = {}
        for arm, name in (("fedavg", "FedAvg"), ("synchronous", "synchronous SGD")):
            runs = [row for row in LONG["rows"] if (row["model"], row["arm"]) == (rate, arm)]
            curves = [{epochs: 100 * value for epochs, value in run["val_acc"]} for run in runs]
            at[arm] = [[curve[epochs] for curve in curves] for epochs in (48, 96, 144)]
            loss = mean(run["final_val_loss"] for run in runs)
            shown = [", ".join(f"{value:.2f}" for value in values) for values in at[arm]]
            expected.append([rate.replace("rate0", "0."), name, *shown, f"{loss:.3f}"])
        pairs = zip(at["fedavg"], at["synchronous"], strict=True)
        gaps = [mean(f - s for f, s in zip(*pair, strict=True)) for pair in pairs]
        shown = [f"{gap:+.2f}".replace("-", "−") for gap in gaps]
        expected.append([rate.replace("rate0", "0."), "FedAvg − synchronous SGD, mean", *shown, ""])
    assert table("results.md", "Small rates and long training") == expected


def sites(heading: str) -> dict[str, Any]:
    """The JSON of a study with data centers that differ."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{SITES[heading]}.json").read_text())
    return found


@pytest.mark.parametrize("heading", SITES)
def test_the_table_of_sites_that_differ_is_its_json(heading: str) -> None:
    """Accuracy on the common test examples, the difference to co-learning, and how the data centers fare."""
    rows, expected = sites(heading)["rows"], []
    for split in dict.fromkeys(row["data"] for row in rows):
        runs = [row for row in rows if row["data"] == split]
        arms = list(dict.fromkeys(row["arm"] for row in runs))
        by_arm = {arm: {row["seed"]: row for row in runs if row["arm"] == arm} for arm in arms}
        accuracy = {arm: {seed: 100 * run["final_val_acc"] for seed, run in by_arm[arm].items()} for arm in arms}
        for arm, found in by_arm.items():
            difference = gap_with_interval(paired(accuracy["clr+ile"], accuracy[arm]))
            places = [run["sites"] for run in found.values()]
            expected.append(
                [
                    SPLITS[split],
                    label(arm),
                    spread(accuracy[arm].values()),
                    "" if arm == "clr+ile" else difference,
                    f"{100 * mean(mean(at) for at in places):.2f}",
                    f"{100 * mean(min(at) for at in places):.2f}",
                    f"{100 * mean(max(at) - min(at) for at in places):.2f}",
                ]
            )
    assert table("results.md", heading) == expected


@pytest.mark.parametrize("heading", SITES)
def test_what_tuning_chose_for_sites_that_differ_is_its_json(heading: str) -> None:
    expected = [
        [
            SPLITS[search["data"]],
            label(search["arm"]),
            ", ".join(f"{value:g}" for value in search["trials"][search["chosen"]]["settings"].values()),
            ", ".join(f"{100 * trial['scores'][0]:.2f}" for trial in search["trials"]),
        ]
        for search in sites(heading)["tuning"]["searches"]
    ]
    assert table("measurements/studies.md", heading) == expected


def trials(name: str, axis: str = "arm") -> dict[str, dict[int, dict[str, Any]]]:
    """Arm (or model) -> seed -> run, of a study that has several of these alone."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]:
        found.setdefault(row[axis], {})[row["seed"]] = row
    return found


def accuracies(runs: dict[int, dict[str, Any]]) -> dict[int, float]:
    return {seed: 100 * run["final_val_acc"] for seed, run in runs.items()}


def losses(runs: dict[int, dict[str, Any]]) -> dict[int, float]:
    return {seed: run["final_val_loss"] for seed, run in runs.items()}


def signed(value: float, error: float, digits: int) -> str:
    return f"{value:+.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def ablation(name: str) -> list[list[str]]:
    """Accuracy, loss, and co-learning less each arm, with its standard error."""
    found, expected = trials(name), []
    for arm, runs in found.items():
        loss, gap = losses(runs).values(), paired(accuracies(found["clr+ile"]), accuracies(runs))
        expected.append(
            [
                label(arm),
                f"{spread(accuracies(runs).values())} ({len(runs)})",
                f"{mean(loss):.4f} ± {stdev(loss):.4f}",
                "" if arm == "clr+ile" else signed(gap.mean, gap.error, 2),
                "" if arm == "clr+ile" else f"{gap.won} / {gap.tied} / {gap.lost}",
            ]
        )
    return expected


def test_the_table_of_the_ablation_is_its_json() -> None:
    found = trials("ablation_digits")
    for line, runs in zip(expected := ablation("ablation_digits"), found.values(), strict=True):
        megabytes = mean(run["bytes_sent"] for run in runs.values()) / 1e6
        line += [f"{mean(run['rounds'] for run in runs.values()):g}", f"{megabytes:.2f}" if megabytes else "0"]
    shown = table("results.md", "Ablation on handwritten digits")
    assert [[cell.strip("*") for cell in line] for line in shown] == expected


def test_the_tables_of_a_quarter_of_the_digits_are_their_json() -> None:
    few, rates = trials("ablation_digits_few"), trials("rates_digits_few")
    expected = ablation("ablation_digits_few")
    head = ["arm", "test loss at 0.05", "test loss at 0.15", "accuracy at 0.15, %"]
    higher = [
        [
            label(arm),
            f"{mean(losses(few[arm]).values()):.3f}",
            f"{mean(losses(runs).values()):.3f}",
            f"{spread(accuracies(runs).values())} (3)",
        ]
        for arm, runs in rates.items()
    ]
    shown = table("measurements/studies.md", "Why CLR\\+ILE does not win there")
    assert [[cell.strip("*") for cell in line] for line in shown] == [*expected, head, *higher]


def test_the_table_of_overlap_is_its_json() -> None:
    found = trials("overlap_digits", "model")
    expected = []
    for waits, overlaps, steps in (("waits", "overlaps", 3), ("waits-1", "overlaps-1", 1)):
        one, other = found[waits], found[overlaps]
        rounds = f"{mean(run['rounds'] for run in one.values()):g}"
        gap, worse = paired(accuracies(other), accuracies(one)), paired(losses(other), losses(one))
        points = [signed(d.mean, d.error * d.count**0.5, digits) for d, digits in ((gap, 2), (worse, 4))]
        for name, runs, differences in (
            (f"waits, T_0 = {steps} ({rounds} rounds)", one, ("", "")),
            (f"overlaps, T_0 = {steps}", other, points),
        ):
            loss = losses(runs).values()
            expected.append(
                [name, spread(accuracies(runs).values()), f"{mean(loss):.4f} ± {stdev(loss):.4f}", *differences]
            )
    shown = table("measurements/exchange.md", "Overlap")
    assert [line for line in shown if re.match("waits|overlaps", line[0])] == expected


def test_the_table_of_the_codecs_is_its_json() -> None:
    digits, images = trials("codecs_digits", "model"), trials("codecs_cifar10_small", "model")
    exact, expected = images["fp32"], []
    for name, runs in images.items():
        line = [name]
        for task in (digits[name], runs):
            line += [spread(accuracies(task).values()), f"{mean(losses(task).values()):.4f}"]
        gap = paired(accuracies(runs), accuracies(exact))
        points = signed(gap.mean, gap.error * gap.count**0.5, 2) if runs is not exact else ""
        expected.append([*line, points, f"{runs[0]['bytes_sent'] / exact[0]['bytes_sent']:.3g}"])
    assert table("measurements/exchange.md", "Fewer bytes") == expected


def test_the_tables_of_spoken_digits_are_their_json() -> None:
    found, expected, tried = trials("table5_spoken_digits"), [], []
    for arm, runs in found.items():
        loss, gap = losses(runs).values(), paired(accuracies(found["clr+ile"]), accuracies(runs))
        difference = gap_with_interval(gap)
        line = [label(arm), spread(accuracies(runs).values()), f"{mean(loss):.3f} ± {stdev(loss):.3f}"]
        sent = f"{mean(run['bytes_sent'] for run in runs.values()) / 1e6:.0f}"
        expected.append([*line, "" if arm == "clr+ile" else difference, sent])
    tuning = json.loads((ROOT / "benchmarks" / "results" / "table5_spoken_digits.json").read_text())["tuning"]
    for search in tuning["searches"]:
        rates = [next(iter(trial["settings"].values())) for trial in search["trials"]]
        scores = [f"{100 * trial['scores'][0]:.2f}" for trial in search["trials"]]
        shown = "; ".join(f"{rate} → {score}" for rate, score in sorted(zip(rates, scores, strict=True)))
        tried.append([label(search["arm"]), f"{rates[search['chosen']]}", shown])
    assert table("results.md", "Table 5 on spoken digits") == expected
    assert table("measurements/studies.md", "Table 5 on spoken digits") == tried
