"""A script, or a notebook's cell, of the user's own: it is told what happens, and what to type."""

import json
import os
import subprocess
import sys

import pytest

import colearn_hpc
from colearn_hpc.errors import LaunchError

pytestmark = pytest.mark.mpi

SCRIPT = """
from colearn_hpc._quick_imports import import_quickly; import_quickly()
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
from colearn_hpc import CoLearning, DataCenterEnvironment

environment = DataCenterEnvironment()
colearning = CoLearning(rounds=2, local_epochs=1, local_epochs_rule="fle", schedule="none", run_dir="mine")
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
arguments = environment.trainer_arguments(accelerator="cpu")
trainer = pl.Trainer(max_epochs=-1, limit_train_batches=2, callbacks=[colearning], **arguments, **quiet)
colearning.fit(trainer, BoringModel())
print(environment.center.name, trainer.world_size, flush=True)
"""


def run(*command, **env):
    without = {k: v for k, v in os.environ.items() if k != "COLEARN_CENTER"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=without | env)


def test_a_line_per_round(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    sizes = ["--centers", "2", "--ranks-per-center", "2"]
    done = run(sys.executable, "-m", "colearn_hpc", "launch", *sizes, "--", "python", "train.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "dc0 2", "dc0 2", "dc1 2", "dc1 2"]
    lines = [line for line in done.stderr.splitlines() if "round " in line or "run folder" in line]
    assert len(lines) == 3 and lines[0].endswith("2 rounds; run folder mine"), done.stderr
    assert lines[1].startswith("colearn-hpc: round 0: T=1, rate 0.1, change ") and lines[1].endswith(" MB sent")
    assert "nothing is averaged" not in done.stderr


def test_alone_by_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = SCRIPT.replace("environment = DataCenterEnvironment()", "").replace("environment.center.name", "0")
    script = script.replace("arguments = environment.trainer_arguments", "arguments = dict").replace(
        "BoringModel()", "BoringModel()"
    )
    (tmp_path / "train.py").write_text(script)
    done = run(sys.executable, "train.py")
    assert done.returncode == 0 and "nothing is averaged: was mpirun forgotten?" in done.stderr, done.stderr
    assert "colearn-hpc launch --centers 5 -- python train.py" in done.stderr


JOIN = "from colearn_hpc import DataCenter; DataCenter.join({})"


@pytest.mark.parametrize(
    ("spec", "env", "says"),
    [
        ("5", {}, "started alone"),
        ("[2, 2]", {}, "`colearn-hpc launch --centers 2 --ranks-per-center 2 -- python "),
        ("", {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}, "torchrun started 4 processes"),
    ],
)
def test_one_line_says_what_to_type(spec, env, says):
    done = run(sys.executable, "-c", JOIN.format(spec), **env)
    (line,) = [line for line in done.stderr.splitlines() if "TopologyError: " in line]
    assert done.returncode and says in line and "`colearn-hpc launch --centers" in line, done.stderr


def test_a_function_in_several_data_centers(capfd):
    factor = 3  # a notebook's function sees what is around it

    def squared(number, more=0):
        center = colearn_hpc.DataCenter.join()
        print("here is", center.name, center.rank)
        return center.index * factor + number + more

    assert colearn_hpc.launch(squared, 10, centers=2, ranks_per_center=2, more=100) == [110, 113]
    said = capfd.readouterr().out
    assert all(f"here is dc{k} {rank}" in said for k in (0, 1) for rank in (0, 1)), said


def test_an_error_comes_back():
    def fails():
        if colearn_hpc.DataCenter.join().index == 1:
            raise KeyError("lost")

    with pytest.raises(LaunchError, match=r"(?s)data center dc1, rank 0: .*in fails.*KeyError: 'lost'"):
        colearn_hpc.launch(fails, centers=2)


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("kind", ["joined and ended", "asked and ended"])
def test_who_ends_without_fit_is_named_at_once(launch, tmp_path, kind):
    done = launch(2, "own_script.py", kind, tmp_path, timeout=60)
    assert done.code == 1 and done.orphans == []
    assert done.err.count("colearn-hpc: error:") == 1, done.err
    assert "colearn-hpc: error: data center dc1 (rank 0, on " in done.err
    assert "has ended without taking part in the run" in done.err and "Traceback" not in done.err


def test_a_rank_that_has_not_joined_begins_no_collective(launch, tmp_path):
    done = launch(2, "own_script.py", "fails before it joins", tmp_path, timeout=60)
    assert done.code != 0 and done.orphans == [] and "ZeroDivisionError" in done.err
    assert done.err.count("colearn-hpc: error:") == 1, done.err


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(("kind", "times"), [("usual", 1), ("validate first", 3)])
def test_data_are_prepared_once_per_host(launch, tmp_path, kind, times):
    said = launch(2, "own_script.py", kind, tmp_path, timeout=120).ok()
    assert sorted(said.split("\n")[:-1]) == ["dc0: 5 lines, True", "dc1: 5 lines, True"]
    # `validate` has no rounds: there Lightning prepares data in each data center.
    assert len((tmp_path / "calls").read_text().split()) == times


def test_tuners(launch, tmp_path):
    """Each data center finds its own batch size; the rate is the first one's."""
    said = launch(2, "own_script.py", "tuners", tmp_path, timeout=120).ok()
    first, second = sorted(said.split("\n")[:-1])
    assert first.startswith("dc0: batches of 4, lr ") and second.startswith("dc1: batches of 8, lr ")
    assert first.partition("lr ")[2] == second.partition("lr ")[2]
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [0, 1]
