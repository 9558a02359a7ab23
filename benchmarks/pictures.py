"""Pictures of the documentation from the JSON of the benchmarks: SVG, in the style of the reports.

python benchmarks/pictures.py benchmarks/results docs/pictures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colearn_hpc.studies.charts import alone, canvas, picture
from colearn_hpc.studies.methods import label

Row = tuple[str, list[tuple[str, float]]]
RATES = {"rate02": "rate 0.2", "rate002": "rate 0.02"}
ARMS_OF_LENGTH = {"fedavg": "FedAvg, five data centers", "synchronous": "synchronous SGD"}
SPLITS = {
    "iid": "classes at random",
    "dir1": "Dirichlet(1)",
    "dir01": "Dirichlet(0.1)",
    "random": "clips at random",
    "own": "a speaker each",
}


def bars(name: str, title: str, rows: list[Row], unit: str, note: str) -> str:
    """Horizontal bars, each of named parts; the sum stands at its end. The whole SVG file."""
    parts = list(dict.fromkeys(part for _, values in rows for part, _ in values))
    starts = dict.fromkeys(range(len(rows)), 0.0)
    with canvas(height=1.3 + 0.32 * len(rows), width=7.5) as figure:
        axis = figure.subplots()
        for number, part in enumerate(parts):
            lengths = [dict(values).get(part, 0.0) for _, values in rows]
            # Ten colours: the eleventh part would look like the first.
            axis.barh(range(len(rows)), lengths, left=list(starts.values()), label=part, color=f"C{number}")
            starts = {row: start + lengths[row] for row, start in starts.items()}
        for row, total in starts.items():
            axis.annotate(f"{total:.3g} {unit}", (total, row), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.set(title=title, xlabel=note)
        axis.grid(visible=False, axis="y")
        axis.grid(visible=True, axis="x")
        if len(parts) > 1:
            figure.legend(loc="outside lower center", ncols=5)
        return alone(picture(figure, name, title))


def stages(rows: list[dict[str, Any]]) -> str:
    """What a leader does in an exchange, beside the raw Allreduce."""
    wanted = ("finite check", "read", "send", "wait", "sum", "norm", "divergence", "commit")
    shown: list[Row] = []
    for row in rows:
        parts = [(name, row[f"{name} (s)"]) for name in wanted]
        parts.append(("rest", max(0.0, row["ours (s)"] - sum(value for _, value in parts))))
        shown.append((f"K = {row['centers']}, ours", parts))
        shown.append((f"K = {row['centers']}, raw Allreduce", [("raw", row["raw (s)"])]))
    note = "seconds of the first leader; 58.2 M float32 over shared memory, 2 cores"
    return bars("exchange", "One exchange, module to module", shown, "s", note)


def peers(rows: list[dict[str, Any]]) -> str:
    """One round's exchange by several libraries."""
    shown: list[Row] = [(row["peer"], [("exchange", row["exchange (s)"])]) for row in rows]
    title = "One round of exchange, 58.2 M float32, 5 participants"
    return bars("peers", title, shown, "s", "seconds, on one machine of 2 cores")


def growth(found: dict[str, list[dict[str, Any]]]) -> str:
    """How far an exchange is from its bound as data centers are added, by link.

    Args:
        found: what growth.py has predicted, and measured over links, as in ``growth.json``.
    """
    title = "Growth: one exchange, 58.3 M float32, over its bound"
    with canvas(height=3.6, width=7.5) as figure:
        axis = figure.subplots()
        smallest = min(row["floats"] for row in found["predicted"])
        for row in found["predicted"]:
            if row["floats"] == smallest:
                points = [(int(key[4:]), value) for key, value in row.items() if key.startswith("K = ")]
                rate = row["Mbit/s"]
                speed = f"{rate} Mbit/s" if rate < 1000 else f"{rate // 1000} Gbit/s"
                name = f"{speed}, {row['round trip (ms)']} ms"
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axis.axhline(1.2, linestyle="--", color="gray")
        axis.set(title=title, xlabel="data centers (log)", ylabel="exchange / bound")
        axis.set(xscale="log", ylim=(1, 1.8))
        axis.set_xticks(ticks := [2, 3, 5, 8, 16, 32, 64], [f"{tick}" for tick in ticks])
        axis.minorticks_off()
        figure.legend(loc="outside lower center", ncols=4, fontsize="small")
        return alone(picture(figure, "growth", title))


def changes(rounds: dict[str, list[dict[str, Any]]], epsilon: float) -> str:
    """The relative change in every round of two runs, and where T doubled.

    Args:
        rounds: name of a run -> its rounds, as in ``choosing.json``.
        epsilon: ε of the run in which T doubles.
    """
    title = "Relative change of the shared model"
    with canvas(height=3.2, width=7.5) as figure:
        axis = figure.subplots()
        for name, lines in rounds.items():
            epochs = [line["epochs_done"] for line in lines]
            axis.plot(epochs, [line["relative_change"] for line in lines], marker="o", markersize=3, label=name)
            before = lines[0]["local_epochs"]
            for line in lines:
                if line["local_epochs"] != before:
                    above = (line["epochs_done"], line["relative_change"])
                    axis.annotate(f"T = {line['local_epochs']}", above, (0, 7), textcoords="offset points", ha="center")
                before = line["local_epochs"]
        axis.axhline(epsilon, linestyle="--", color="C2", label=f"ε = {epsilon}")
        axis.set(yscale="log", xlabel="local epochs so far", ylabel="relative change (log)")
        axis.set_yticks(ticks := [0.1, 0.05, 0.02, 0.01, 0.005, 0.002], [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend()
        return alone(picture(figure, "choosing", title))


def arms(name: str, title: str, rows: list[dict[str, Any]], ticks: Sequence[float]) -> str:
    """Every arm of a study: the accuracy of each seed's run, and the bytes that it sent.

    Args:
        name, title: of the picture.
        rows: runs, as in ``bench_digits.json``.
        ticks: of the bytes, MB.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    height = {name: number for number, name in enumerate(names)}
    with canvas(height=1.2 + 0.21 * len(names), width=7.5) as figure:
        accuracy, sent = figure.subplots(1, 2, sharey=True)
        for seed in sorted({row["seed"] for row in rows}):
            runs = [row for row in rows if row["seed"] == seed]
            at = [height[row["arm"]] for row in runs]
            markers = {"linestyle": "none", "marker": "o", "markersize": 4, "alpha": 0.7, "label": f"seed {seed}"}
            accuracy.plot([100 * row["final_val_acc"] for row in runs], at, **markers)
            sent.plot([row["bytes_sent"] / 1e6 or None for row in runs], at, **markers)
        accuracy.set(xlabel="test accuracy, %")
        accuracy.set_yticks(range(len(names)), [label(name) for name in names])
        accuracy.invert_yaxis()
        sent.set(xlabel="MB sent (log scale); no dot: none", xscale="log")
        sent.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        sent.minorticks_off()
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return alone(picture(figure, name, title))


def length(rows: list[dict[str, Any]], passes: float) -> str:
    """Accuracy against the length of the training, a panel for each rate, a line for each run.

    Args:
        rows: runs, as in ``long_cifar10.json``: with the curve of ``val_acc`` over local epochs.
        passes: over all images, in one local epoch.
    """
    rates = list(dict.fromkeys(row["model"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    title = "Local steps need long training: CIFAR-10, 160 images a step of all together"
    with canvas(height=3.4, width=7.5) as figure:
        axes = figure.subplots(1, len(rates), sharey=True)
        for row in rows:
            axis, epochs = axes[rates.index(row["model"])], [at for at, _ in row["val_acc"]]
            again = row["seed"] != rows[0]["seed"]
            axis.plot(
                [passes * at for at in epochs],
                [100 * value for _, value in row["val_acc"]],
                color=f"C{arms.index(row['arm'])}",
                linestyle="--" if again else "-",
                label=None if again else ARMS_OF_LENGTH[row["arm"]],
            )
        for axis, rate in zip(axes, rates, strict=True):
            axis.set(title=RATES[rate], xlabel="passes over the images", ylim=(35, None))
        axes[0].set(ylabel="test accuracy, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return alone(picture(figure, "long_cifar10", title))


def sites(name: str, title: str, rows: list[dict[str, Any]]) -> str:
    """How arms fare where data centers hold different data: on average over them, and at the worst one.

    Args:
        name, title: of the picture.
        rows: runs, as in ``bench_digits_sites.json``, with the accuracy at each data center.
    """
    splits, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("data", "arm"))
    with canvas(height=1.5 + 0.24 * len(names), width=7.5) as figure:
        axes = figure.subplots(1, len(splits), sharey=True, sharex=True)
        for axis, split in zip(axes, splits, strict=True):
            runs = [row for row in rows if row["data"] == split]
            at = [names.index(row["arm"]) for row in runs]
            markers = {"linestyle": "none", "markersize": 4, "alpha": 0.6}
            means = [100 * sum(row["sites"]) / len(row["sites"]) for row in runs]
            axis.plot(means, at, marker="o", label="mean over data centers", **markers)
            axis.plot([100 * min(row["sites"]) for row in runs], at, marker="x", label="worst one", **markers)
            axis.set(title=SPLITS[split], xlabel="accuracy, %")
        axes[0].set_yticks(range(len(names)), [label(name) for name in names])
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return alone(picture(figure, name, title))


def overview(lines: list[dict[str, Any]]) -> str:
    """A whole run: accuracy of the shared model, local epochs of every round, and the rate, over local epochs.

    Args:
        lines: rounds of ``rounds.jsonl``; of the metrics ``val_acc``.
    """
    with canvas(height=4.2, width=7.5) as figure:
        accuracy, local, rate = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        ends = [line["epochs_done"] for line in lines]
        accuracy.plot(ends, [100 * line["val_acc"] for line in lines], marker="o", markersize=3)
        accuracy.set(title="Five data centers learn to read digits", ylabel="test accuracy, %")
        local.step([0, *ends], [lines[0]["local_epochs"], *(line["local_epochs"] for line in lines)], color="C1")
        local.set(ylabel="T", ylim=(0, None))
        rates = [rate for line in lines for rate in line["learning_rates"]]
        rate.step(range(len(rates) + 1), [rates[0], *rates], color="C2")
        rate.set(
            ylabel="rate", ylim=(0, None), xlabel="local epochs; a dot above is a round's end, when models are averaged"
        )
        return alone(picture(figure, "quickstart", "The quickstart, round by round"))


def main() -> None:
    """Draw what there are figures for."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("results", type=Path, help="folder with exchange.json, peers.json, ...")
    options.add_argument("pictures", type=Path, help="folder for the SVGs")
    chosen = options.parse_args()
    for name, draw in (("exchange", stages), ("peers", peers)):
        path = chosen.results / f"{name}.json"
        if path.exists():
            (chosen.pictures / f"{name}.svg").write_text(draw(json.loads(path.read_text())["rows"]))
    if (path := chosen.results / "growth.json").exists():
        (chosen.pictures / "growth.svg").write_text(growth(json.loads(path.read_text())))
    for name, what, ticks in (
        ("bench_digits", "handwritten digits", (0.05, 0.2, 1, 3)),
        ("bench_cifar10", "CIFAR-10", (15, 30, 75)),
    ):
        if (path := chosen.results / f"{name}.json").exists():
            drawn = arms(name, f"All arms on {what}", json.loads(path.read_text())["rows"], ticks)
            (chosen.pictures / f"{name}.svg").write_text(drawn)
    if (path := chosen.results / "long_cifar10.json").exists():
        drawn = length(json.loads(path.read_text())["rows"], passes=0.2)
        (chosen.pictures / "long_cifar10.svg").write_text(drawn)
    for name, title in (
        ("bench_digits_sites", "Handwritten digits over five data centers"),
        ("bench_spoken_speakers", "Spoken digits over six data centers"),
    ):
        if (path := chosen.results / f"{name}.json").exists():
            (chosen.pictures / f"{name}.svg").write_text(sites(name, title, json.loads(path.read_text())["rows"]))
    if (path := chosen.results / "quickstart.json").exists():
        (chosen.pictures / "quickstart.svg").write_text(overview(json.loads(path.read_text())))
    if (path := chosen.results / "choosing.json").exists():
        (chosen.pictures / "choosing.svg").write_text(changes(**json.loads(path.read_text())))


if __name__ == "__main__":
    main()
