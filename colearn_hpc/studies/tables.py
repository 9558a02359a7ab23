"""The report's tables: the paper's Tables 1 and 2 in form, and what they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from colearn_hpc.studies.blocks import Table
from colearn_hpc.studies.budget import check_budget
from colearn_hpc.studies.paper import TABLE_1, TABLE_2
from colearn_hpc.studies.results import StudyResults
from colearn_hpc.studies.run_folder import RunFolder
from colearn_hpc.studies.statistics import Difference, of_trials, paired
from colearn_hpc.studies.verdicts import interval_in_words
from colearn_hpc.studies.words import is_percent, megabytes, times, value

CO_LEARNING = "clr+ile"


def table_2(study: StudyResults) -> Table:
    """Table 2's form: a row per model, a column per arm, mean ± sd over trials, the best mean in bold."""
    header = ["", *(study.arm_label(arm) for arm in study.arms)]
    rows: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    for group in study.groups:
        trials = [of_trials(list(study.by_seed(group, arm).values())) for arm in study.arms]
        means = [t.mean for t in trials if t.count]
        cells = [_mean_and_deviation(t.mean, t.deviation, t.count, study.metric) for t in trials]
        best |= {(len(rows), j + 1) for j, t in enumerate(trials) if means and t.mean == max(means)}
        rows.append([study.group_label(group) or study.metric, *cells])
        if paper := TABLE_2.get(study.paper_row(group)):
            rows.append(["  the paper", *(f"{paper[arm]:.2f}" if arm in paper else "" for arm in study.arms)])
    unit = " in %" if is_percent(study.metric) else ""
    caption = f"Table 2's form: {study.metric}{unit} of the final model, mean ± standard deviation (trials)."
    return Table(header, rows, caption, frozenset(best))


def comparison(study: StudyResults, group: tuple[str, str]) -> Table:
    """Each arm against co-learning, paired over the seeds."""
    ours = study.by_seed(group, CO_LEARNING)
    our_losses = {r.seed: r.run.final("val_loss") for r in study.of(group, CO_LEARNING)}
    rows = []
    for arm in study.arms:
        results = study.of(group, arm)
        values = study.by_seed(group, arm)
        trials = of_trials(list(values.values()))
        difference = paired(ours, values)
        losses = of_trials([r.run.final("val_loss") for r in results])
        loss_gap = paired(our_losses, {r.seed: r.run.final("val_loss") for r in results})
        best = of_trials([max((y for _, y in r.run.curve(study.metric)), default=math.nan) for r in results])
        against = ["", ""]
        if arm != CO_LEARNING and difference.count:
            against = [
                interval_in_words(difference, study.metric),
                f"{difference.won} / {difference.tied} / {difference.lost}",
            ]
        rows.append(
            [
                study.arm_label(arm),
                _mean_and_deviation(trials.mean, trials.deviation, trials.count, study.metric),
                value(best.mean, study.metric) if best.count else "—",
                f"{losses.mean:.4f} ± {losses.deviation:.4f}" if losses.count > 1 else value(losses.mean, "val_loss"),
                *against,
                _gap(loss_gap) if arm != CO_LEARNING and loss_gap.count else "",
            ]
        )
    header = [
        "arm",
        "final, mean ± sd (trials)",
        "best round, mean",
        "final val_loss",
        "co-learning minus arm [95 % interval]",
        "won / tied / lost",
        "the same for val_loss",
    ]
    caption = (
        f"{study.metric}: each arm against co-learning, paired over seeds; the loss tells apart what accuracy cannot."
    )
    return Table(header, rows, caption)


def table_1(study: StudyResults, group: tuple[str, str]) -> Table:
    """Table 1's form: what each arm exchanged, against synchronous DDP over the same links, and where time went."""
    rows = []
    for arm in study.arms:
        runs = [r.run for r in study.of(group, arm)]
        if not runs:
            continue
        sent, rounds = (of_trials([float(n) for n in counts]).mean for counts in _sent_and_rounds(runs))
        savings = [run.saving for run in runs]
        synchronous = [run.synchronous_bytes for run in runs]
        first = runs[0].rounds[0]["local_epochs"]
        farthest = [_farthest(run) for run in runs]
        seconds = [
            of_trials([_center_seconds(run, key) for run in runs]).mean
            for key in ("train_seconds", "wait_seconds", "exchange_seconds")
        ]
        rows.append(
            [
                study.arm_label(arm),
                f"{first}" if set(farthest) == {first} else f"{first} → {_span(farthest)}",
                f"{rounds:.1f}".removesuffix(".0"),
                megabytes(sent / rounds) if sent else "0",
                megabytes(sent) if sent else "0",
                megabytes(_mean(synchronous)) if sent and None not in synchronous else "—",
                times(_mean(savings)) if None not in savings else "—",
                *(f"{s:.1f}" for s in seconds),
            ]
        )
    header = ["arm", "T", "rounds", "MB per round", "MB in all", "MB if synchronous", "times fewer"]
    header += ["train s", "wait s", "exchange s"]
    caption = (
        "Table 1's form, means over trials: local epochs per round; bytes that all data centers sent; what synchronous "
        "training would have sent, 2 (K − 1) × bytes of the gradients × steps; seconds per data center."
    )
    if paper := TABLE_1.get(study.paper_row(group)):
        caption += f" The paper: {paper}."
    return Table(header, rows, caption)


def members(study: StudyResults, group: tuple[str, str], arm: str) -> Table | None:
    """An ensemble and its members' own metrics, per trial."""
    results = [r for r in study.of(group, arm) if r.run.members(study.metric) and r.run.method == "ensemble"]
    if not results:
        return None
    names = results[0].run.center_names
    rows = []
    for result in results:
        own = result.run.members(study.metric)
        whole = value(result.run.final(study.metric), study.metric)
        rows.append([f"seed {result.seed}", whole, *(value(own.get(name, math.nan), study.metric) for name in names)])
    return Table(["trial", "ensemble", *names], rows, f"{study.metric} of the ensemble and of each member alone.")


def budgets(study: StudyResults) -> Table:
    """What was equal: local epochs, samples, and the batch that an optimizer step saw."""
    rows = []
    for group in study.groups:
        if budget := check_budget(study, group):
            sizes = dict.fromkeys(str(b) if b else "?" for b in budget.batches.values())
            equal = "no" if budget.violations else "yes"
            name = study.group_label(group) or "all runs"
            rows.append([name, str(budget.epochs), f"{budget.samples:,}", ", ".join(sizes), equal])
    return Table(["", "local epochs", "samples", "batch per step", "equal"], rows, "The budget of every finished run.")


def unfinished(study: StudyResults) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of runs that were never started, and (run, what is wrong) of those that were and are not whole."""
    absent, broken = [], []
    for result in study.results:
        if not result.run.path.is_dir():
            absent.append(result.name)
        elif not result.finished:
            broken.append((result.name, f"{result.run.status}: {'; '.join(result.run.problems) or 'it has not ended'}"))
    return absent, broken


def round_table(run: RunFolder) -> Table:
    """A line per round of one run; the best round's main metric in bold."""
    metrics = run.shared_metrics
    best = run.best_round(metrics[0]) if metrics else None
    rows: list[list[str]] = []
    bold = set()
    for line in run.rounds:
        shared = line["centers"][0]["shared_metrics"]
        if line is best:
            bold.add((len(rows), 5))
        rows.append(
            [
                str(line["round"]),
                str(line["local_epochs"]),
                str(line["epochs_done"]),
                f"{line['learning_rates'][-1]:.4g}" if line["learning_rates"] else "—",
                _digits(line["relative_change"]),
                *(_digits(shared.get(metric)) for metric in metrics),
                megabytes(sum(center["bytes_sent"] for center in line["centers"])),
            ]
        )
    header = ["round", "T", run.unit.removeprefix("local "), "last rate", "change", *metrics, "MB"]
    return Table(header, rows, "Every round.", frozenset(bold))


def center_table(run: RunFolder) -> Table:
    """What each data center did over the run."""
    rows = []
    for name in run.center_names:
        parts = [c for line in run.rounds for c in line["centers"] if c["name"] == name]
        seconds = [sum(c[f"{k}_seconds"] for c in parts) for k in ("train", "wait", "exchange")]
        sent, absent = sum(c["bytes_sent"] for c in parts), sum(bool(c["absent"]) for c in parts)
        rows.append([name, f"{sum(c['examples'] for c in parts):,}", *(f"{s:.1f}" for s in seconds)])
        rows[-1] += [megabytes(sent), str(absent)]
    header = ["data center", "samples", "train s", "wait s", "exchange s", "MB sent", "rounds left out"]
    return Table(header, rows, "Each data center.")


def _digits(number: float | None) -> str:
    return "—" if number is None else f"{number:.4f}"


def _mean_and_deviation(mean: float, deviation: float, count: int, metric: str) -> str:
    if not count:
        return "—"
    spread = f" ± {value(deviation, metric)}" if math.isfinite(deviation) else ""
    return f"{value(mean, metric)}{spread} ({count})"


def _gap(difference: Difference) -> str:
    """A paired difference of losses: two trials of one arm differ more than two arms in one trial."""
    error = f" ± {difference.error:.4f}" if math.isfinite(difference.error) else ""
    return f"{difference.mean:+.4f}{error}"


def _farthest(run: RunFolder) -> int:
    """The largest T, or the smallest where no T exceeds the first. The last round may have been cut by the budget."""
    epochs = [line["local_epochs"] for line in run.rounds]
    return max(epochs) if max(epochs) > epochs[0] else min(epochs[:-1], default=epochs[0])


def _span(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)}–{max(numbers)}"


def _sent_and_rounds(runs: Sequence[RunFolder]) -> tuple[list[int], list[int]]:
    return [run.bytes_sent for run in runs], [len(run.rounds) for run in runs]


def _mean(numbers: Sequence[float | None]) -> float:
    return of_trials([number for number in numbers if number is not None]).mean


def _center_seconds(run: RunFolder, key: str) -> float:
    """Seconds over the run, mean over data centers."""
    total = sum(center[key] for line in run.rounds for center in line["centers"])
    return float(total) / len(run.center_names)
