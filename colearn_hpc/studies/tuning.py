"""Equal tuning: a small search per arm before the reported runs, with equally many trials for every arm.

    OUT/tuning/            a study's folder of its own: plan.json and runs/, one run per arm, setting and tuning seed
    OUT/tuning.json        what was tried, what it scored, and what was chosen

A trial is judged by the study's metric after its last round, on the data that `tune: set:` gives it: validation data,
never those on which the reported runs are judged. Tuning seeds are none of the reported ones.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.files import write_atomically
from colearn_hpc.studies.grid import RunPlan, expand
from colearn_hpc.studies.records import read_json
from colearn_hpc.studies.run_folder import read_run
from colearn_hpc.studies.statistics import of_trials
from colearn_hpc.studies.study_file import Study, Variant


@dataclass(frozen=True)
class Trial:
    """One setting of one arm.

    Attributes:
        settings: what it sets.
        scores: the metric of each tuning seed's run; None where it did not finish, or ended in NaN.
    """

    settings: dict[str, Any]
    scores: list[float | None] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Over the tuning seeds; NaN where one of them failed: such a setting is not chosen."""
        return of_trials([s for s in self.scores if s is not None]).mean if None not in self.scores else math.nan


@dataclass(frozen=True)
class Tuned:
    """What a search found for one arm on one model and data set.

    Attributes:
        data, model, arm: which.
        trials: all that was tried.
        chosen: index of the best; None where no trial finished.
    """

    data: str
    model: str
    arm: str
    trials: list[Trial]
    chosen: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Those chosen; none where no trial finished."""
        return {} if self.chosen is None else self.trials[self.chosen].settings


def points(study: Study, arm: str) -> list[dict[str, Any]]:
    """The settings that are tried for an arm: its whole grid, or as many of it as `tune: trials:` says, drawn once.

    The draw depends on nothing but the grid, so an interrupted search goes on with the same settings.
    """
    assert study.tune is not None, "only a study with `tune:` has trials"
    grid = study.tune.grids[arm]
    whole = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(whole) == study.tune.trials:
        return whole
    kept = sorted(random.Random(0).sample(range(len(whole)), study.tune.trials))
    return [whole[index] for index in kept]


def tuning_plans(study: Study) -> list[RunPlan]:
    """The runs of the search.

    Raises:
        ConfigurationError: trials would be judged on the data of the reported runs.
    """
    assert study.tune is not None, "only a study with `tune:` has trials"
    arms, settings = [], study.settings | study.tune.settings
    for arm in study.arms:
        for number, point in enumerate(points(study, arm.name)):
            arms.append(replace(arm, name=f"{arm.name}-t{number}", settings=arm.settings | point))
    plans = expand(
        replace(
            study,
            arms=tuple(arms),
            seeds=study.tune.seeds,
            epochs=study.tune.epochs or study.epochs,
            settings=settings,
        )
    )
    reported = {_judged_on(plan.settings) for plan in expand(study)} - {None}
    for plan in plans:
        if (judged := _judged_on(plan.settings)) in reported:
            raise ConfigurationError(
                f"tune: {plan.name} would be judged on {judged}, and so are the reported runs: settings may not be "
                "chosen by what is reported. Give other data in tune: set: {data.init_args.val: …}"
            )
    return plans


def chosen(study: Study, folder: Path) -> list[Tuned]:
    """What the runs in the folder of the search say; a trial whose run is missing is none.

    Of equally good settings the first is taken.
    """
    found = []
    assert study.tune is not None, "only a study with `tune:` has trials"
    for model, data, arm in itertools.product(study.models, study.data, study.arms):
        trials = []
        for number, point in enumerate(points(study, arm.name)):
            names = [_name(data, model, f"{arm.name}-t{number}", seed) for seed in study.tune.seeds]
            trials.append(Trial(point, [_score(folder / "runs" / name, study.metric) for name in names]))
        order = sorted(range(len(trials)), key=lambda k: (-_or_least(trials[k].mean), k))
        best = order[0] if math.isfinite(trials[order[0]].mean) else None
        found.append(Tuned(data.name, model.name, arm.name, trials, best))
    return found


def tuned_plans(study: Study, found: Sequence[Tuned]) -> list[RunPlan]:
    """The reported runs, each with the settings chosen for its arm, model and data set."""
    by_place = {(one.data, one.model, one.arm): one.settings for one in found}
    plans = []
    for seed, model, data in itertools.product(study.seeds, study.models, study.data):
        arms = tuple(
            replace(arm, settings=arm.settings | by_place.get((data.name, model.name, arm.name), {}))
            for arm in study.arms
        )
        plans += expand(replace(study, seeds=(seed,), models=(model,), data=(data,), arms=arms))
    return plans


def write_tuning(path: Path, study: Study, found: Sequence[Tuned]) -> None:
    """Write ``tuning.json``."""
    assert study.tune is not None, "only a study with `tune:` has trials"
    searches = [
        {
            "data": one.data,
            "model": one.model,
            "arm": one.arm,
            "chosen": one.chosen,
            "trials": [{"settings": t.settings, "scores": t.scores} for t in one.trials],
        }
        for one in found
    ]
    content = {
        "metric": study.metric,
        "trials": study.tune.trials,
        "seeds": list(study.tune.seeds),
        "epochs": study.tune.epochs or study.epochs,
        "searches": searches,
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_tuning(path: Path) -> tuple[Mapping[str, Any], list[Tuned]]:
    """What :func:`write_tuning` wrote: the budget, and the searches; both empty where there is no such file."""
    content = read_json(path)
    found = []
    try:
        for one in content.get("searches", []):
            trials = [Trial(dict(t["settings"]), list(t["scores"])) for t in one["trials"]]
            found.append(Tuned(one["data"], one["model"], one["arm"], trials, one["chosen"]))
    except (KeyError, TypeError, ValueError):
        return {}, []
    return content, found


def _judged_on(settings: Mapping[str, Any]) -> str | None:
    """The evaluation data of a run, as its configuration says: `val`, else `test`."""
    arguments = settings.get("data", {}).get("init_args", {})
    return next((str(arguments[key]) for key in ("val", "test") if arguments.get(key)), None)


def _score(folder: Path, metric: str) -> float | None:
    run = read_run(folder)
    final = run.final(metric) if run.status == "finished" and run.rounds else math.nan
    return final if math.isfinite(final) else None


def _name(data: Variant, model: Variant, arm: str, seed: int) -> str:
    return "-".join(part for part in (data.name, model.name, arm, f"s{seed}") if part)


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
