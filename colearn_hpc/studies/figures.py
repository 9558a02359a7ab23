"""The report's pictures: accuracy of the arms, and how one run went. All have one x axis: local epochs, or a run's
steps."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from colearn_hpc.studies.blocks import Figure
from colearn_hpc.studies.charts import Line, Panel, chart
from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.run_folder import RunFolder, falls
from colearn_hpc.studies.settings import lookup
from colearn_hpc.studies.statistics import mean_curve

_EPOCHS = "local epochs"


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
    text = f"{title} against local epochs, mean over trials"
    if late:
        title += " (later part)"
        text += "; the same as before, without bands, on the range of the later half"
    else:
        text += ", band of ± one standard deviation"
    text += ". A triangle marks an epoch after which T doubled in some trial."
    return chart(name, title, _EPOCHS, [Panel(study.metric, lines, range=_late_range(lines) if late else None)], text)


def run_figures(run: RunFolder, prefix: str) -> list[Figure]:
    """How one run went: every metric of the shared model, rate and T, relative change with ε, and of every data center
    its own metrics and divergence.

    Args:
        run: the run.
        prefix: of the figures' names.
    """
    if not run.rounds:
        return []
    figures = [_shared(run, metric, f"{prefix}-{slug(metric)}") for metric in run.shared_metrics]
    figures.append(_rate_and_interval(run, f"{prefix}-rate"))
    changes = [(x, y) for x, y in _series(run, lambda line: line["relative_change"])]
    if changes:
        epsilon = _epsilon(run)
        level = None if epsilon is None else (epsilon, f"ε = {epsilon:g}")
        caption = "‖w̄ − w̄_prev‖ / ‖w̄_prev‖ of every round" + ("; at or under ε, T doubles." if level else ".")
        panel = Panel("relative change", [Line("", changes)], level=level, log=True)
        figures.append(chart(f"{prefix}-change", "Change of the shared model", run.unit, [panel], caption))
    for metric in run.local_metrics:
        caption = f"{metric} of each data center's own model, over each round's last local epoch."
        name = f"{prefix}-local-{slug(metric)}"
        figures += _per_center(run, name, f"{metric} per data center", metric, caption, _local(metric))
    caption = "‖w_k − w̄‖ / ‖w̄‖ of each data center just before averaging."
    name = f"{prefix}-divergence"
    title = "Divergence before averaging"
    figures += _per_center(run, name, title, "divergence", caption, lambda c: c["divergence"], from_zero=True)
    return [figure for figure in figures if figure is not None]


def _shared(run: RunFolder, metric: str, name: str) -> Figure | None:
    """One metric of the shared model; a line per data center where they measured on different data."""
    names = run.center_names
    curves = [[(float(x), y) for x, y in run.curve(metric, index)] for index in range(len(names))]
    if not any(curves):
        return None
    best = run.best_round(metric)
    at = float(best["epochs_done"]) if best else None
    if all(curve == curves[0] for curve in curves):
        lines = [Line("", curves[0], marks=run.doublings(), best=at)]
        caption = f"{metric} of the shared model after every round."
    else:
        lines = [Line(name, curve) for name, curve in zip(names, curves, strict=True)]
        lines[0] = Line(names[0], curves[0], marks=run.doublings(), best=at)
        caption = f"{metric} of the shared model after every round, on each data center's own evaluation data."
    caption += " A triangle: T doubled. A ring: the best round."
    log = falls(metric) and all(y > 0 for curve in curves for _, y in curve)
    return chart(name, f"{metric} of the shared model", run.unit, [Panel(metric, lines, log=log)], caption)


def _rate_and_interval(run: RunFolder, name: str) -> Figure:
    """The rate of every local epoch, or block of steps, above T of every round."""
    rates: list[tuple[float, float]] = []
    intervals: list[tuple[float, float]] = []
    block = run.rounds[0]["local_epochs"] if run.unit == "steps" else 1  # each rate is of so many
    for line in run.rounds:
        start = line["epochs_done"] - line["local_epochs"]
        intervals.append((float(start), float(line["local_epochs"])))
        rates += [(float(start + block * at), rate) for at, rate in enumerate(line["learning_rates"])]
    end = float(run.epochs)
    intervals.append((end, intervals[-1][1]))
    rates += [(end, rates[-1][1])] if rates else []
    panels = [Panel("rate", [Line("", rates, stepped=True)], from_zero=True)] if rates else []
    panels.append(Panel("T", [Line("", intervals, stepped=True)], from_zero=True, whole=True))
    what = "local epoch" if block == 1 else f"{block} steps"
    caption = (
        f"Above: the rate of every {what}; with CLR a saw-tooth that restarts at every round. Below: T, the {run.unit} "
        "of every round, as trained; a budget may cut the last round short."
    )
    return chart(name, f"Learning rate, and {run.unit} per round", run.unit, panels, caption)


def _per_center(
    run: RunFolder,
    name: str,
    title: str,
    y_label: str,
    caption: str,
    value: Callable[[dict[str, Any]], float | None],
    from_zero: bool = False,
) -> list[Figure]:
    """A line per data center, or nothing where there is nothing to see."""
    lines = []
    for index, center in enumerate(run.center_names):

        def of_center(line: dict[str, Any], index: int = index) -> float | None:
            return value(line["centers"][index]) if index < len(line["centers"]) else None

        lines.append(Line(center, _series(run, of_center)))
    seen = [y for line in lines for _, y in line.points]
    if not any(seen):
        return []
    log = falls(y_label) and min(seen) > 0
    return [chart(name, title, run.unit, [Panel(y_label, lines, log=log, from_zero=from_zero)], caption)]


def _local(metric: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda center: center["local_metrics"].get(metric)


def _late_range(lines: Sequence[Line]) -> tuple[float, float]:
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


def _series(run: RunFolder, value: Callable[[dict[str, Any]], float | None]) -> list[tuple[float, float]]:
    """A number of every round that has it, at the epoch where the round ended."""
    found = [(float(line["epochs_done"]), value(line)) for line in run.rounds]
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def slug(name: str) -> str:
    """A name as part of a file's name, different names differently: a metric may be called anything, at any length."""
    plain = "".join(
        sign if sign.isascii() and (sign.isalnum() or sign in "-_+.") else f"~{ord(sign):x}~" for sign in name
    )
    return plain if len(plain) <= 60 else f"{plain[:50]}~{zlib.crc32(name.encode()):x}"
