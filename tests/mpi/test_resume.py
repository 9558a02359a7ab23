"""An interrupted run ends with the bits of one that was not."""

import json
import shutil
import signal
import time

import pytest

pytestmark = pytest.mark.mpi
RANKS = 4  # 2 data centers x 2


def digests(finished):
    return sorted(line for line in finished.ok().splitlines() if line.startswith("rank"))


def lines(folder):
    """rounds.jsonl without what a clock measured."""
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        for center in record["centers"]:
            for key in ("train_seconds", "wait_seconds", "exchange_seconds"):
                del center[key]
    return records


@pytest.fixture(scope="module")
def uninterrupted(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, digests(launch(RANKS, "resume.py", folder, 4, "keep"))


def test_all_ranks_hold_one_model(uninterrupted):
    _, found = uninterrupted
    weights = {line.split("weights ")[1] for line in found if "weights" in line}
    assert len(weights) == 1 and len(found) == 5 * RANKS


def test_four_rounds_are_two_and_two(launch, tmp_path, uninterrupted):
    launch(RANKS, "resume.py", tmp_path, 2, "keep").ok()
    assert digests(launch(RANKS, "resume.py", tmp_path, 4, "keep")) == uninterrupted[1]
    assert lines(tmp_path) == lines(uninterrupted[0])
    assert [line["round"] for line in lines(tmp_path)] == [0, 1, 2, 3]
    assert lines(tmp_path)[-1]["local_epochs"] > 2, "the setting must double T at least once"


def test_killed_in_mid_round(launch, tmp_path, uninterrupted):
    def kill(process):
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("centers/dc0/resume-round000001-epoch000004.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None, "the run never came that far"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)

    killed = launch(RANKS, "resume.py", tmp_path, 4, "keep", 0.05, during=kill)
    assert killed.code != 0
    assert len(lines(tmp_path)) < 4
    assert digests(launch(RANKS, "resume.py", tmp_path, 4, "keep")) == uninterrupted[1]
    assert lines(tmp_path) == lines(uninterrupted[0])


def test_one_center_behind(launch, tmp_path, uninterrupted):
    """Killed between the averaging and its resume point: the others go back to before the averaging with it."""
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    newest = max((tmp_path / "centers" / "dc1").glob("resume-round000004-*.ckpt"))
    newest.unlink()
    assert digests(launch(RANKS, "resume.py", tmp_path, 4, "keep")) == uninterrupted[1]


def test_what_a_codec_owes_is_resumed(launch, tmp_path):
    """int8 with error feedback: what messages lacked before the interruption is added after it."""
    env = {"TEST_SETTINGS": '{"exchange": {"codec": "int8"}}'}
    whole = digests(launch(RANKS, "resume.py", tmp_path / "whole", 4, "keep", env=env))
    launch(RANKS, "resume.py", tmp_path / "parts", 2, "keep", env=env).ok()
    assert digests(launch(RANKS, "resume.py", tmp_path / "parts", 4, "keep", env=env)) == whole
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert len({line.split("weights ")[1] for line in whole if "weights" in line}) == 1, "one model on all ranks"
