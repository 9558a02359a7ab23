"""A study's folder as the report sees it: the plan, and what each run left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.methods import label
from colearn_hpc.studies.records import parse_json
from colearn_hpc.studies.run_folder import RunFolder, read_run


@dataclass(frozen=True)
class Result:
    """One run of the grid and its folder."""

    name: str
    arm: str
    model: str
    data: str
    seed: int
    settings: dict[str, Any]
    run: RunFolder

    @property
    def finished(self) -> bool:
        return self.run.status == "finished" and bool(self.run.rounds)

    @property
    def is_single(self) -> bool:
        return self.settings.get("method") == "single"


@dataclass(frozen=True)
class StudyResults:
    """All runs, in the order of the plan.

    Attributes:
        folder: the study's.
        study: the facts of the study file (see :class:`~colearn_hpc.studies.study_file.Study`).
        results: one per planned run, those that never started included.
    """

    folder: Path
    study: dict[str, Any]
    results: list[Result]

    @property
    def metric(self) -> str:
        return str(self.study.get("metric", "val_acc"))

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(data, model) in order: only within one are arms compared."""
        return list(dict.fromkeys((r.data, r.model) for r in self.results))

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(r.arm for r in self.results))

    def of(self, group: tuple[str, str], arm: str) -> list[Result]:
        """Finished runs of an arm."""
        return [r for r in self.results if (r.data, r.model) == group and r.arm == arm and r.finished]

    def by_seed(self, group: tuple[str, str], arm: str) -> dict[int, float]:
        """Final metric of an arm's finished runs."""
        return {r.seed: r.run.final(self.metric) for r in self.of(group, arm)}

    def group_label(self, group: tuple[str, str]) -> str:
        """A group's name for people; empty where a study has only one."""
        data, model = group
        names = [self._variant("models", model).get("label") or model, self._variant("data", data).get("label") or data]
        return ", ".join(name for name in names if name)

    def arm_label(self, arm: str) -> str:
        return self._variant("arms", arm).get("label") or label(arm)

    def paper_row(self, group: tuple[str, str]) -> str:
        return str(self._variant("models", group[1]).get("paper_row", ""))

    def _variant(self, axis: str, name: str) -> dict[str, Any]:
        return next((v for v in self.study.get(axis, []) if v.get("name") == name), {})


def read_results(folder: Path) -> StudyResults:
    """Read a study's folder.

    Raises:
        ConfigurationError: it is none. Damaged runs do not raise: they say so in the report.
    """
    path = folder / "plan.json"
    try:
        plan = parse_json(path.read_text())
        study, runs = dict(plan["study"]), list(plan["runs"])
        results = [
            Result(
                r["name"],
                r["arm"],
                r["model"],
                r["data"],
                r["seed"],
                r["settings"],
                read_run(folder / "runs" / r["name"]),
            )
            for r in runs
        ]
    except FileNotFoundError as error:
        hint = (
            f"{folder} is one run: use `colearn-hpc report {folder}`"
            if (folder / "rounds.jsonl").exists()
            else "name the folder that `colearn-hpc study run` wrote, e.g. runs/ablation_digits"
        )
        raise ConfigurationError(f"{folder} is no study's folder: it has no plan.json; {hint}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({error!r}); `colearn-hpc study run` writes it anew without repeating finished runs"
        ) from error
    return StudyResults(folder, study, results)
