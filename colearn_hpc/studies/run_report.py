"""What the report of one run says."""

from __future__ import annotations

import math
from typing import Any

from colearn_hpc.studies import tables
from colearn_hpc.studies.blocks import Block, Details, Fact, Facts, Notice, Numbers, Paragraph
from colearn_hpc.studies.confusion import confusion_figure
from colearn_hpc.studies.cross_site import cross_site_blocks
from colearn_hpc.studies.figures import run_figures, slug
from colearn_hpc.studies.run_folder import RunFolder
from colearn_hpc.studies.words import date, duration, megabytes, times, value

_SETTINGS = ("seed_everything", "centers", "method", "colearning", "model", "data", "optimizer", "lr_scheduler")


def run_blocks(run: RunFolder, prefix: str, folder: str = "") -> list[Block]:
    """What the report says of one run, from the numbers that a reader takes home to every round.

    Args:
        run: the run.
        prefix: of its figures' names.
        folder: the run folder as seen from the report, with a slash at its end; empty: the report lies in it.
    """
    # Before the problems are listed: these may add some.
    figure, cross_site = confusion_figure(run, slug(prefix)), cross_site_blocks(run)
    blocks: list[Block] = []
    if numbers := headline(run):
        blocks.append(Numbers(numbers))
    blocks += [Notice(problem) for problem in run.problems]
    blocks.append(Facts(_facts(run, folder)))
    if not run.rounds:
        return blocks
    if run.saving is not None:
        blocks.append(Paragraph(_comparison_in_words(run)))
    blocks += run_figures(run, slug(prefix))
    blocks += [figure] if figure else []
    blocks += [*cross_site, tables.round_table(run), tables.center_table(run)]
    if settings := _settings(run):
        blocks.append(Details("Settings", [Facts(settings)]))
    return blocks


def headline(run: RunFolder) -> list[tuple[str, str]]:
    """The main metric after the last round, and how many bytes were spared, as far as they are known."""
    numbers = []
    if run.shared_metrics:
        metric = run.shared_metrics[0]
        if math.isfinite(final := run.final(metric)):
            model = "the ensemble" if run.method == "ensemble" else "the shared model"
            numbers.append((value(final, metric, unit=True), f"{metric} of {model} after the last round"))
    if run.saving is not None:
        numbers.append((times(run.saving), "fewer bytes between data centers than synchronous training"))
    return numbers


def _comparison_in_words(run: RunFolder) -> str:
    size, steps = run.summary["parameter_bytes"], run.steps or 0
    synchronous, ours = megabytes(run.synchronous_bytes or 0), megabytes(run.bytes_sent)
    return (
        "Synchronous training averages the gradients after every optimizer step. By a ring all-reduce its data centers "
        f"send 2 (K − 1) × bytes of the gradients × steps: 2 × {len(run.center_names) - 1} × {size:,} × {steps:,.0f} = "
        f"{synchronous} MB. This run sent {ours} MB."
    )


def _facts(run: RunFolder, folder: str) -> list[Fact]:
    facts = [Fact("method", run.method), Fact("state", _state(run))]
    if run.last_seen is not None:
        facts.append(Fact("last sign of life" if run.status == "running" else "ended", date(run.last_seen)))
    if run.seconds is not None:
        facts.append(Fact("duration", duration(run.seconds)))
    if run.rounds:
        facts.append(Fact("trained", f"{len(run.rounds)} rounds, {run.epochs} {run.unit} in every data center"))
    facts.append(Fact("data centers", _places(run)))
    if run.model_name:
        facts.append(Fact("model", model_in_words(run)))
    if run.rounds:
        facts.append(Fact("bytes sent", f"{megabytes(run.bytes_sent)} MB in all"))
    if spent := _privacy_in_words(run):
        facts.append(Fact("differential privacy", spent))
    metric = run.shared_metrics[0] if run.shared_metrics else ""
    if best := run.best_round(metric):
        text = value(best["centers"][0]["shared_metrics"][metric], metric, unit=True)
        facts.append(
            Fact("best round", f"round {best['round']}: {metric} {text} (found by looking; the last one counts)")
        )
    if run.config:
        facts.append(Fact("settings", "config.yaml", link=f"{folder}config.yaml"))
    return facts


def _privacy_in_words(run: RunFolder) -> str:
    """ε that each data center has spent in the whole run; empty where none trains privately."""
    spent = {center["name"]: center["epsilon"] for center in run.rounds[-1]["centers"]} if run.rounds else {}
    return ", ".join(f"{name} spent ε = {epsilon:.4g}" for name, epsilon in spent.items() if epsilon is not None)


def _state(run: RunFolder) -> str:
    reason = run.summary.get("stopped_by")
    return f"{run.status} ({reason})" if reason and run.status == "finished" else run.status


def _places(run: RunFolder) -> str:
    """Data centers and the hosts of their leaders; once where all are on one host."""
    names = run.center_names or list(run.statuses)
    hosts = {name: run.statuses.get(name, {}).get("host", "") for name in names}
    if len(set(hosts.values())) == 1:
        host = next(iter(hosts.values()))
        return ", ".join(names) + (f", all on {host}" if host else "")
    return ", ".join(f"{name} on {host}" if host else name for name, host in hosts.items()) or "none"


def model_in_words(run: RunFolder) -> str:
    """The network's name, and how large it is."""
    return run.model_name + (f", {run.parameters:,} parameters" if run.parameters else "")


def _settings(run: RunFolder) -> list[Fact]:
    """What was set and is no null, with dotted names."""
    return [Fact(name, str(item)) for key in _SETTINGS for name, item in _flat(key, run.config.get(key))]


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(f"{name}.{key}", item)]
    return [] if value is None else [(name.replace(".init_args.", "."), value)]
