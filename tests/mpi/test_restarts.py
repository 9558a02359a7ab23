"""Participants fail, and the run ends with the bits of one in which nothing happened; or says why it cannot."""

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mpi
RANKS, ROUNDS = 4, 3  # dc0 and dc1, two ranks each


def train(launch, run, faults="", timeout=120, **settings):
    env = {"TEST_FAULTS": faults, "TEST_SETTINGS": json.dumps(settings)}
    return launch(RANKS, "resume.py", run, ROUNDS, "keep", env=env, timeout=timeout)


def digests(done):
    return sorted(line for line in done.ok().splitlines() if line.startswith("rank "))


def fired(run):
    return sum(len(file.read_text().splitlines()) for file in run.glob("centers/*/faults.jsonl"))


def rounds(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(launch, tmp_path_factory):
    return digests(train(launch, tmp_path_factory.mktemp("undisturbed")))


INSIDE = {
    "the first batch, twice": "raise@center=dc1 raise@center=dc0,rank=1,epoch=1,step=3",
    "after the mean": "raise@center=dc0,rank=0,round=1,epoch=3,step=1,at=validation",
    "a validation of one's own model": "raise@center=dc0,rank=1,round=1,epoch=0,step=1,at=validation",
    "memory, in both": "oom@center=dc0,rank=0,round=2,epoch=0,step=0 oom@center=dc1,rank=1,round=2,epoch=0,step=1",
    "NaN": "nan@center=dc1,rank=0,round=1,epoch=0,step=2",
    "a full disk": "nospace@center=dc1,round=1,epoch=0,at=checkpoint",
    "three in a round": " ".join(f"raise@center=dc1,rank={k % 2},round=1,epoch=1,step={k}" for k in (1, 2, 3)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_failure_inside_a_participant(launch, tmp_path, undisturbed, name):
    done = train(launch, tmp_path, INSIDE[name])
    assert digests(done) == undisturbed
    assert fired(tmp_path) == len(INSIDE[name].split())
    assert "nospace" in INSIDE[name] or re.search(r"dc\d, restarting \(1 of 3 in this round\): ", done.err)


@pytest.mark.parametrize(
    "fault",
    [
        "kill@center=dc1,rank=1,round=1,epoch=1,step=2",
        "segfault@center=dc0,rank=0,round=1,epoch=0,at=validation",
        "kill@center=dc0,rank=0,round=1,at=exchange",
        "raise@center=dc1,rank=0,round=1,at=exchange",
        "kill@center=dc1,rank=0,round=0,epoch=1,at=checkpoint",
        "kill@center=dc0,rank=1",
    ],
)
def test_a_process_dies(launch, tmp_path, undisturbed, fault):
    """The job ends at once, whatever the others are doing, and the next start has the same bits."""
    done = train(launch, tmp_path, fault, timeout=90)
    assert done.code == 86 or done.code > 128, done.err
    assert done.orphans == [] and fired(tmp_path) == 1
    assert digests(train(launch, tmp_path, fault)) == undisturbed


def test_a_repeated_error_ends_the_run(launch, tmp_path):
    """... after one restart: the same error at the same batch would come again. One message, nobody left."""
    done = train(launch, tmp_path, "raise@center=dc1,rank=1,round=1,step=2,times=9")
    assert done.code == 1 and done.orphans == [] and fired(tmp_path) == 2
    assert "the same error came back at the same batch" in done.err


def test_restarts_are_used_up(launch, tmp_path):
    faults = " ".join(f"raise@center=dc1,round=1,step={step}" for step in range(3))
    done = train(launch, tmp_path, faults, restarts=2)
    assert done.code == 1 and fired(tmp_path) == 3 and "restarts=2 of round 1 are used up" in done.err


def test_without_restarts_the_first_failure_ends_the_run(launch, tmp_path):
    done = train(launch, tmp_path, "raise@center=dc1,round=1", restarts=0)
    assert done.code == 1 and fired(tmp_path) == 1 and "restarts=0 of round 1 are used up" in done.err


def test_continue_without(launch, tmp_path):
    """dc1 cannot train round 1: the mean is dc0's alone, and dc1 goes on with it in round 2."""
    fault = "raise@center=dc1,rank=1,round=1,step=2,times=9"
    done = train(launch, tmp_path, fault, on_failure="continue_without")
    told = {line.split(maxsplit=2)[2] for line in digests(done) if " shared " in line or " place " in line}
    assert len(told) == 2, "one model and one place in the run on all four ranks"
    one, two, three = rounds(tmp_path)
    assert "came back at the same batch" in two["centers"][1]["absent"] and two["centers"][1]["examples"] == 0
    assert [c["absent"] for c in one["centers"] + three["centers"]] == [""] * 4
    assert two["centers"][0]["divergence"] == 0, "the mean of one is itself"


def test_a_silent_participant_is_left_out(launch, tmp_path):
    """dc1 hangs for 8 s in round 0, where 2 s are the limit, and is back before the others have finished."""
    faults = ["hang@center=dc1,rank=0,round=0,epoch=1,step=1,seconds=8"]
    faults += [f"hang@center=dc0,rank=0,round=2,epoch={epoch},seconds=3" for epoch in range(8)]
    done = train(launch, tmp_path, " ".join(faults), on_failure="continue_without", round_timeout=2)
    told = {line.split(maxsplit=2)[2] for line in digests(done) if " shared " in line or " place " in line}
    assert len(told) == 2, "one model and one place in the run on all four ranks"
    assert "going on without dc1" in done.err and "dc1 is back; it missed round 0" in done.err
    assert [r["centers"][1]["absent"] for r in rounds(tmp_path)] == [
        "did not arrive in time",
        "did not arrive in time",
        "missed round 0",
    ]


@pytest.mark.parametrize(("hangs_for", "patience", "ended"), [(12, 6, False), (0, 2, True)])
def test_a_participant_comes_too_late(launch, tmp_path, hangs_for, patience, ended):
    """Left out of all there was: it is told so when it comes, and ended when it does not."""
    fault = f"hang@center=dc1,rank=0,round=0,epoch=1,step=1,seconds={hangs_for}"
    done = train(launch, tmp_path, fault, on_failure="continue_without", round_timeout=patience)
    assert done.code == 0 and done.orphans == []
    assert len(rounds(tmp_path)) == ROUNDS
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert ("still silent; ending it" in done.err) == ended


def test_other_data_after_a_resume(launch, tmp_path):
    train(launch, tmp_path, "kill@center=dc0,rank=1,round=1")
    env = {"TEST_SETTINGS": json.dumps({"weighting": "uniform"})}
    done = launch(RANKS, "resume.py", tmp_path, ROUNDS, "keep", env=env, timeout=90)
    assert done.code == 1 and done.orphans == []
    assert "began with `CoLearning(weighting) = examples` and would be resumed with `uniform`" in done.err


def test_a_damaged_newest_point(launch, tmp_path, undisturbed):
    """Both centers fall back to the point before: two generations, checked by their checksums."""
    train(launch, tmp_path, "kill@center=dc0,rank=1,round=2,epoch=1")
    newest = max((tmp_path / "centers" / "dc1").glob("resume-*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = train(launch, tmp_path)
    assert digests(done) == undisturbed
    assert f"resume point {newest} is damaged" in done.err


def test_launch_starts_again(tmp_path):
    """The user's way: one command, two deaths, one result."""
    command = [sys.executable, "-m", "colearn_hpc", "launch", "--centers", "2", "--restarts", "2", "--"]
    command += ["fit", "--model", "faulty.Plain", "--colearning.rounds", "3", "--colearning.local_epochs", "2"]
    command += ["--runs", str(tmp_path), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    faults = ["--inject+", "kill@center=dc1,round=1,step=1", "--inject+", "segfault@center=dc0,round=2,epoch=1"]
    environment = dict(os.environ) | {"PYTHONPATH": "tests/mpi/programs"}
    for name, more in (("plain", []), ("killed", faults)):
        done = subprocess.run([*command, "--name", name, *more], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stderr.count("a rank died") == 2 and fired(tmp_path / "killed") == 2
    numbers = [[r["relative_change"] for r in rounds(tmp_path / name)] for name in ("plain", "killed")]
    assert numbers[0] == numbers[1]
