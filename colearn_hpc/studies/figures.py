"""The report's pictures: accuracy against epochs for the arms, and how one run went."""

from __future__ import annotations

import math
from typing import Any

from colearn_hpc.studies.blocks import Figure
from colearn_hpc.studies.chart import Chart, Line
from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.run_folder import RunFolder
from colearn_hpc.studies.settings import lookup
from colearn_hpc.studies.statistics import mean_curve


def figure_2(study: StudyResults, group: tuple[str, str], name: str, late: bool = False) -> Figure | None:
    """Figure 2's form: the shared model's metric against epochs, mean and ± sd over trials, triangles where T doubled.

    Args:
        study: the results.
        group: (data, model).
        name: of the figure.
        late: only the upper part of the axis, where arms that start alike part.
    """
    lines = []
    for arm in study.arms:
        results = study.of(group, arm)
        mean = mean_curve([r.run.curve(study.metric) for r in results])
        if not mean:
            continue
        band = [(e, t.mean - t.deviation, t.mean + t.deviation) for e, t in mean if math.isfinite(t.deviation)]
        doublings = sorted({epoch for r in results for epoch in r.run.doublings()})
        points = [(float(e), t.mean) for e, t in mean]
        lines.append(Line(study.arm_label(arm), points, band=() if late else band, marks=doublings))
    if not lines:
        return None
    where = study.group_label(group)
    title = f"{study.metric} of the shared model" + (f", {where}" if where else "")
    chart = Chart(title, "local epochs", study.metric, lines)
    text = f"{title} against local epochs, mean over trials"
    if late:
        chart.title += " (later part)"
        chart.range = _late_range(lines)
        text += "; the same as before, without bands, on the range of the later half"
    else:
        text += ", band of ± one standard deviation"
    text += ". A triangle marks an epoch after which T doubled in some trial."
    return Figure(name, chart.svg(name), text)


def run_figures(run: RunFolder, prefix: str) -> list[Figure]:
    """How one run went: rate, T, relative change with ε, loss and divergence of each data center."""
    if not run.rounds:
        return []
    charts: list[tuple[str, Chart, str]] = []
    rates, epoch = [], 0
    for line in run.rounds:
        for rate in line["learning_rates"]:
            rates.append((float(epoch), float(rate)))
            epoch += 1
    if rates:
        rates.append((float(epoch), rates[-1][1]))
    charts.append(
        (
            "rate",
            Chart("Learning rate", "local epochs", "rate", [Line("", rates, stepped=True)], from_zero=True),
            "Rate of every local epoch; with CLR a saw-tooth that restarts at every round.",
        )
    )
    per_round = [(float(line["round"]), float(line["local_epochs"])) for line in run.rounds]
    per_round.append((per_round[-1][0] + 1, per_round[-1][1]))
    charts.append(
        (
            "interval",
            Chart("Local epochs per round", "round", "T", [Line("", per_round, stepped=True)], from_zero=True),
            "T of every round, as trained; a budget in epochs may cut the last round short.",
        )
    )
    changes = _series(run, "relative_change")
    if changes:
        epsilon = _epsilon(run)
        level = None if epsilon is None else (epsilon, f"ε = {epsilon:g}")
        charts.append(
            (
                "change",
                Chart(
                    "Relative change of the shared model",
                    "round",
                    "change",
                    [Line("", changes, dots=True)],
                    level=level,
                    log=True,
                ),
                "‖w̄ − w̄_prev‖ / ‖w̄_prev‖ of every round" + ("; at or under ε, T doubles." if level else "."),
            )
        )
    for key, title, y_label, log, caption in (
        ("train_loss", "Training loss per data center", "loss", True, "Mean loss of each round's last local epoch."),
        (
            "divergence",
            "Divergence before averaging",
            "divergence",
            False,
            "‖w_k − w̄‖ / ‖w̄‖ of each data center just before averaging.",
        ),
    ):
        lines = [Line(name, _center_series(run, name, key)) for name in run.center_names]
        lines = [line for line in lines if any(y > 0 for _, y in line.points)]
        if lines:
            charts.append((key, Chart(title, "round", y_label, lines, log=log, from_zero=not log), caption))
    return [Figure(f"{prefix}-{key}", chart.svg(f"{prefix}-{key}"), caption) for key, chart, caption in charts]


def run_metric_figure(run: RunFolder, metric: str, prefix: str) -> Figure | None:
    """One metric of the shared model against epochs."""
    curve = [(float(x), y) for x, y in run.curve(metric)]
    if not curve:
        return None
    line = Line("shared model", curve, marks=run.doublings(), dots=True)
    chart = Chart(f"{metric} of the shared model", "local epochs", metric, [line])
    name = f"{prefix}-{metric}"
    return Figure(name, chart.svg(name), f"{metric} after every round. A triangle: T doubled.")


def _late_range(lines: list[Line]) -> tuple[float, float]:
    """The range of the later half of all lines, a little widened."""
    end = max(x for line in lines for x, _ in line.points)
    late = [y for line in lines for x, y in line.points if x >= end / 2 and math.isfinite(y)]
    late = late or [y for line in lines for _, y in line.points[-1:]]
    margin = 0.08 * (max(late) - min(late)) or 0.01
    return min(late) - margin, max(late) + margin


def _epsilon(run: RunFolder) -> float | None:
    """ε, where the run's rule uses it."""
    if run.method != "colearning" or lookup(run.config, "colearning.local_epochs_rule", "ile") != "ile":
        return None
    value: Any = lookup(run.config, "colearning.epsilon")
    return float(value) if isinstance(value, int | float) else None


def _series(run: RunFolder, key: str) -> list[tuple[float, float]]:
    return [(float(line["round"]), float(line[key])) for line in run.rounds if isinstance(line.get(key), int | float)]


def _center_series(run: RunFolder, name: str, key: str) -> list[tuple[float, float]]:
    points = []
    for line in run.rounds:
        for center in line["centers"]:
            value = center.get(key, center.get("local_metrics", {}).get(key))
            if center["name"] == name and isinstance(value, int | float):
                points.append((float(line["round"]), float(value)))
    return points
