"""What the report of a study says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from colearn_hpc.studies import axes, sites, tables
from colearn_hpc.studies.blocks import Block, Details, Fact, Facts, Heading, Notice, Numbers, Paragraph, Table
from colearn_hpc.studies.budget import check_budget
from colearn_hpc.studies.figures import figure_2, slug
from colearn_hpc.studies.results import Result, StudyResults
from colearn_hpc.studies.run_report import model_in_words, run_blocks
from colearn_hpc.studies.settings import lookup
from colearn_hpc.studies.statistics import of_trials, paired
from colearn_hpc.studies.tuning import read_tuning
from colearn_hpc.studies.verdicts import the_same_models, verdicts
from colearn_hpc.studies.words import date, duration, times, value

_ABLATION = ("clr+ile", "clr+fle", "elr+ile", "elr+fle")


def study_blocks(
    study: StudyResults, title: str, drawing: Callable[[Sequence[Result]], Iterable[Result]] = iter
) -> list[Block]:
    """What the report of a study says; ``drawing`` goes over its runs and may show how far it has come."""
    done = [r for r in study.results if r.finished]
    facts = study.study
    blocks: list[Block] = [
        Heading(title, 1),
        *(Numbers(numbers) for group in study.groups if (numbers := _headline(study, group))),
        Paragraph(
            f"{len(done)} of {len(study.results)} runs finished; {facts.get('centers', '?')} data centers, "
            f"{facts.get('epochs', '?')} local epochs, seeds {', '.join(map(str, facts.get('seeds', [])))}. "
            "Accuracies are those of the model after the last round, on the common evaluation data; no model was "
            "picked by looking at them."
        ),
        Facts(_facts(study)),
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
    blocks += [Heading("What was equal"), *_budget_blocks(study), *_tuning_blocks(study)]
    blocks += [Heading("Accuracy"), tables.table_2(study)]
    for group in study.groups:
        blocks += _group_blocks(study, group)
    blocks.append(Heading("Every run"))
    for result in drawing(study.results):
        if result.run.rounds:
            inside = run_blocks(result.run, result.name, f"runs/{result.name}/")
            blocks.append(Details(_run_summary(result, study.metric), inside))
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


def _facts(study: StudyResults) -> list[Fact]:
    """When, how long, where and on what all runs together were trained."""
    runs = [result.run for result in study.results]
    facts = []
    if seen := [run.last_seen for run in runs if run.last_seen is not None]:
        facts.append(Fact("last run ended", date(max(seen))))
    if seconds := [run.seconds for run in runs if run.seconds is not None]:
        facts.append(Fact("duration", f"{duration(sum(seconds))} in all runs together"))
    if hosts := {str(status["host"]) for run in runs for status in run.statuses.values() if status}:
        facts.append(Fact("hosts", ", ".join(sorted(hosts))))
    if models := dict.fromkeys(model_in_words(run) for run in runs if run.model_name):
        facts.append(Fact("model", "; ".join(models)))
    if (study.folder / "study.yaml").exists():
        facts.append(Fact("settings", "study.yaml", link="study.yaml"))
    return facts


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
        for arm in study.arms:
            if other := next((lookup(r.settings, "optimizer.class_path") for r in study.of(group, arm)), None):
                blocks.append(Notice(f"{study.arm_label(arm)} was trained by {other}, not by the model's optimizer."))
    blocks.append(
        Paragraph(
            "Every arm trains the same number of local epochs on every data center, so all arms see the same number of "
            "samples, with the same net, optimizer, starting weights per seed, and batch per optimizer step unless a "
            "note above says otherwise. What differs: vanilla makes K times as many steps, one after the other, as "
            "one data center with all data would; a single data center sees only its own samples."
        )
    )
    return blocks


def _tuning_blocks(study: StudyResults) -> list[Block]:
    """How much was tuned, and what was chosen."""
    content, found = read_tuning(study.folder / "tuning.json")
    if not found:
        return [Paragraph("No arm was tuned: all have the study's settings.")]
    seeds = ", ".join(map(str, content.get("seeds", [])))
    text = (
        f"Every arm was tuned by {content.get('trials', '?')} trials, each of {content.get('epochs', '?')} local "
        f"epochs with seeds {seeds}, none of which is reported. A trial was judged by {study.metric} on validation "
        "data that no reported run is judged on."
    )
    rows, blocks = [], list[Block]([Heading("Tuning", 3), Paragraph(text)])
    for one in found:
        where = study.group_label((one.data, one.model))
        means = [trial.mean for trial in one.trials]
        finite = [mean for mean in means if math.isfinite(mean)]
        label = study.arm_label(one.arm) + (f", {where}" if where else "")
        if one.chosen is None:
            blocks.append(Notice(f"No trial of {label} finished: it was run with the study's settings."))
            continue
        picked = ", ".join(f"{key.rpartition('.')[2]} {setting}" for key, setting in one.settings.items())
        spread = f"{value(min(finite), study.metric)} – {value(max(finite), study.metric)}"
        rows.append([label, str(len(means)), str(len(means) - len(finite)), picked, spread])
    header = ["arm", "trials", "not finished", "chosen", f"{study.metric} of the trials"]
    return [*blocks, Table(header, rows, "What tuning chose, on validation data.")]


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
        if said := verdicts(study, group, tables.CO_LEARNING) + the_same_models(study, group):
            blocks += [Heading("What these runs show", 3), *map(Paragraph, said)]
    blocks += [Heading("What it cost", 3), tables.table_1(study, group), axes.table(study, group)]
    blocks += axes.figures(study, group, name.replace("figure2", "cost", 1))
    if table := sites.table(study, group):
        blocks += [Heading("How the data centers fare", 3), table]
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
    low, high = gap.interval
    if not (low > 0 or high < 0):  # also where one trial leaves it unknown
        text += f" The 95 % interval of the difference to {rival.upper()} holds 0: these runs cannot tell them apart."
    return text


def _run_summary(result: Result, metric: str) -> str:
    final = result.run.final(metric)
    ending = f"{metric} {final:.4f}" if math.isfinite(final) else "no final metric"
    return f"{result.name}: {ending}, {len(result.run.rounds)} rounds, {result.run.status}"
