"""What is handed to a data center that joins a run, in one process."""

from types import SimpleNamespace

import pytest
import torch

from colearn_hpc.algorithm.local_correction import Scaffold
from colearn_hpc.errors import CheckpointError, ConfigurationError
from colearn_hpc.federation.wire import pack, unpack
from colearn_hpc.protocol.messages import Arrival, Outcome, Present, Topic, TopicKind, to_plain
from colearn_hpc.protocol.plain import PlainError
from colearn_hpc.protocol.run import PastRound, Run, RunState
from colearn_hpc.trainer.correcting import Corrector
from colearn_hpc.trainer.joining import _filled, _form, check_can_join


def test_a_state_is_described_without_its_numbers():
    state = {"previous": torch.arange(3.0), "outer": None, "layout": [["a", 3]], "sizes": {"a": 0.5}}
    sent, received = [], []
    found = _filled(_form(state, sent), received)
    assert [(one.shape, one.dtype) for one in received] == [(one.shape, one.dtype) for one in sent]
    for target, source in zip(received, sent, strict=True):
        target.copy_(source)
    assert torch.equal(found.pop("previous"), state.pop("previous")) and found == state


def test_all_that_is_handed_on_can_be_said_at_a_meeting():
    """What nests most is SCAFFOLD's common variate; between sites it is inside an outcome, inside an answer."""
    corrector = Corrector(Scaffold())
    corrector._common["net.weight"] = torch.ones(2, 3)
    form = _form({"previous": torch.ones(6), "correction": corrector.handed_on()}, [])
    topic = Topic(TopicKind.JOINING, detail="round 3")
    said = to_plain(Outcome(topic, (Arrival(topic, Present([["where"], "head", ["lyon"], form])),)))
    assert unpack(pack({"outcome": said})) == {"outcome": said}


@pytest.mark.parametrize(
    "form",
    [
        b"bytes",
        {"tensor": "float32"},
        {"tensor": "object", "shape": [1]},
        {"keys": [1], "values": [2]},
        {"keys": ["a"], "values": []},
        {1: 2},
    ],
)
def test_what_has_another_form(form):
    with pytest.raises(CheckpointError, match="another form"):
        _filled(form, [])


def test_a_run_is_taken_over_where_its_round_began():
    past = PastRound(0, 1, 0.5, 1, 0.1)
    known = RunState.new("lyon", 2)
    before = Run(known, rounds=5, overlap=False)
    before.join([1, 2, 1, 0.5, [past.to_plain()]], 1)
    told = before.handed_on()
    before.start_epoch(None)
    before.epoch_trained()
    before.count_epoch()
    assert before.state.epochs_done == 2 and before.handed_on() == told, "also when some of the round is trained"
    after = Run(RunState.new("rome", 1), rounds=5, overlap=False)
    after.join(told, 1)
    state = after.state
    assert (state.round.index, state.round.chosen, state.epochs_done, state.change) == (1, 2, 1, 0.5)
    assert state.history == (past,) and state.lines == state.rounds_done == 1 and state.round.report.name == "rome"
    for wrong in (told[:-1], [2, *told[1:]], [1, 0, *told[2:]], [1, 2, 1, "0.5", []], None):
        with pytest.raises(PlainError):
            Run(RunState.new("rome", 1), rounds=5, overlap=False).join(wrong, 1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("overlap", True), ("optimizer_state", "average"), ("schedule", None)],
)
def test_what_cannot_be_handed_on(setting, value):
    usual = {"overlap": False, "optimizer_state": "reset", "combine": "weights", "schedule": "clr"}
    trainer, place = SimpleNamespace(lr_scheduler_configs=[1]), SimpleNamespace(means=SimpleNamespace(sharded=False))
    check_can_join(trainer, SimpleNamespace(**usual), place)
    with pytest.raises(ConfigurationError, match="federation remove"):
        check_can_join(trainer, SimpleNamespace(**usual | {setting: value}), place)
