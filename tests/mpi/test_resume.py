"""An interrupted run ends with the bits of one that was not."""

import shutil
import signal
import time

import pytest
from resuming import RANKS, digests, together, train
from run_folders import lines
from test_signals import when_trained

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(1800)]  # fixtures start many times
ROUNDS = 4
INT8 = {"exchange": {"codec": "int8"}}  # with error feedback


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def killed(launch, folder):
    """A run that was killed in mid-round."""
    run = folder / "killed"

    def kill(process):
        deadline = time.monotonic() + 120
        while not list(run.glob("centers/dc0/resume-round000001-epoch000004.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None, "the run never came that far"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)

    done = train(launch, run, ROUNDS, pause=0.05, during=kill)
    return done, len(lines(run))


@pytest.fixture(scope="module")
def first(launch, folder, killed):
    """What comes before the interruptions, and a resume in processes that have done nothing else."""
    cases = {
        "killed": {"run": folder / "killed", "rounds": ROUNDS},
        "uninterrupted": {"run": folder / "uninterrupted", "rounds": ROUNDS},
        "two": {"run": folder / "parts", "rounds": 2},
        "int8": {"run": folder / "int8", "rounds": ROUNDS, **INT8},
        "int8, two": {"run": folder / "int8-parts", "rounds": 2, **INT8},
    }
    return together(launch, folder / "first", cases)


@pytest.fixture(scope="module")
def second(launch, folder, first):
    """What comes after them, in other processes."""
    behind = shutil.copytree(folder / "uninterrupted", folder / "behind")
    newest = max((behind / "centers" / "dc1").glob("resume-round000004-*.ckpt"))
    newest.unlink()
    cases = {
        "and two": {"run": folder / "parts", "rounds": ROUNDS},
        "behind": {"run": behind, "rounds": ROUNDS},
        "int8, and two": {"run": folder / "int8-parts", "rounds": ROUNDS, **INT8},
    }
    return together(launch, folder / "second", cases)


@pytest.fixture(scope="module")
def uninterrupted(first):
    return digests(first["uninterrupted"])


def test_all_ranks_hold_one_model(uninterrupted):
    weights = {line.split("weights ")[1] for line in uninterrupted if "weights" in line}
    assert len(weights) == 1 and len(uninterrupted) == 5 * RANKS


def test_four_rounds_are_two_and_two(folder, first, second, uninterrupted):
    first["two"].ok()
    assert digests(second["and two"]) == uninterrupted
    found = lines(folder / "parts")
    assert found == lines(folder / "uninterrupted")
    assert [line["round"] for line in found] == [0, 1, 2, 3]
    assert found[-1]["local_epochs"] > 2, "the setting must double T at least once"


def test_killed_in_mid_round(folder, killed, first, uninterrupted):
    done, rounds = killed
    assert done.code != 0 and rounds < ROUNDS
    assert digests(first["killed"]) == uninterrupted
    assert lines(folder / "killed") == lines(folder / "uninterrupted")


def test_one_center_behind(second, uninterrupted):
    """Killed between the averaging and its resume point: the others go back to before the averaging with it."""
    assert digests(second["behind"]) == uninterrupted


def test_what_a_codec_owes_is_resumed(folder, first, second):
    """int8 with error feedback: what messages lacked before the interruption is added after it."""
    whole = digests(first["int8"])
    first["int8, two"].ok()
    assert digests(second["int8, and two"]) == whole
    assert lines(folder / "int8-parts") == lines(folder / "int8")
    assert len({line.split("weights ")[1] for line in whole if "weights" in line}) == 1, "one model on all ranks"


def test_with_more_ranks_and_with_fewer(launch, folder):
    """Data centers may grow and shrink: other batches, one shared model all the same, and no round twice."""
    run = folder / "grows"
    for rounds, ranks in ((1, 2), (2, 4), (3, 2)):
        done = train(launch, run, rounds, ranks=ranks, exchange={})
        told = {line.split(" ", 2)[2] for line in digests(done) if "shared " in line or "place " in line}
        assert len(told) == 2, done.out
        assert len({line for line in digests(done) if "generators " in line}) == ranks
        if rounds > 1:
            assert f"goes on with {ranks // 2} rank(s) instead of {2 if ranks == 2 else 1}" in done.err
    assert [line["round"] for line in lines(run)] == [0, 1, 2]


def test_not_in_the_middle_of_an_epoch(launch, folder):
    run = folder / "middle"

    def written():
        return {path: path.stat().st_mtime_ns for path in run.glob("centers/*/resume-*")}

    stop = when_trained(run, 1, lambda process: process.send_signal(signal.SIGUSR1), patience=120)
    train(launch, run, ROUNDS, pause=0.5, during=stop, ranks=2, exchange={})
    points = written()
    assert any("batch" in path.name for path in points), points
    done = train(launch, run, ROUNDS, exchange={})
    assert done.code == 1 and "from the middle of an epoch" in done.err, done.err
    assert not done.orphans and points == written()
