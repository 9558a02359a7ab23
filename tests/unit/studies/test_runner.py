"""The runner with a launcher that writes run folders instead of training."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.grid import expand
from colearn_hpc.studies.launchers import MpirunLauncher, ProcessLauncher
from colearn_hpc.studies.run_folder import last_error
from colearn_hpc.studies.runner import GridRunner, check_free, is_finished
from colearn_hpc.studies.study_file import read_study

# What a run does: appends a line to `calls`, fails as told, else writes a finished folder.
RUN = """
import json, pathlib, sys, time
folder, failures, seconds, line = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
calls = folder / "calls"
calls.open("a").write(" ".join(sys.argv[6:]) + "\\n")
time.sleep(seconds)
if len(calls.read_text().splitlines()) <= failures:
    print("colearn-hpc: error: no luck today")
    sys.exit(int(sys.argv[5]))
(folder / "config.yaml").write_text("method: colearning\\n")
(folder / "rounds.jsonl").write_text(line + "\\n")
(folder / "summary.json").write_text(json.dumps({"status": "finished"}))
"""


HOLD = """
import pathlib, sys
from colearn_hpc.studies.files import held
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
file = held(folder / "attempt.lock")
print("held", flush=True)
input()
"""


class FakeLauncher(ProcessLauncher):
    def __init__(self, out: Path, failures=None, seconds=0.0, code=1):
        self.out, self.failures, self.seconds, self.code = out, failures or {}, seconds, code

    def command(self, plan, fit, folder):
        line = {"round": 0, "local_epochs": 6, "epochs_done": 6, "next_local_epochs": 6, "learning_rates": [0.1]}
        line["centers"] = [{"name": "dc0", "examples": 10}]
        options = [str(self.failures.get(plan.name, 0)), str(self.seconds), json.dumps(line), str(self.code), *fit]
        return [sys.executable, "-c", RUN, str(folder), *options]

    def jobs(self, plans):
        return 2


@pytest.fixture
def plans(study_file):
    return expand(read_study(study_file()))


def calls(out: Path, name: str) -> list[str]:
    return (out / "runs" / name / "calls").read_text().splitlines()


def test_runs_everything_once_and_then_nothing(tmp_path, plans):
    said = []
    outcome = GridRunner(tmp_path, FakeLauncher(tmp_path), 3, said.append).run(plans)
    assert sorted(outcome.finished) == sorted(plan.name for plan in plans) and not outcome.failed
    assert all(is_finished(tmp_path / "runs" / plan.name, plan) for plan in plans)
    again = GridRunner(tmp_path, FakeLauncher(tmp_path), 3, said.append).run(plans)
    assert len(again.skipped) == len(plans) and not again.finished
    assert {len(calls(tmp_path, plan.name)) for plan in plans} == {1}
    assert "6 of 6 runs are finished already" in said


def test_a_failed_run_is_tried_once_more_by_resuming(tmp_path, plans):
    name = plans[0].name
    outcome = GridRunner(tmp_path, FakeLauncher(tmp_path, {name: 1}), 2, lambda _: None).run(plans)
    assert not outcome.failed and name in outcome.finished
    assert [line.split()[-1] for line in calls(tmp_path, name)] == ["--resume", "--resume"]


def test_a_run_that_fails_twice_is_given_up_and_the_rest_goes_on(tmp_path, plans):
    name, said = plans[0].name, []
    outcome = GridRunner(tmp_path, FakeLauncher(tmp_path, {name: 9}), 2, said.append).run(plans)
    assert outcome.failed == {name: f"no luck today; output: {tmp_path}/runs/{name}/output.txt"}
    assert len(outcome.finished) == len(plans) - 1 and len(calls(tmp_path, name)) == 2
    assert sum("FAILED: no luck today" in line for line in said) == 2


def test_a_changed_configuration_is_run_anew(tmp_path, plans, study_file):
    GridRunner(tmp_path, FakeLauncher(tmp_path), 3, lambda _: None).run(plans)
    changed = expand(read_study(study_file(set={"colearning.epsilon": 0.5})))
    folder = tmp_path / "runs" / plans[0].name
    (folder / "centers" / "dc0").mkdir(parents=True)
    point = folder / "centers" / "dc0" / "resume-round000001-epoch000002.ckpt"
    point.touch()
    outcome = GridRunner(tmp_path, FakeLauncher(tmp_path), 3, lambda _: None).run(changed)
    assert not outcome.skipped
    assert len(calls(tmp_path, plans[0].name)) == 2
    assert not point.exists(), "the other configuration's run would be continued"


def test_a_run_that_another_study_works_on_is_left_alone(tmp_path, plans):
    """With other settings it would be begun anew, and lose what has been trained."""
    folder = tmp_path / "runs" / plans[0].name
    works = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert works.stdout.readline() == "held\n"
        (folder / "rounds.jsonl").write_text("trained\n")
        with pytest.raises(ConfigurationError, match=re.escape(f"another `study run` works on {folder}; end it")):
            GridRunner(tmp_path, FakeLauncher(tmp_path), 1, lambda _: None).run(plans)
        with pytest.raises(ConfigurationError, match="another `study run`"):
            check_free(tmp_path, plans)
        check_free(tmp_path, plans[1:])
        assert (folder / "rounds.jsonl").read_text() == "trained\n" and not (folder / "settings.yaml").exists()
    finally:
        works.communicate("\n")
    assert plans[0].name in GridRunner(tmp_path, FakeLauncher(tmp_path), 1, lambda _: None).run(plans).finished


def test_an_interruption_ends_the_runs_under_way(tmp_path, plans):
    runner = GridRunner(tmp_path, FakeLauncher(tmp_path, seconds=600), 2, lambda _: None)
    pids = []

    def interrupt(under_way):
        pids.extend(attempt.run.popen.pid for attempt in under_way)
        raise KeyboardInterrupt

    runner.tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(plans)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_run_that_stopped_at_a_safe_point_is_continued(tmp_path, plans):
    """As often as it takes: code 85 is no failure."""
    name = plans[0].name
    launcher = FakeLauncher(tmp_path, {name: 4}, code=85)
    outcome = GridRunner(tmp_path, launcher, 2, lambda _: None).run(plans[:1])
    assert outcome.finished == [name] and len(calls(tmp_path, name)) == 5


def test_no_jobs_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="at least 1"):
        GridRunner(tmp_path, FakeLauncher(tmp_path), 0)


def test_mpirun_goes_through_launch_with_the_number_of_ranks(plans):
    vanilla = next(plan for plan in plans if plan.arm == "vanilla")
    command = MpirunLauncher(threads=2).command(vanilla, ["fit", "--centers", "5"], Path())
    text = " ".join(command[1:])
    assert text == "-m colearn_hpc launch --centers 1 --ranks-per-center 1 --threads 2 -- fit --centers 5"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("--- attempt 1: x\ncolearn-hpc: error: one\n--- attempt 2: x\ncolearn-hpc: error: two\n", "two"),
        ("--- attempt 1: x\ncolearn-hpc: error: one\n--- attempt 2: x\nKilled\n", ""),
        (
            "--- attempt 1: x\ncolearn-hpc: error: Traceback (most recent call last):\n  File\nValueError: bad\nmore\n",
            "ValueError: bad",
        ),
        ("--- attempt 1: x\nsome error of MPI\n", "some error of MPI"),
        (
            "--- attempt 1: x\ncolearn_hpc.errors.DataError: no shard\nValueError: wrapped\n",
            "colearn_hpc.errors.DataError: no shard",
        ),
    ],
)
def test_the_last_error_of_an_output(tmp_path, output, expected):
    (tmp_path / "output.txt").write_text(output)
    assert last_error(tmp_path / "output.txt") == expected
    assert last_error(tmp_path / "absent.txt") == ""
