"""The report of a study and of one run: one HTML page, the same as Markdown, figures as files, and CSV.

report.html     opens anywhere, needs no network; a small script shows values under the pointer
report.md       the same, with figures/*.svg
report.csv      a line per run
rounds.csv      a line per round of every run, for one's own pictures
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from colearn_hpc._version import __version__
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.blocks import Block, Heading, Paragraph, figures_of
from colearn_hpc.studies.charts import alone
from colearn_hpc.studies.files import write_atomically
from colearn_hpc.studies.pages import markdown, page
from colearn_hpc.studies.results import Result, read_results
from colearn_hpc.studies.run_folder import RunFolder, read_run
from colearn_hpc.studies.run_report import run_blocks
from colearn_hpc.studies.study_report import study_blocks
from colearn_hpc.studies.words import printable


def write_study_report(folder: Path, drawing: Callable[[Sequence[Result]], Iterable[Result]] = iter) -> Path:
    """Write the report of a study's folder; returns the page.

    Args:
        folder: of the study.
        drawing: goes over its runs, and may show how far it has come.

    Raises:
        ConfigurationError: it is no study's folder. Missing and damaged runs are named in the report instead.
    """
    study = read_results(folder)
    title = str(study.study.get("title") or study.study.get("name") or folder.name)
    blocks = [*study_blocks(study, title, drawing), Paragraph(_made_by())]
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


def _made_by() -> str:
    return f"Written by colearn_hpc {__version__} on {platform.system()} {platform.machine()}."


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
