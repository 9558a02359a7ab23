"""Every row of the round's table in protocol/README.md, and every input that no row allows."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import colearn_hpc.protocol
from colearn_hpc.errors import CheckpointError
from colearn_hpc.protocol.meeting import ProtocolError
from colearn_hpc.protocol.plain import PlainError
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.run import ANSWERS, Decision, RoundPlace, Run, RunState, Shown, Step, StopReason

README = Path(colearn_hpc.protocol.__file__).with_name("README.md")
REPORT = CenterReport("dc0", examples=64, wait_seconds=2.0)
GO_ON, LAST = Decision(0.5, 2), Decision(0.25, 2, StopReason.ROUNDS)
OTHERS = RoundPlace(round=7, local_epochs=3, epochs_done=20)


def a_run(local_epochs=2, overlap=False, rounds=None, state=None):
    return Run(state or RunState.new("dc0", local_epochs), rounds=rounds, overlap=overlap)


def train(run, epochs=1, close=True):
    """Local epochs in which nothing becomes due but at the last one's end; returns the step there."""
    for left in reversed(range(epochs)):
        run.start_epoch(None)
        run.rate(0.1)
        run.trained(8, 1.0)
        step = run.epoch_trained()
        if left or close:
            assert step is None
            run.count_epoch()
            assert run.close_epoch() is None
    return step


def at_end(local_epochs=2, **settings):
    """A run whose first round's last batch is trained."""
    run = a_run(local_epochs, **settings)
    train(run, local_epochs, close=False)
    return run


def under_way(local_epochs=2):
    """A run whose first mean has begun, in the epoch in which it did."""
    run = at_end(local_epochs, overlap=True)
    assert run.mean_begun(REPORT) is None
    return run


def travelling(local_epochs=2):
    """A run in its second round, whose first mean is under way."""
    run = under_way(local_epochs)
    run.count_epoch()
    assert run.close_epoch() is Step.ASK_WHO_GOES_ON
    assert run.going_on(True) is None
    return run


def late(local_epochs=2):
    """A run whose first mean has come in the second round's first epoch."""
    run = travelling(local_epochs)
    assert train(run, close=False) is Step.FINISH_MEAN
    run.mean_finished(Decision(0.5, local_epochs), REPORT, None)
    return run


def resumed(run):
    """The run's state as a checkpoint holds it, in a new process that goes on with it."""
    again = Run(RunState.from_plain(json.loads(json.dumps(run.state.to_plain()))), rounds=run._rounds, overlap=True)
    assert again.resumed() is Step.BEGIN_MEAN
    return again


def refused(tell, run, error=ProtocolError):
    before = run.state
    with pytest.raises(error):
        tell()
    assert run.state == before
    return "refused"


# --- the rows: each brings a run to where it stands, and returns the next step --------------------------


def row_1():
    run = a_run(4)
    assert run.start_epoch(3) is None
    assert (run.state.round.chosen, run.state.round.epochs, run.state.round.rates) == (4, 3, ())


def row_1a():
    run = a_run(4)
    train(run)
    assert run.start_epoch(2) is None
    assert (run.state.round.epochs, run.state.round.rates) == (4, (0.1,))


def row_2():
    run = travelling()
    before = run.state
    step = run.epoch_trained()
    assert run.state == replace(before, due=step)
    return step


def row_3():
    return train(a_run(1), close=False)


def row_4():
    return train(a_run(1, overlap=True), close=False)


def row_5():
    run = at_end()
    run.mean_taken(GO_ON, REPORT)
    before = run.state
    step = run.epoch_trained()
    assert run.state == before
    return step


def is_taken(run, decision):
    state = run.state
    assert [(r.index, r.decision, r.report) for r in state.unlogged] == [(0, decision, REPORT)]
    assert (state.shown, state.dirty, state.change) == (Shown.SHARED, False, decision.change)
    assert state.stop is decision.stop and state.mean_is_taken


def row_6():
    run = at_end()
    step = run.mean_taken(GO_ON, REPORT)
    is_taken(run, GO_ON)
    assert run.state.unlogged[0].epochs_done == 2
    return step


def row_6a():
    run = at_end()
    step = run.mean_taken(GO_ON, REPORT, OTHERS)
    state = run.state
    assert (state.round.index, state.epoch, state.epochs_done, state.round.epochs) == (7, 2, 20, 3)
    assert [(r.index, r.epochs_done) for r in state.unlogged] == [(7, 21)]
    return step


def row_6b():
    run = a_run(2)
    train(run)
    run.trainer_ended()
    step = run.mean_taken(LAST, REPORT)
    assert run.state.unlogged[0].epochs_done == 1  # the epoch has been counted
    return step


def row_6c():
    run = at_end(overlap=True)
    step = run.mean_taken(LAST, REPORT)
    is_taken(run, LAST)
    return step


def row_6d():
    run = travelling()
    train(run, close=False)
    run = resumed(run_without_due(run))
    step = run.mean_taken(GO_ON, REPORT)
    state = run.state
    assert [(r.index, r.decision) for r in state.unlogged] == [(0, GO_ON)] and state.travelling is None
    assert (state.dirty, state.stop, state.shown) == (False, StopReason.TRAINER_ENDED, Shown.SHARED)
    return step


def run_without_due(run):
    """As a checkpoint in the middle of the epoch has it."""
    return a_run(state=replace(run.state, due=None))


def row_7():
    run = at_end(overlap=True)
    step = run.mean_begun(REPORT)
    state = run.state
    assert (state.travelling.index, state.travelling.epochs_done, state.travelling.report) == (0, 2, REPORT)
    assert (state.dirty, state.shown, state.unlogged) == (False, Shown.LOCAL, ())
    return step


def row_7a():
    run = resumed(travelling())
    step = run.mean_begun(REPORT)
    assert (run.state.travelling.index, run.state.round.index) == (0, 1)
    return step


def row_8():
    run = travelling()
    train(run, close=False)
    step = run.mean_finished(Decision(0.5, 4), REPORT, 5)
    state = run.state
    assert state.travelling is None and [r.index for r in state.unlogged] == [0]
    assert (state.shown, state.change, state.dirty) == (Shown.SHARED, 0.5, True)
    assert (state.round.chosen, state.round.epochs) == (4, 3)  # of 5 epochs 2 are done
    return step


def row_8a():
    run = under_way()
    run.count_epoch()
    run.close_epoch()
    run.going_on(False)
    step = run.mean_finished(GO_ON, REPORT, None)
    assert (run.state.dirty, run.state.stop) == (False, StopReason.TRAINER_ENDED)
    assert [r.index for r in run.state.unlogged] == [0]
    return step


def row_8b():
    run = travelling(1)
    train(run, close=False)
    step = run.mean_finished(Decision(0.5, 1), REPORT, None)
    assert [r.index for r in run.state.unlogged] == [0] and run.state.shown is Shown.SHARED
    return step


def row_9():
    run = a_run(2)
    run.start_epoch(None)
    step = run.count_epoch()
    assert (run.state.epoch, run.state.epochs_done) == (1, 1)
    return step


def counted(decision=GO_ON, **settings):
    """A run whose first mean is taken, and whose epoch is counted."""
    run = at_end(**settings)
    run.mean_taken(decision, REPORT)
    run.count_epoch()
    return run


def row_10():
    return counted().close_epoch()


def row_10a():
    run = a_run(2)
    train(run)
    before = run.state
    step = run.close_epoch()
    assert run.state == before
    return step


def row_11():
    run = counted()
    run.close_epoch()
    step = run.round_logged(False)
    state = run.state
    assert (state.round.index, state.epoch, state.round.chosen, state.rounds_done) == (1, 0, 2, 1)
    assert (state.shown, state.unlogged, state.stop) == (Shown.LOCAL, (), None)
    return step


def row_12():
    run = late()
    run.count_epoch()
    run.close_epoch()
    step = run.round_logged(False)
    assert (run.state.round.index, run.state.epoch, run.state.shown) == (1, 1, Shown.LOCAL)
    return step


def row_12a():
    run = late(1)
    run.mean_taken(LAST, REPORT)
    run.count_epoch()
    run.close_epoch()
    step = run.round_logged(False)
    assert [r.index for r in run.state.unlogged] == [1] and run.state.shown is Shown.SHARED
    return step


def row_13():
    run = under_way()
    run.count_epoch()
    step = run.close_epoch()
    assert (run.state.round.index, run.state.epoch, run.state.rounds_done) == (1, 0, 0)
    run = late(1)
    run.mean_begun(REPORT)
    run.count_epoch()
    run.close_epoch()
    assert run.round_logged(False) is step
    assert (run.state.round.index, run.state.epoch, run.state.rounds_done) == (2, 0, 1)
    return step


def asked():
    run = under_way()
    run.count_epoch()
    run.close_epoch()
    return run


def row_14():
    run = asked()
    step = run.going_on(True)
    assert run.state.travelling.index == 0 and not run.state.leaving
    return step


def row_14a():
    run = asked()
    step = run.going_on(False)
    assert run.state.leaving
    return step


def row_14b():
    run = late(1)
    run.mean_begun(REPORT)
    run.count_epoch()
    run = resumed(run)
    assert run.mean_begun(REPORT) is Step.ASK_WHO_GOES_ON
    step = run.going_on(True)
    assert [r.index for r in run.state.unlogged] == [0]
    assert (run.state.travelling.index, run.state.round.index) == (1, 2)
    return step


def row_15():
    run = counted(LAST)
    run.close_epoch()
    step = run.round_logged(False)
    assert run.close_epoch() is step
    run = counted()
    run.close_epoch()
    assert run.round_logged(anyone_leaves=True) is step and run.state.stop is StopReason.TRAINER_ENDED
    return step


def row_16(overlap=False):
    run = a_run(3, overlap=overlap)
    train(run)
    step = run.trainer_ended()
    assert run.state.over
    assert run.place(None, leaving=False) == RoundPlace(0, 3, 1, leaving=True, last=False)
    return step


def row_16a():
    run = travelling()
    run.trained(8, 1.0)
    return refused(run.trainer_ended, run)


def row_16b():
    return row_16(overlap=True)


def row_16c():
    run = counted()
    run.close_epoch()
    run.round_logged(False)
    before = run.state
    step = run.trainer_ended()
    assert run.state == before
    return step


def row_17():
    run = travelling()
    again = resumed(run)
    assert again.place(None, leaving=True) == RoundPlace(0, 2, 1, leaving=True, last=False)
    assert again.place(2, leaving=False).last
    run = under_way()
    run.count_epoch()
    not_closed = resumed(run)
    assert (not_closed.state.round.index, not_closed.state.epoch, not_closed.state.travelling.index) == (1, 0, 0)
    return again.state.due


def row_17a():
    for run in (counted(), late()):
        if not run.state.epoch:
            run.count_epoch()
        step = run.resumed()
        assert run.state.unlogged[0].index == 0
    return step


def row_17b():
    run = counted(LAST)
    run.close_epoch()
    run.round_logged(False)
    again = a_run(rounds=1, state=run.state)
    step = again.resumed()
    assert again.is_finished and again.state.stop is StopReason.ROUNDS
    return step


def row_17c():
    run = counted(LAST)
    run.close_epoch()
    run.round_logged(False)
    again = a_run(rounds=2, state=run.state)
    step = again.resumed()
    assert not again.is_finished and again.state.stop is None
    return step


def row_17d():
    run = at_end()
    return refused(run.resumed, run, CheckpointError)


def row_18():
    failed = a_run(4)
    train(failed)
    for run in (failed, at_end(4)):  # in mid-round, and where the mean was due already
        step = run.miss_round("out of luck", 3)
        state = run.state
        assert (state.epoch, state.epochs_done) == (3, 3) and state.round.report.absent == "out of luck"
        run.mean_taken(GO_ON, replace(REPORT, absent="out of luck"))
        run.count_epoch()
        assert run.close_epoch() is Step.LOG_ROUND
        assert run.round_logged(False) is None and run.state.round.index == 1
    return step


def row_18a():
    run = at_end()
    run.mean_taken(GO_ON, REPORT)
    refused(lambda: run.miss_round("why", None), run)
    run = travelling()
    return refused(lambda: run.miss_round("why", None), run)


def row_19():
    run = at_end()
    return refused(run.close_epoch, run)


def row_19a():
    run = a_run()
    return refused(lambda: run.going_on(True), run)


ROWS = {name.removeprefix("row_"): row for name, row in list(globals().items()) if name.startswith("row_")}


def table():
    """Row -> cells, of the round's table."""
    text = README.read_text().split("## The round")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {row: rest for row, *rest in cells}


def test_the_table_has_a_row_for_every_transition():
    assert list(table()) == list(ROWS)
    assert all(len(cells) == 4 for cells in table().values())


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    stated = table()[row][-1]
    step = ROWS[row]()
    assert stated == (step.value if isinstance(step, Step) else step or "–")


# --- what no row allows ---------------------------------------------------------------------------------

INPUTS = {
    "start_epoch": (None,),
    "cut_block": (0,),
    "rate": (0.1,),
    "epoch_trained": (),
    "count_epoch": (),
    "close_epoch": (),
    "trainer_ended": (),
    "miss_round": ("why", None),
    "mean_taken": (GO_ON, REPORT),
    "mean_begun": (REPORT,),
    "mean_finished": (GO_ON, REPORT, None),
    "going_on": (True,),
    "round_logged": (False,),
}
DUE = {
    None: a_run,
    Step.TAKE_MEAN: at_end,
    Step.BEGIN_MEAN: lambda: at_end(overlap=True),
    Step.FINISH_MEAN: lambda: (run := travelling(), train(run, close=False))[0],
    Step.ASK_WHO_GOES_ON: asked,
    Step.LOG_ROUND: lambda: (run := counted(), run.close_epoch())[0],
}
ALLOWED = {None: INPUTS.keys() - {name for names in ANSWERS.values() for name in names}}
ALLOWED |= {step: set(names) | ({"miss_round"} if step is Step.TAKE_MEAN else set()) for step, names in ANSWERS.items()}


def test_every_input_is_tried():
    told = {name for name, value in vars(Run).items() if callable(value) and not name.startswith("_")}
    free = {"note", "report", "report_shared", "trained", "place", "place_of", "decision", "resumed"}
    free |= {"handed_on", "join"}  # before the run begins here
    assert told - free == set(INPUTS)
    assert set(DUE) == {None, *ANSWERS} and set(ANSWERS) == set(Step) - {Step.STOP_TRAINER}


@pytest.mark.parametrize("happened", INPUTS)
@pytest.mark.parametrize("due", DUE, ids=lambda step: step.name if step else "nothing")
def test_only_what_answers_is_taken(due, happened):
    run = DUE[due]()
    assert run.state.due is due
    before = run.state
    if happened in ALLOWED[due]:
        getattr(run, happened)(*INPUTS[happened])
        return
    with pytest.raises(ProtocolError, match=f"^{happened} came where the run expects .*; please report this$"):
        getattr(run, happened)(*INPUTS[happened])
    assert run.state == before


@pytest.mark.parametrize("due", [step for step in DUE if step], ids=lambda step: step.name)
def test_a_checkpoint_with_something_due_is_not_continued(due):
    with pytest.raises(CheckpointError, match=f"where the run was to {due.value}, .* continue from a resume point"):
        DUE[due]().resumed()


# --- steps ----------------------------------------------------------------------------------------------


def in_steps(first=4, overlap=False):
    return Run(RunState.new("dc0", first), rounds=None, overlap=overlap, block=first)


def blocks_of(run, limit=None):
    """Train until a step is due; returns it, and the steps of the blocks until then."""
    blocks, step = [], None
    while step is None:
        run.start_epoch(limit)
        blocks.append(run.state.block)
        run.rate(0.5)
        run.rate(0.1)
        run.trained(8, 1.0)
        step = run.epoch_trained()
        if step is None:
            run.count_epoch()
            assert run.close_epoch() is None
    return step, blocks


def ended(run, next_steps, step=Step.TAKE_MEAN):
    assert step is Step.TAKE_MEAN
    run.mean_taken(Decision(0.5, next_steps), REPORT)
    run.count_epoch()
    assert run.close_epoch() is Step.LOG_ROUND
    assert run.round_logged(False) is None


def test_a_round_of_steps_has_blocks_of_the_first_rounds_length():
    run = in_steps()
    step, blocks = blocks_of(run)
    assert blocks == [4] and run.state.round.rates == (0.1,)
    ended(run, 10, step)
    assert (run.state.epoch, run.state.epochs_done) == (0, 4)
    step, blocks = blocks_of(run)
    assert blocks == [4, 4, 2] and run.state.round.rates == (0.1, 0.1, 0.1)
    assert run.place(None, leaving=False) == RoundPlace(1, 10, 12)
    ended(run, 3, step)
    step, blocks = blocks_of(run, limit=16)  # the Trainer's max_steps
    assert blocks == [2] and run.place(16, leaving=False) == RoundPlace(2, 2, 14, last=True)
    ended(run, 3, step)
    assert run.state.epochs_done == 16


def test_a_block_that_was_cut_short_is_filled_up():
    run = in_steps()
    run.start_epoch(None)
    run.rate(0.3)
    run.trained(8, 1.0)
    run.cut_block(3)
    assert run.epoch_trained() is None
    run.count_epoch()
    assert (run.state.epoch, run.state.epochs_done) == (3, 3)
    step, blocks = blocks_of(run)
    assert (step, blocks, run.state.round.rates) == (Step.TAKE_MEAN, [1], (0.1,))


def test_a_round_of_steps_that_is_missed():
    run = in_steps()
    assert run.miss_round("why", None) is Step.TAKE_MEAN
    run.mean_taken(GO_ON, REPORT, RoundPlace(round=7, local_epochs=10, epochs_done=48))
    assert (run.state.epoch, run.state.block, run.state.epochs_done) == (8, 2, 48)
    assert run.state.unlogged[0].epochs_done == 50
    run.count_epoch()
    assert (run.state.epoch, run.state.epochs_done) == (10, 50)


def test_with_overlap_a_round_has_at_least_its_first_blocks_steps():
    run = in_steps(overlap=True)
    step, _ = blocks_of(run)
    assert step is Step.BEGIN_MEAN and run.mean_begun(REPORT) is None
    run.count_epoch()
    assert run.close_epoch() is Step.ASK_WHO_GOES_ON and run.going_on(True) is None
    assert run.place_of(run.state.travelling) == RoundPlace(0, 4, 0)
    step, blocks = blocks_of(run)
    assert (step, blocks) == (Step.FINISH_MEAN, [4])
    assert run.mean_finished(Decision(0.5, 3), REPORT, None) is Step.BEGIN_MEAN
    assert run.state.round.epochs == 4


# --- notes ----------------------------------------------------------------------------------------------


def test_notes():
    run = a_run()
    run.note(run_id="abc", settings={"rounds": "3"})
    run.note(data={"examples": "64"})
    assert (run.state.run_id, run.state.settings, run.state.data) == ("abc", {"rounds": "3"}, {"examples": "64"})
    with pytest.raises(ProtocolError, match=r"not to be noted: \['rank'\]"):
        run.note(run_id="other", rank=1)
    assert run.state.run_id == "abc"


def test_metrics_of_the_shared_model_belong_to_the_round_whose_mean_came_last():
    run = late()
    run.report_shared({"val_loss": 0.5})
    assert run.state.unlogged[0].report.shared_metrics == {"val_loss": 0.5}
    assert run.state.round.report.shared_metrics == {}
    run = counted()
    run.report_shared({"val_loss": 0.25})
    assert run.state.unlogged[0].report.shared_metrics == {"val_loss": 0.25}


def test_what_is_trained_adds_up():
    run = a_run()
    run.trained(8, 1.0)
    run.trained(4, 0.5)
    report = run.state.round.report
    assert (report.examples, report.train_seconds, run.state.dirty) == (12, 1.5, True)


def test_the_decision():
    run, round_ = a_run(rounds=2), RunState.new("dc0", 1).round
    assert run.decision(round_, 0.5, 2, leaves=False) == Decision(0.5, 2)
    assert run.decision(round_, 0.5, 2, leaves=True).stop is StopReason.TRAINER_ENDED
    assert run.decision(replace(round_, index=1), 0.5, 2, leaves=True).stop is StopReason.ROUNDS
    assert StopReason.ROUNDS.text(2) == "rounds=2"
    assert StopReason.TRAINER_ENDED.text(None) == "a data center's Trainer ended"


# --- plain forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [GO_ON, LAST, OTHERS, RoundPlace(0, 1, 0, leaving=True, last=True)])
def test_plain_forms(value):
    assert type(value).from_plain(json.loads(json.dumps(value.to_plain()))) == value


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (Decision, None),
        (Decision, [0.5, 2]),
        (Decision, ["0.5", 2, None]),
        (Decision, [0.5, 0, None]),
        (Decision, [0.5, 2, "WEATHER"]),
        (Decision, [0.5, 2.0, None]),
        (RoundPlace, [0, 1, 0, False]),
        (RoundPlace, [0, 1, "0", False, False]),
        (RoundPlace, [0, 1, 0, 0, 0]),
        (RoundPlace, {"round": 0}),
    ],
)
def test_what_is_no_plain_form(kind, plain):
    with pytest.raises(PlainError, match=r"^no (decision|place in a run): "):
        kind.from_plain(plain)


# --- states of 0.1.0 ------------------------------------------------------------------------------------

OLD = {
    "run_id": "abc",
    "round": 3,
    "epoch_in_round": 0,
    "epochs_done": 8,
    "rule_epochs": 4,
    "local_epochs": 2,
    "relative_change": 0.5,
    "averaged": False,
    "_untaken": True,
    "data": {"examples": "64"},
    "settings": {"rounds": "3"},
    "rates": [0.1],
    "record": {"name": "dc1", "examples": 8},
    "ended": None,
}


def test_a_state_of_the_first_version():
    state = RunState.from_first_version(OLD)
    assert (state.round.index, state.round.chosen, state.round.epochs, state.round.rates) == (3, 4, 2, (0.1,))
    assert (state.epoch, state.epochs_done, state.dirty, state.change, state.run_id) == (0, 8, True, 0.5, "abc")
    assert state.round.report == CenterReport("dc1", examples=8) and state.travelling is None


def test_a_state_of_the_first_version_with_a_mean_under_way():
    ended = {"round": 2, "local_epochs": 2, "rates": [0.2, 0.1], "epochs_done": 8, "record": {"name": "dc1"}}
    state = RunState.from_first_version(OLD | {"ended": ended})
    assert (state.travelling.index, state.travelling.epochs, state.travelling.epochs_done) == (2, 2, 8)
    assert state.rounds_done == 2
    assert Run(state, rounds=None, overlap=True).resumed() is Step.BEGIN_MEAN


def test_a_state_of_the_first_version_between_mean_and_line():
    with pytest.raises(CheckpointError, match=r"in the middle of a round's end .* continue from a resume point"):
        RunState.from_first_version(OLD | {"averaged": True})
