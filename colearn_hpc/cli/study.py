"""``colearn-hpc study run`` and ``study report``: a comparison by one command, and what came of it."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from colearn_hpc.cli import describe
from colearn_hpc.cli.interrupts import terminated_like_interrupted
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import ColearnError, ConfigurationError
from colearn_hpc.protocol.messages import describe_error
from colearn_hpc.studies.grid import RunPlan, expand
from colearn_hpc.studies.launchers import Launcher, make_mpirun_launcher
from colearn_hpc.studies.progress import GridProgress, drawing
from colearn_hpc.studies.report import write_study_report
from colearn_hpc.studies.runner import GridRunner, check_free, write_plan
from colearn_hpc.studies.slurm_launcher import SlurmLauncher
from colearn_hpc.studies.study_file import Study, read_study
from colearn_hpc.studies.tuning import chosen, tuned_plans, tuning_plans, write_tuning

LAUNCHERS = ("mpirun", "slurm")


def main(argv: Sequence[str]) -> int:
    """Run ``study``; returns 0 done, 1 some run failed, 2 wrong usage, 130 interrupted."""
    parser = Parser(prog="colearn-hpc study", description=describe("study"))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a study file's grid, then write its report")
    run.add_argument("file", type=Path, help="configs/studies/NAME.yaml")
    run.add_argument("--out", type=Path, help="the study's folder (default: runs/NAME)")
    run.add_argument("--smoke", action="store_true", help="tiny budget, same code path")
    run.add_argument("--jobs", type=int, help="runs at once (default: as the cores allow; Slurm: all)")
    run.add_argument(
        "--launcher", default="mpirun", choices=LAUNCHERS, help="mpirun: here (default); slurm: a job each"
    )
    slurm = run.add_argument_group("--launcher slurm")
    slurm.add_argument("--script", type=Path, default=Path("slurm/colearn.sbatch"), help="your copy of colearn.sbatch")
    slurm.add_argument(
        "--sbatch-options", type=shlex.split, default=[], metavar="'OPTIONS'", help="for all jobs: '--partition=gpu'"
    )
    slurm.add_argument("--ranks-per-node", type=int, help="default: all ranks of a run on one node")
    run.add_argument("--only", action="append", metavar="ARM", help="only this arm; may be repeated")
    run.add_argument("--dry-run", action="store_true", help="list the runs and their commands, and stop")
    report = commands.add_parser("report", help="write the report of a study's folder")
    report.add_argument("folder", type=Path, help="the study's folder, e.g. runs/ablation_digits")
    arguments = parser.parse_args(argv)
    try:
        with terminated_like_interrupted():  # ends the runs in order
            return _run(arguments) if arguments.command == "run" else _report(arguments.folder)
    except ColearnError as error:
        print(f"colearn-hpc: error: {describe_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("colearn-hpc: interrupted; the same command continues", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    study = read_study(arguments.file, arguments.smoke)
    out = arguments.out or Path("runs") / study.name
    grid, tuning = expand(study), [] if study.tune is None else tuning_plans(study)
    plans, trials = _chosen(grid, arguments.only), _chosen_trials(tuning, arguments.only)
    launcher = _launcher(arguments, [*trials, *plans], study)
    if arguments.dry_run:
        folders = [(plan, out / "tuning" / "runs" / plan.name) for plan in trials]
        folders += [(plan, out / "runs" / plan.name) for plan in plans]
        for plan, run in folders:
            words = launcher.command(plan, ["fit", "--config", str(run / "settings.yaml")], run)
            print(shlex.join(words))
        epochs = sum(plan.settings["trainer"]["max_epochs"] for plan in (*trials, *plans))
        print(f"{len(trials)} trials and {len(plans)} runs, {epochs} local epochs in all", file=sys.stderr)
        return 0
    check_free(out / "tuning", trials)
    check_free(out, plans)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(arguments.file, out / "study.yaml")
    failed: dict[str, str] = {}
    if study.tune is not None:
        epochs = study.tune.epochs or study.epochs
        write_plan(out / "tuning", replace(study, seeds=study.tune.seeds, epochs=epochs), tuning)
        failed |= _run_all(f"{study.title}: tuning", out / "tuning", launcher, arguments.jobs, trials, epochs)
        found = chosen(study, out / "tuning")
        write_tuning(out / "tuning.json", study, found)
        grid = tuned_plans(study, found)
        plans = _chosen(grid, arguments.only)
    write_plan(out, study, grid)
    failed |= _run_all(study.title, out, launcher, arguments.jobs, plans, study.epochs)
    code = _report(out)
    for name, reason in failed.items():
        print(f"colearn-hpc: failed: {name}: {reason}", file=sys.stderr)
    if failed and study.prepare:
        print(f"colearn-hpc: the data of this study are made by: {study.prepare}", file=sys.stderr)
    return 1 if failed else code


def _run_all(
    title: str, out: Path, launcher: Launcher, jobs: int | None, plans: list[RunPlan], epochs: int
) -> dict[str, str]:
    """Run what is not finished; name -> why of what failed."""
    jobs = jobs if jobs is not None else launcher.jobs(plans)
    runner = GridRunner(out, launcher, jobs)
    progress = GridProgress(runner, plans, epochs)
    progress.tell(f"{title}: {len(plans)} runs of {epochs} local epochs, {jobs} at once; folder {out}")
    try:
        return runner.run(plans).failed
    finally:
        progress.close()


def _launcher(arguments: argparse.Namespace, plans: list[RunPlan], study: Study) -> Launcher:
    if arguments.launcher == "mpirun":
        return make_mpirun_launcher(plans, study.threads, arguments.jobs)
    return SlurmLauncher(arguments.script, arguments.sbatch_options, arguments.ranks_per_node, study.threads)


def _chosen(grid: list[RunPlan], only: list[str] | None) -> list[RunPlan]:
    arms = list(dict.fromkeys(plan.arm for plan in grid))
    if unknown := [arm for arm in only or [] if arm not in arms]:
        raise ConfigurationError(f"--only {unknown[0]}: the study has no such arm; it has {', '.join(arms)}")
    return [plan for plan in grid if not only or plan.arm in only]


def _chosen_trials(tuning: list[RunPlan], only: list[str] | None) -> list[RunPlan]:
    return [plan for plan in tuning if not only or plan.arm.rpartition("-t")[0] in only]


def _report(folder: Path) -> int:
    page = write_study_report(folder, drawing)
    print(f"report: {page}")
    return 0
