"""The report of a study and of one run: one HTML page, the same as Markdown, figures as files, and CSV.

report.html     opens anywhere, needs no network; a small script shows values under the pointer
report.md       the same, with figures/*.svg
report.csv      a line per run
rounds.csv      a line per round of every run, for one's own pictures
"""

from __future__ import annotations

import csv
import io
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from colearn_hpc._version import __version__
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies import tables
from colearn_hpc.studies.blocks import Block, Details, Heading, Notice, Numbers, Paragraph, figures_of
from colearn_hpc.studies.budget import check_budget
from colearn_hpc.studies.charts import alone
from colearn_hpc.studies.figures import figure_2, slug
from colearn_hpc.studies.files import write_atomically
from colearn_hpc.studies.pages import markdown, page
from colearn_hpc.studies.results import Result, StudyResults, read_results
from colearn_hpc.studies.run_folder import RunFolder, read_run
from colearn_hpc.studies.run_report import run_blocks
from colearn_hpc.studies.statistics import of_trials, paired
from colearn_hpc.studies.words import printable, times, value

_ABLATION = ("clr+ile", "clr+fle", "elr+ile", "elr+fle")


def write_study_report(folder: Path) -> Path:
    """Write the report of a study's folder; returns the page.

    Raises:
        ConfigurationError: it is no study's folder. Missing and damaged runs are named in the report instead.
    """
    study = read_results(folder)
    title = str(study.study.get("title") or study.study.get("name") or folder.name)
    blocks = study_blocks(study, title)
    runs = [(r.name, {"arm": r.arm, "model": r.model, "data": r.data, "seed": r.seed}, r.run) for r in study.results]
    return _write(folder, title, blocks, runs)


def write_run_report(folder: Path) -> Path:
    """Write the report of one run folder; returns the page.

    Raises:
        ConfigurationError: there is nothing of a run in it.
    """
    run = read_run(folder)
    if not (run.rounds or run.summary or run.config):
        hint = f"; it is a study: use `colearn-hpc study report {folder}`" if (folder / "plan.json").exists() else ""
        raise ConfigurationError(f"{folder} is no run folder ({'; '.join(run.problems)}){hint}")
    name = printable(folder.resolve().name)
    title = f"Run {name}"
    blocks = [Heading(title, 1), *run_blocks(run, "run"), Paragraph(_made_by())]
    return _write(folder, title, blocks, [(name, {}, run)])


def study_blocks(study: StudyResults, title: str) -> list[Block]:
    """What the report of a study says."""
    done = [r for r in study.results if r.finished]
    facts = study.study
    blocks: list[Block] = [
        Heading(title, 1),
        Paragraph(
            f"{len(done)} of {len(study.results)} runs finished; {facts.get('centers', '?')} data centers, "
            f"{facts.get('epochs', '?')} local epochs, seeds {', '.join(map(str, facts.get('seeds', [])))}. "
            "Accuracies are those of the model after the last round, on the common evaluation data; no model was "
            "picked by looking at them."
        ),
    ]
    if facts.get("smoke"):
        blocks.append(Notice("This is a smoke run: a tiny budget that shows that everything works, and nothing else."))
    absent, broken = tables.unfinished(study)
    blocks += [Notice(f"Left out, because it did not finish: {name} ({why}).") for name, why in broken]
    if absent:
        blocks.append(Notice(f"Never started ({len(absent)} runs): {', '.join(absent)}."))
    if not done:
        blocks.append(Notice("No run has finished: there is nothing to compare yet."))
        return blocks
    blocks += [Numbers(numbers) for group in study.groups if (numbers := _headline(study, group))]
    blocks += [Heading("What was equal"), *_budget_blocks(study)]
    blocks += [Heading("Accuracy"), tables.table_2(study)]
    for group in study.groups:
        blocks += _group_blocks(study, group)
    blocks.append(Heading("Every run"))
    for result in study.results:
        if result.run.rounds:
            inside = run_blocks(result.run, result.name, f"runs/{result.name}/")
            blocks.append(Details(_run_summary(result, study.metric), inside))
    blocks.append(Paragraph(_made_by()))
    return blocks


def _headline(study: StudyResults, group: tuple[str, str]) -> list[tuple[str, str]]:
    """Co-learning's accuracy beside that of all data in one place, and the bytes that it spared."""
    where = study.group_label(group)
    numbers = []
    for arm in (tables.CO_LEARNING, "vanilla"):
        trials = of_trials(list(study.by_seed(group, arm).values()))
        if trials.count:
            what = f"{study.metric} of {study.arm_label(arm)}" + (f", {where}" if where else "")
            numbers.append((value(trials.mean, study.metric, unit=True), f"{what}, mean of {trials.count} trials"))
    savings = [r.run.saving for r in study.of(group, tables.CO_LEARNING)]
    if savings and None not in savings:
        mean = of_trials([saving for saving in savings if saving is not None]).mean
        numbers.append((times(mean), "fewer bytes between data centers than synchronous training"))
    return numbers


def _made_by() -> str:
    return f"Written by colearn_hpc {__version__} on {platform.system()} {platform.machine()}."


def _budget_blocks(study: StudyResults) -> list[Block]:
    blocks: list[Block] = [tables.budgets(study)]
    for group in study.groups:
        budget = check_budget(study, group)
        if budget is None:
            continue
        for violation in budget.violations:
            blocks.append(Notice(f"Unequal budget: {violation}."))
        if len(set(budget.batches.values())) > 1:
            found = ", ".join(f"{study.arm_label(arm)} {size or '?'}" for arm, size in budget.batches.items())
            blocks.append(Notice(f"Optimizer steps saw batches of different sizes ({found})."))
    blocks.append(
        Paragraph(
            "Every arm trains the same number of local epochs on every data center, so all arms see the same number of "
            "samples, with the same net, optimizer, starting weights per seed, and batch per optimizer step unless a "
            "note above says otherwise. What differs: vanilla makes K times as many steps, one after the other, as "
            "one data center with all data would; a single data center sees only its own samples."
        )
    )
    return blocks


def _group_blocks(study: StudyResults, group: tuple[str, str]) -> list[Block]:
    where = study.group_label(group)
    name = "-".join(["figure2", *(slug(part) for part in group if part)])
    blocks: list[Block] = [Heading(where or "The arms", 2 if where else 3)]
    for late in (False, True):
        if figure := figure_2(study, group, f"{name}-late" if late else name, late):
            blocks.append(figure)
    if verdict := ablation_verdict(study, group):
        blocks.append(Paragraph(verdict))
    if study.by_seed(group, tables.CO_LEARNING):
        blocks.append(tables.comparison(study, group))
    blocks += [Heading("What it cost", 3), tables.table_1(study, group)]
    for arm in study.arms:
        if table := tables.members(study, group, arm):
            blocks += [Heading("Ensemble members", 3), table]
    return blocks


def ablation_verdict(study: StudyResults, group: tuple[str, str]) -> str:
    """Whether the paper's order of the four arms was seen, over the seeds that all of them finished.

    Empty where co-learning or all of the others are missing.
    """
    values = {arm: by_seed for arm in _ABLATION if (by_seed := study.by_seed(group, arm))}
    seeds = set.intersection(*(set(by_seed) for by_seed in values.values())) if values else set()
    if len(values) < 2 or "clr+ile" not in values or not seeds:
        return ""
    common = {arm: {seed: by_seed[seed] for seed in sorted(seeds)} for arm, by_seed in values.items()}
    means = {arm: of_trials(list(by_seed.values())).mean for arm, by_seed in common.items()}
    ranked = sorted(means, key=lambda arm: -means[arm])
    order = ", ".join(f"{arm.upper()} {value(means[arm], study.metric)}" for arm in ranked)
    best = all(means["clr+ile"] > means[arm] for arm in ranked if arm != "clr+ile")  # a tie is no win
    seen = "holds in the means here" if best else "was NOT seen here"
    text = f"The paper's claim that CLR+ILE is best of the {len(ranked)} arms {seen}: {order}"
    text += f" (over the {len(seeds)} seeds that all of them finished)."
    rival = next(arm for arm in ranked if arm != "clr+ile")
    gap = paired(common["clr+ile"], common[rival])
    if not abs(gap.mean) > 2 * gap.error:  # also where one trial leaves the error unknown
        text += f" The difference to {rival.upper()} lies within twice its standard error: these runs cannot tell them"
        text += " apart."
    return text


def _run_summary(result: Result, metric: str) -> str:
    final = result.run.final(metric)
    ending = f"{metric} {final:.4f}" if math.isfinite(final) else "no final metric"
    return f"{result.name}: {ending}, {len(result.run.rounds)} rounds, {result.run.status}"


def _write(
    folder: Path, title: str, blocks: Sequence[Block], runs: Sequence[tuple[str, dict[str, Any], RunFolder]]
) -> Path:
    files = {f"figures/{figure.name}.svg": alone(figure.svg) for figure in figures_of(blocks)}
    files |= {"report.md": markdown(blocks), "report.csv": _csv(_run_rows(runs)), "rounds.csv": _csv(_round_rows(runs))}
    files["report.html"] = page(title, blocks)
    try:
        (folder / "figures").mkdir(exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: the report cannot be written there ({error.strerror}); copy the folder to where you may write, "
            "and report on the copy"
        ) from error
    return folder / "report.html"


def _run_rows(runs: Iterable[tuple[str, dict[str, Any], RunFolder]]) -> Iterable[dict[str, Any]]:
    for name, axes, run in runs:
        shared = run.rounds[-1]["centers"][0]["shared_metrics"] if run.rounds else {}
        yield {
            "run": name,
            **axes,
            "status": run.status,
            "rounds": len(run.rounds),
            "epochs": run.epochs,
            "samples": run.samples,
            "batch": run.batch,
            "bytes_sent": run.bytes_sent,
            "bytes_if_synchronous": "" if run.synchronous_bytes is None else int(run.synchronous_bytes),
            "seconds": run.summary.get("seconds", ""),
            **{f"final_{key}": value for key, value in shared.items()},
        }


def _round_rows(runs: Iterable[tuple[str, dict[str, Any], RunFolder]]) -> Iterable[dict[str, Any]]:
    for name, axes, run in runs:
        for line in run.rounds:
            yield {
                "run": name,
                **axes,
                **{key: line[key] for key in ("round", "local_epochs", "epochs_done")},
                "relative_change": line["relative_change"],
                "last_rate": line["learning_rates"][-1] if line["learning_rates"] else "",
                "bytes_sent": sum(center["bytes_sent"] for center in line["centers"]),
                **line["centers"][0]["shared_metrics"],
            }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    output = io.StringIO()
    writer = csv.DictWriter(output, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return output.getvalue()
