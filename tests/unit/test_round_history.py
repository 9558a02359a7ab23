"""What a rule for the local epochs is told: the losses, and all rounds before."""

import math
from dataclasses import replace

import pytest
import torch

from colearn_hpc import CoLearning
from colearn_hpc.algorithm import IncreasingEpochs, PlateauEpochs
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.plain import PlainError, decode, encode
from colearn_hpc.protocol.run import Decision, PastRound, RoundPlace, Run, RunState, StopReason
from colearn_hpc.trainer.deciding import decider
from colearn_hpc.trainer.round_end import Contribution, Contributions
from colearn_hpc.trainer.tally import Tally

PAST = PastRound(0, 2, 0.5, 2, 0.1, 1.5)


def test_epsilon_auto_needs_no_number():
    assert CoLearning(epsilon="auto", local_epochs=2).settings.rule == PlateauEpochs(2)
    assert CoLearning(epsilon=0.5, local_epochs=2).settings.rule == IncreasingEpochs(2, 0.5)
    with pytest.raises(ConfigurationError, match="must be a number or \"auto\"; found 'automatic'"):
        CoLearning(epsilon="automatic")


def test_a_tally_is_one_sum_across_a_resume():
    losses = torch.rand(8, generator=torch.Generator().manual_seed(1))
    whole, first, second = Tally(), Tally(), Tally()
    for loss in losses:
        whole.add(1, loss, 3)
    for loss in losses[:5]:
        first.add(1, loss, 3)
    second.restore([first.state], 0, 1)
    for loss in losses[5:]:
        second.add(1, loss, 3)
    assert second.state == whole.state
    assert whole.state[0] / whole.state[1] == pytest.approx(float(losses.double().mean()))


def test_a_tally_of_other_ranks_is_the_first_ones():
    parts = [Tally() for _ in range(3)]
    for rank, part in enumerate(parts):
        part.restore([(1.0, 2), (3.0, 4)], rank, 3)
    assert [part.state for part in parts] == [(4.0, 6), (0, 0), (0, 0)]


def test_what_is_no_loss_is_left_out_and_accumulation_is_undone():
    tally = Tally()
    for loss in (None, {}, torch.ones(2), "loss"):
        tally.add(1, loss, 4)
    assert tally.state == (0.0, 0.0)
    tally.add(1, torch.tensor(0.5), 0, accumulated=4)
    assert tally.state == (2.0, 1.0)


def test_a_tally_counts_what_is_not_reported_yet():
    tally = Tally(examples=100)
    assert tally.since_report() == (0, 0) and tally.loss is None
    tally.add(7, torch.tensor(0.5, requires_grad=True), 4)
    tally.add(8, torch.tensor(0.25), 0)
    assert (tally.batch, tally.loss, tally.examples, tally.since_report()) == (8, 0.25, 104, (2, 4))
    tally.reported()
    tally.begin_round()
    assert tally.since_report() == (0, 0) and tally.examples == 104 and tally.state == (0.0, 0.0)
    tally.add(9, torch.ones(2), 4)
    assert tally.loss is None and tally.since_report() == (1, 4)


def contribution(loss, examples=8, known=1):
    return Contribution(10, examples, RoundPlace(1, 2, 3), "", loss, known)


def test_the_loss_is_weighted_like_the_models():
    given = {0: contribution(1.0, 8), 1: contribution(2.0, 24), 2: contribution(math.nan)}
    assert Contributions(given, (0, 1, 2), 3, "uniform").loss == pytest.approx(1.5)
    assert Contributions(given, (0, 1, 2), 3, "examples").loss == pytest.approx(1.75)
    assert math.isnan(Contributions({2: given[2]}, (2,), 3, "uniform").loss)


class Remembers:
    """A rule that notes what it is told."""

    def first(self):
        return 2

    def next(self, outcome):
        self.outcome = outcome
        return 5


@pytest.mark.parametrize("known", [0, 1])
def test_the_rule_is_told_all_rounds_and_the_left_out_what_they_missed(known):
    rule, state = Remembers(), replace(RunState.new("dc0", 2), history=(PAST,))
    round_ = replace(state.round, index=1, rates=(0.1, 0.05))
    given = Contributions({0: contribution(0.75)}, (0, 1), 2, "uniform", known)
    decide = decider(Run(state, rounds=None, overlap=False), rule, round_, 4)
    decision = Decision.from_plain(decode(encode(decide(0.25, given))))
    ended = PastRound(1, 2, 0.25, 4, 0.05, 0.75)
    assert decision == Decision(0.25, 5, None, (PAST, ended)[known:])
    assert (rule.outcome.loss, rule.outcome.history[0].loss, len(rule.outcome.history)) == (0.75, 1.5, 1)


def test_a_run_remembers_what_decisions_tell():
    state = replace(RunState.new("dc0", 2), history=(PAST,))
    run = Run(state, rounds=None, overlap=False)
    later = PastRound(1, 2, 0.25, 4, 0.1, 1.0)
    run._remember(Decision(0.25, 2, None, (replace(PAST, loss=9.0), later)))
    assert run.state.history == (replace(PAST, loss=9.0), later)
    assert RunState.from_plain(decode(encode(run.state.to_plain()))).history == run.state.history
    before = {key: value for key, value in run.state.to_plain().items() if key != "history"}
    assert RunState.from_plain(before).history == (), "a resume point of an earlier version"


def test_decisions_of_an_earlier_version_are_read():
    assert Decision.from_plain([0.5, 2, "ROUNDS"]) == Decision(0.5, 2, StopReason.ROUNDS)


@pytest.mark.parametrize("past", ["no", [[1, 2]], [[0, 1, 0.5, 2, 0.1, "low"]], [["0", 1, 0.5, 2, 0.1, 1.0]]])
def test_what_is_no_past(past):
    with pytest.raises(PlainError):
        Decision.from_plain([0.5, 2, None, past])
