"""The steps of `make gpu-check`, rehearsed on CPUs: on the first GPU nothing is to be new but CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STEPS = ("doctor", "flat-model", "communicator", "twice", "methods", "resume", "failures", "gloo-on-one", "lost-gpu")
STEPS += ("restart-in-nccl", "nccl-mixed", "device", "exchange", "pace")


def check(folder, *arguments):
    command = ["sh", str(REPOSITORY / "tests" / "gpu" / "run.sh"), "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)
    return done, json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else None


def environment():
    return dict(os.environ) | {"PYTHON": sys.executable}


@pytest.mark.mpi
@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("step", STEPS)
def test_a_step(step, tmp_path):
    done, found = check(tmp_path / "check", "--device", "cpu", "--total", "480", "--only", step)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(one["step"], one["status"]) for one in found["steps"]] == [(step, "PASS")]


def test_what_fails_is_told(tmp_path):
    """Without time nothing is done, and nothing is called done."""
    done, found = check(tmp_path / "check", "--device", "cpu", "--total", "0")
    assert done.returncode == 0 and [one["step"] for one in found["steps"]] == list(STEPS)
    assert {one["status"] for one in found["steps"]} == {"SKIP"}


def test_without_a_gpu_it_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done, found = check(tmp_path / "check")
    assert done.returncode == 2 and found is None and "torch sees no GPU here" in done.stderr


def test_what_to_carry():
    done = subprocess.run(["sh", str(REPOSITORY / "tests" / "gpu" / "wheels.sh")], capture_output=True, text=True)
    assert done.returncode == 0 and "torch==" in done.stdout and "mpi" in done.stdout
