"""``study run --launcher slurm`` with stand-ins for Slurm's commands on PATH: a queue that is a folder of files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colearn_hpc.cli.study import main as study
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies import slurm_launcher
from colearn_hpc.studies.grid import expand
from colearn_hpc.studies.runner import GridRunner, is_finished
from colearn_hpc.studies.slurm_launcher import SlurmLauncher
from colearn_hpc.studies.study_file import read_study

# A job is a file QUEUE/ID: its state, exit code and arguments. sbatch "runs" it as the file `plan` says, which maps a
# job's name to a list of what becomes of it at one submission after the other; squeue shows one state per look.
SBATCH = """
import json, os, pathlib, sys
queue = pathlib.Path(os.environ["QUEUE"])
jobs = sorted(int(path.name) for path in queue.glob("[0-9]*"))
limit = queue / "limit"
alive = sum(json.loads((queue / str(job)).read_text())["states"][0] in ("PENDING", "RUNNING") for job in jobs)
if limit.exists() and alive >= int(limit.read_text()):
    sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
words = dict(word.split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
name, output = words["--job-name"], pathlib.Path(words["--output"])
fates = json.loads((queue / "fates").read_text()).get(name, [])
earlier = sum(json.loads((queue / str(job)).read_text())["name"] == name for job in jobs)
fate = fates[earlier] if earlier < len(fates) else ["PENDING", "RUNNING", "COMPLETED"]
job = max(jobs, default=100) + 1
content = {"name": name, "states": fate, "output": str(output)}
content["environment"] = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "OMP_"))}
(queue / str(job)).write_text(json.dumps(content))
print(f"{job};mini")
"""
SQUEUE = """
import json, os, pathlib, sys
queue = pathlib.Path(os.environ["QUEUE"])
(queue / "looks").open("a").write("x")
if (queue / "down").exists():
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
line = {"round": 0, "local_epochs": 6, "epochs_done": 6, "next_local_epochs": 6, "learning_rates": [0.1]}
line["centers"] = [{"name": "dc0", "examples": 10}]
for path in queue.glob("[0-9]*"):
    job = json.loads(path.read_text())
    state = job["states"][0]
    if state == "PURGED":
        continue
    state, _, code = state.partition("/")
    folder = pathlib.Path(job["output"]).parent
    if state == "COMPLETED":
        (folder / "config.yaml").write_text("method: colearning\\n")
        (folder / "rounds.jsonl").write_text(json.dumps(line) + "\\n")
        (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    elif state == "FAILED":
        with open(job["output"], "a") as file:
            file.write("colearn-hpc: error: no luck today\\n")
    print(path.name, state, int(code or 0) << 8)
    if len(job["states"]) > 1 and job["states"][0] != "RUNNING FOR EVER":
        job["states"] = job["states"][1:]
        path.write_text(json.dumps(job))
"""
SCANCEL = """
import json, os, pathlib, sys
queue = pathlib.Path(os.environ["QUEUE"])
for job in sys.argv[1:]:
    content = json.loads((queue / job).read_text())
    content["states"] = ["RUNNING", "CANCELLED/85"]
    (queue / job).write_text(json.dumps(content))
"""


class FakeSlurm:
    def __init__(self, folder: Path) -> None:
        self.queue = folder / "queue"
        self.queue.mkdir()
        self.fates({})
        (folder / "bin").mkdir()
        for name, body in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL}.items():
            tool = folder / "bin" / name
            tool.write_text(f"#!{sys.executable}\n{body}")
            tool.chmod(0o755)
        self.environment = {"QUEUE": str(self.queue), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def fates(self, fates: dict[str, list[list[str]]]) -> None:
        (self.queue / "fates").write_text(json.dumps(fates))

    def jobs(self) -> dict[str, dict]:
        return {path.name: json.loads(path.read_text()) for path in sorted(self.queue.glob("[0-9]*"))}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "mine.sbatch"
    path.touch()
    return path


@pytest.fixture
def plans(study_file):
    return expand(read_study(study_file()))


def run(out, script, plans, jobs=10, **more):
    said = []
    return GridRunner(out, SlurmLauncher(script, interval=0.01, **more), jobs, said.append).run(plans), said


def test_the_submission(slurm, script, plans, tmp_path):
    first, vanilla = plans[0], next(plan for plan in plans if plan.arm == "vanilla")
    launcher = SlurmLauncher(script, ["--partition=gpu"], threads=2)
    fit = ["fit", "--config", "a b.yaml", "--centers", "5", "--resume"]
    command = launcher.command(first, fit, Path("runs/x/100%"))
    assert command == [
        *["sbatch", "--parsable", "--job-name=clr+ile-s0", "--nodes=1", "--ntasks-per-node=5", "--cpus-per-task=2"],
        *["--open-mode=append", "--output=runs/x/100%%/output.txt", "--partition=gpu", str(script)],
        *["--config", "a b.yaml", "--centers", "5"],
    ]
    wide = SlurmLauncher(script, ranks_per_node=1)
    assert "--nodes=5" in wide.command(first, fit, tmp_path)
    alone = wide.command(vanilla, fit, tmp_path)
    assert "--nodes=1" in alone and "--ntasks-per-node=1" in alone
    with pytest.raises(ConfigurationError, match="5 ranks, which do not fill whole nodes"):
        SlurmLauncher(script, ranks_per_node=2).command(first, fit, tmp_path)


def test_every_run_is_a_job_and_finished_ones_are_not_run_again(slurm, script, plans, tmp_path):
    outcome, said = run(tmp_path / "out", script, plans)
    assert sorted(outcome.finished) == sorted(plan.name for plan in plans) and not outcome.failed
    assert all(is_finished(tmp_path / "out" / "runs" / plan.name, plan) for plan in plans)
    assert len(slurm.jobs()) == len(plans) and f"{plans[0].name}: Slurm job 101" in said
    outcome, _ = run(tmp_path / "out", script, plans)
    assert len(outcome.skipped) == len(plans) and len(slurm.jobs()) == len(plans)


def test_what_jobs_inherit(slurm, script, plans, tmp_path, monkeypatch):
    """The site's Slurm and the study's threads; not the sizes of a job that the study itself runs in."""
    for name, value in {"SLURM_CONF": "/x", "SLURM_JOB_ID": "5", "SLURM_NTASKS": "9", "OMP_NUM_THREADS": "64"}.items():
        monkeypatch.setenv(name, value)
    run(tmp_path / "out", script, plans[:1], threads=2)
    (job,) = slurm.jobs().values()
    assert job["environment"] == {"SLURM_CONF": "/x", "OMP_NUM_THREADS": "2"}


def test_what_becomes_of_jobs(slurm, script, plans, tmp_path):
    """Requeued, stopped with code 85, failed once, failed for good, purged by Slurm before anyone looked."""
    names = [plan.name for plan in plans]
    slurm.fates(
        {
            names[0]: [["RUNNING", "NODE_FAIL", "PENDING", "RUNNING", "COMPLETED"]],
            names[1]: [["RUNNING", "FAILED/85"], ["RUNNING", "FAILED/85"], ["RUNNING", "FAILED/85"]],
            names[2]: [["RUNNING", "FAILED/1"]],
            names[3]: [["RUNNING", "FAILED/1"], ["PENDING", "FAILED/1"]],
            names[4]: [["RUNNING", "COMPLETED", "PURGED"]],
            names[5]: [["RUNNING", "TIMEOUT"], ["PURGED"]],
        }
    )
    outcome, _ = run(tmp_path / "out", script, plans)
    assert sorted(outcome.finished) == sorted([*names[:3], names[4]])
    failed = tmp_path / "out" / "runs" / names[3] / "output.txt"
    assert outcome.failed[names[3]] == f"no luck today (Slurm job 109 ended as FAILED); output: {failed}"
    assert "ended as unknown" in outcome.failed[names[5]]
    assert sorted(job["name"] for job in slurm.jobs().values()).count(names[1]) == 4, "85 is no failure"


def test_no_more_jobs_than_slurm_takes(slurm, script, plans, tmp_path):
    (slurm.queue / "limit").write_text("2")
    outcome, said = run(tmp_path / "out", script, plans)
    assert len(outcome.finished) == len(plans) and not outcome.failed
    assert sum("QOSMaxSubmitJobPerUserLimit" in line and "going on with 2 at once" in line for line in said) == 1


def test_a_submission_that_is_refused_from_the_start_is_an_error(slurm, script, plans, tmp_path):
    (slurm.queue / "limit").write_text("0")
    with pytest.raises(ConfigurationError, match=r"QOSMaxSubmit.*correct .*mine.sbatch or --sbatch-options"):
        run(tmp_path / "out", script, plans)


def test_an_interruption_cancels_the_jobs(slurm, script, plans, tmp_path):
    slurm.fates({plan.name: [["RUNNING"]] for plan in plans})
    said = []
    runner = GridRunner(tmp_path / "out", SlurmLauncher(script, interval=0.01), 4, said.append)

    def interrupt(under_way):
        raise KeyboardInterrupt

    runner.tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        runner.run(plans)
    assert {job["states"][0] for job in slurm.jobs().values()} == {"CANCELLED/85"}
    assert "cancelling in Slurm: 101 102 103 104" in said


def left_behind(slurm, script, plans, out):
    """A study that was killed without a word: its jobs go on."""
    slurm.fates({plan.name: [["RUNNING"]] for plan in plans})
    runner = GridRunner(out, SlurmLauncher(script, interval=0.01), 10, lambda _: None)
    runner.launcher.end = lambda runs: None

    def killed(under_way):
        raise SystemExit

    runner.tick = killed
    with pytest.raises(SystemExit):
        runner.run(plans)


def test_jobs_of_a_study_that_was_killed_are_found_again(slurm, script, plans, tmp_path):
    left_behind(slurm, script, plans, tmp_path / "out")
    for name in slurm.jobs():
        path = slurm.queue / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"states": ["RUNNING", "RUNNING", "COMPLETED"]}))
    outcome, said = run(tmp_path / "out", script, plans)
    assert len(outcome.finished) == len(plans) == len(slurm.jobs())
    assert f"{plans[0].name}: job 101 is under way already" in said


def test_jobs_of_other_settings_are_not_run_over(slurm, script, plans, tmp_path, study_file):
    left_behind(slurm, script, plans, tmp_path / "out")
    changed = expand(read_study(study_file(set={"colearning.epsilon": 0.5})))
    with pytest.raises(ConfigurationError, match="scancel 101"):
        run(tmp_path / "out", script, changed)
    assert len(slurm.jobs()) == len(plans)
    (slurm.queue / "down").touch()
    with pytest.raises(ConfigurationError, match="Unable to contact slurm controller"):
        run(tmp_path / "out", script, plans)


def test_a_controller_that_is_away_for_a_while(slurm, script, plans, tmp_path):
    said, looks = [], slurm.queue / "looks"
    runner = GridRunner(tmp_path / "out", SlurmLauncher(script, interval=0.01), 10, said.append)
    (slurm.queue / "down").touch()

    def back(under_way):
        if looks.exists() and len(looks.read_text()) > 3:
            (slurm.queue / "down").unlink(missing_ok=True)

    runner.tick = back
    assert len(runner.run(plans).finished) == len(plans)
    assert sum("squeue does not answer" in line for line in said) == 1


def test_one_look_for_all_jobs_and_not_too_often(slurm, script, plans, tmp_path):
    queue = slurm_launcher.Queue(interval=3600)
    for _ in range(50):
        queue.look()
    assert (slurm.queue / "looks").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "code"),
    [("0", 0), ("768", 3), ("21760", 85), ("9", -9), ("85:0", 85), ("0:9", 137), ("0:0", 0), ("N/A", 0)],
)
def test_exit_codes(text, code):
    assert slurm_launcher._exit_code(text) == code


@pytest.mark.parametrize("background", [False, True])
def test_terminated_from_outside(slurm, script, study_file, tmp_path, background):
    """The whole command, ended by TERM: 130, and no job in the queue. A shell's background job has INT ignored."""
    path = study_file()
    slurm.fates({plan.name: [["RUNNING"]] for plan in expand(read_study(path))})
    command = [sys.executable, "-m", "colearn_hpc", "study", "run", str(path), "--out", str(tmp_path / "out")]
    command += ["--launcher", "slurm", "--script", str(script), "--only", "clr+ile"]
    words = ["bash", "-c", '"$@" & p=$!; trap "kill $p" TERM; wait $p; wait $p', "_"] if background else []
    process = subprocess.Popen([*words, *command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(slurm.jobs()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert {job["states"][0] for job in slurm.jobs().values()} == {"CANCELLED/85"}
    assert "interrupted; the same command continues" in said


def test_usage(script, study_file, tmp_path, monkeypatch, capsys):
    path = str(study_file())
    assert study(["run", path, "--launcher", "slurm", "--script", str(tmp_path / "none"), "--dry-run"]) == 2
    assert "copy the repository's slurm/colearn.sbatch" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert study(["run", path, "--launcher", "slurm", "--script", str(script), "--dry-run"]) == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err


def test_dry_run_shows_the_submissions(slurm, script, study_file, capsys):
    options = ["--launcher", "slurm", "--script", str(script), "--sbatch-options", "--time=4:00:00 --account=a"]
    assert study(["run", str(study_file()), *options, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(" --time=4:00:00 --account=a " in line for line in lines)
    assert not slurm.jobs()
