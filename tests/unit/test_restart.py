"""What follows from a failure, the places of rehearsed faults, and which files of a run can be trusted."""

import pytest
import torch

from colearn_hpc.errors import ConfigurationError, FingerprintError
from colearn_hpc.protocol.failures import Failure, RestartPolicy
from colearn_hpc.trainer.fingerprint import check_unchanged
from colearn_hpc.trainer.inject import Fault, count_fired
from colearn_hpc.trainer.resume_points import damage_of, path_of, sound_points


def failure(rank=0, text="KeyError: 'x'", place=(1, 0, 3), line="KeyError at a.py:5", **more):
    return Failure(rank, text, line, place, more.pop("restartable", True), **more)


def felt(rank):
    """A peer that only noticed that another rank was gone."""
    return failure(rank, text="", line="RuntimeError at b.py:1")


def test_the_cause_is_told_and_not_what_its_peers_felt():
    verdict = RestartPolicy().judge([felt(0), failure(1), felt(2)])
    assert (verdict.action, verdict.text, verdict.number) == ("restart", "KeyError: 'x'", 1)


def test_the_same_error_at_the_same_batch_is_not_tried_again():
    policy = RestartPolicy(limit=5)
    assert policy.judge([failure()]).action == "restart"
    verdict = policy.judge([failure()])
    assert verdict.action == "stop" and "would come again" in verdict.text


@pytest.mark.parametrize("other", [{"place": (1, 0, 4)}, {"line": "KeyError at a.py:6"}, {"rank": 1}])
def test_another_error_is_tried_again(other):
    policy = RestartPolicy()
    policy.judge([failure()])
    assert policy.judge([failure(**other)]).number == 2


def test_restarts_are_counted_by_round():
    policy = RestartPolicy(limit=2)
    steps = [(1, 0, 1), (1, 0, 2), (2, 0, 3), (2, 0, 4), (2, 0, 5)]
    actions = [policy.judge([failure(place=place)]).action for place in steps]
    assert actions == ["restart"] * 4 + ["stop"]


def test_continue_without():
    policy = RestartPolicy(limit=0, on_failure="continue_without")
    assert policy.judge([failure()]).action == "miss the round"
    # The round's mean holds this data center's part already: there is nothing left to miss.
    assert policy.judge([failure(averaged=True)]).action == "stop"


def test_one_rank_that_cannot_begin_again_ends_it_for_all():
    assert RestartPolicy().judge([failure(), failure(1, restartable=False)]).action == "stop"


def test_faults_are_read():
    text = "hang@center=dc1,rank=1,round=2,epoch=3,step=4,at=validation,seconds=1.5"
    ordered = Fault(
        text, "hang", "dc1", rank=1, round=2, epoch=3, step=4, at="validation", times=1, seconds=1.5, device="eth0"
    )
    assert Fault.parse(text) == ordered


@pytest.mark.parametrize(
    "text",
    ["kill", "explode@center=dc0", "kill@rank=1", "kill@center=dc0,step=x", "kill@center=dc0,at=night", "kill@x"],
)
def test_faults_that_cannot_be_read(text):
    with pytest.raises(ConfigurationError, match="cannot be read; write"):
        Fault.parse(text)


def test_fired_faults_are_counted(tmp_path):
    file = tmp_path / "faults.jsonl"
    assert count_fired(file) == {}
    file.write_text('{"fault": "a"}\n{"fault": "b"}\n{"fault": "a"}\n')
    assert count_fired(file) == {"a": 2, "b": 1}


def test_damage_is_seen(tmp_path):
    """Any byte of a tensor, a cut end, an empty file."""
    sound = path_of(tmp_path, 1, 2)
    whole = {"state_dict": {"weights": torch.randn(5000)}, "pytorch-lightning_version": "2.6.6", "loops": {}}
    torch.save(whole | {"callbacks": {"CoLearning": {"averaging": {}}}}, sound)
    assert damage_of(sound) == ""
    content = sound.read_bytes()
    flipped, cut, empty = (path_of(tmp_path, 1, epochs) for epochs in (3, 4, 5))
    flipped.write_bytes(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:])
    cut.write_bytes(content[: len(content) // 2])
    empty.touch()
    assert all(damage_of(path) for path in (flipped, cut, empty))
    assert list(sound_points(tmp_path).values()) == [sound]


def test_a_run_is_resumed_with_its_own_settings():
    began = {"CoLearning(decay)": "0.25", "CoLearning(rounds)": "4", "torch version": "2.13.0"}
    check_unchanged({}, began)  # a point of an older version, without fingerprint
    check_unchanged(began, began | {"CoLearning(rounds)": "8", "torch version": "2.14.0"})
    with pytest.raises(FingerprintError, match=r"began with `CoLearning\(decay\) = 0.25` .* with `0.5`"):
        check_unchanged(began, began | {"CoLearning(decay)": "0.5"})
