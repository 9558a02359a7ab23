"""What a method costs, on three axes: samples, bytes, and wall clock over a stated link.

The wall clock is a model, so that it does not depend on the machine that trained (many runs at once on few cores):

    a round's seconds = the slowest data center's training + 2 × latency + its bytes / the link's rate

Training seconds are those that the run measured; waiting and the measured exchange are left out. A link carries both
ways at once; the two latencies are the two halves of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colearn_hpc.studies.blocks import Figure, Table
from colearn_hpc.studies.charts import Line, Panel, chart
from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.run_folder import RunFolder
from colearn_hpc.studies.statistics import mean_curve, of_trials
from colearn_hpc.studies.words import duration, megabytes, value

Cost = Callable[[Mapping[str, Any]], float]  # of a round


@dataclass(frozen=True)
class Axis:
    """One of the three.

    Attributes:
        name: for files.
        label: for people, with the unit.
        cost: what a round adds.
    """

    name: str
    label: str
    cost: Cost


def axes(link: Mapping[str, Any]) -> tuple[Axis, Axis, Axis]:
    """Samples, bytes and wall clock.

    Args:
        link: ``megabits`` per second and ``milliseconds`` of latency, as in a study file.
    """
    rate, latency = float(link.get("megabits", 100.0)), float(link.get("milliseconds", 20.0))

    def samples(line: Mapping[str, Any]) -> float:
        return float(sum(center["examples"] for center in line["centers"]))

    def sent(line: Mapping[str, Any]) -> float:
        return sum(center["bytes_sent"] for center in line["centers"]) / 1e6

    def seconds(line: Mapping[str, Any]) -> float:
        training = max(center["train_seconds"] for center in line["centers"])
        most = max(center["bytes_sent"] for center in line["centers"])
        return float(training + ((2 * latency / 1e3 + 8 * most / (rate * 1e6)) if most else 0.0))

    return (
        Axis("samples", "training samples, all data centers", samples),
        Axis("bytes", "MB sent between data centers", sent),
        Axis("seconds", f"seconds over links of {rate:g} Mbit/s and {latency:g} ms", seconds),
    )


def curve(run: RunFolder, metric: str, axis: Axis) -> list[tuple[float, float]]:
    """(what was spent, the shared model's metric) at each round's end that has the metric."""
    spent, found = 0.0, []
    for line in run.rounds:
        spent += axis.cost(line)
        if (seen := line["centers"][0]["shared_metrics"].get(metric)) is not None:
            found.append((spent, float(seen)))
    return found


def figures(study: StudyResults, group: tuple[str, str], name: str) -> list[Figure]:
    """The metric against each axis, mean over trials."""
    made = []
    for axis in axes(study.study.get("link") or {}):
        lines = []
        for arm in study.arms:
            mean = mean_curve([curve(r.run, study.metric, axis) for r in study.of(group, arm)])
            points = [(x, t.mean) for x, t in mean]
            if points and points[-1][0] > 0:
                lines.append(Line(study.arm_label(arm), points))
        if lines:
            caption = f"{study.metric} of the shared model against {axis.label}, mean over trials."
            title = f"{study.metric} against {axis.name}"
            made.append(chart(f"{name}-{axis.name}", title, axis.label, [Panel(study.metric, lines)], caption))
    return made


def table(study: StudyResults, group: tuple[str, str]) -> Table:
    """What each arm spent in all, and until it was as good as the weakest arm in the end."""
    finals = {arm: of_trials(list(study.by_seed(group, arm).values())).mean for arm in study.arms}
    target = min((mean for mean in finals.values() if math.isfinite(mean)), default=math.nan)
    kinds = axes(study.study.get("link") or {})
    rows = []
    for arm in study.arms:
        runs = [r.run for r in study.of(group, arm)]
        if not runs:
            continue
        totals = [of_trials([sum(axis.cost(line) for line in run.rounds) for run in runs]).mean for axis in kinds]
        until = [_until([curve(run, study.metric, axis) for run in runs], target) for axis in kinds]
        rows.append([study.arm_label(arm), *_in_words(totals), *_in_words(until)])
    header = ["arm", "samples", "MB", "time over the link", "samples to target", "MB to target", "time to target"]
    caption = (
        f"What each arm spent, means over trials. {kinds[2].label[0].upper()}{kinds[2].label[1:]} are a model of the "
        "link, not a measurement; training seconds in them are as measured here. The target is the weakest arm's final "
        f"{study.metric}, {value(target, study.metric, unit=True)}; — where some trial never reached it."
    )
    return Table(header, rows, caption)


def _until(curves: Sequence[Sequence[tuple[float, float]]], target: float) -> float:
    reached = [next((x for x, y in points if y >= target), math.nan) for points in curves]
    return math.nan if any(map(math.isnan, reached)) else of_trials(reached).mean


def _in_words(spent: Sequence[float]) -> list[str]:
    samples, sent, seconds = spent
    return [
        f"{samples:,.0f}" if math.isfinite(samples) else "—",
        megabytes(sent * 1e6) if math.isfinite(sent) else "—",
        duration(seconds) if math.isfinite(seconds) else "—",
    ]
