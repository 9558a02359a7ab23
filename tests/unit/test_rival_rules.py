"""Rivals of equations 3 and 4: rules for rates and local epochs, against loops written from their papers."""

import math
from dataclasses import replace

import pytest

from colearn_hpc.algorithm.learning_rate import CyclicalLR, EpochPosition, LinearLR, WarmUp
from colearn_hpc.algorithm.local_epochs import (
    AdaptiveEpochs,
    DecayingEpochs,
    IncreasingEpochs,
    InSteps,
    LocalEpochsRule,
    PlateauEpochs,
    PostLocalEpochs,
    QuadraticEpochs,
    RoundOutcome,
)


def epochs_of(rule: LocalEpochsRule, changes=(), losses=(), rates=()) -> list[int]:
    """T of every round, as a run would ask for it; the last is that of the round after the last outcome."""
    rounds = max(map(len, (changes, losses, rates)))
    chosen, history, done = [rule.first()], (), 0
    for i in range(rounds):
        done += chosen[-1]
        outcome = RoundOutcome(
            round=i,
            local_epochs=chosen[-1],
            relative_change=changes[i] if changes else 0.1,
            epochs_done=done,
            learning_rate=rates[i] if rates else 0.1,
            loss=losses[i] if losses else math.nan,
            history=history,
        )
        chosen.append(rule.next(outcome))
        history = (*history, replace(outcome, history=()))
    return chosen


# --- rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "steps"), [(0.1, 5), (0.0, 4), (1.0, 3)])
def test_fedswa_falls_along_a_line_and_restarts(decay, steps):
    """The authors' loop: after each of the n steps, lr = (1 - i/n)·lr1 + (i/n)·ρ·lr1."""
    for round_index in range(2):
        rate = 0.3
        for i in range(steps):
            found = 0.3 * LinearLR(decay).factor(EpochPosition(round_index, i, steps, steps * round_index + i))
            assert found == pytest.approx(rate, rel=1e-12)
            rate = (1 - (i + 1) / steps) * 0.3 + (i + 1) / steps * decay * 0.3


def test_fedswa_may_end_at_its_lowest_rate():
    rates = [LinearLR(0.25, first_j=1).factor(EpochPosition(0, e, 3, e)) for e in range(3)]
    assert rates == pytest.approx([0.75, 0.5, 0.25])


def test_warm_up_multiplies_the_schedule_over_the_first_epochs_of_the_run():
    positions = [EpochPosition(done // 2, done % 2, 2, done) for done in range(6)]
    cycle = [0.25 ** (1 / 2), 0.25] * 3
    assert [WarmUp(CyclicalLR(), 3).factor(p) for p in positions] == pytest.approx(
        [cycle[0] / 4, cycle[1] / 2, cycle[2] * 3 / 4, cycle[3], cycle[4], cycle[5]]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearLR(-0.1), "decay .* found -0.1"),
        (lambda: LinearLR(first_j=2), "first_j"),
        (lambda: LinearLR(0, first_j=1), "at rate 0; set first_j=0"),
        (lambda: WarmUp(CyclicalLR(), 0), "at least 1; found 0"),
        (lambda: WarmUp("clr", 2), "no `factor"),
    ],
)
def test_impossible_rates(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- ε chosen by the run ------------------------------------------------------------------------------


def test_plateau_waits_while_the_change_falls_and_doubles_on_a_floor():
    falling = [0.1 * 0.7**i for i in range(12)]
    assert set(epochs_of(PlateauEpochs(2), falling)) == {2}
    floor = [0.1, 0.05, 0.017, 0.016, 0.018, 0.017, 0.0165, 0.018]
    # The pairs of the last five: 8 of 10 fall after round 4, 6 after round 5, 5 after round 6.
    assert epochs_of(PlateauEpochs(2), floor[:7]) == [2, 2, 2, 2, 2, 2, 2, 4]


def test_plateau_asks_only_rounds_of_equal_length():
    """After a doubling a longer round changes the model more; five of the new length are needed again."""
    assert epochs_of(PlateauEpochs(1, window=3), [0.1] * 7) == [1, 1, 1, 2, 2, 2, 4, 4]
    assert epochs_of(PlateauEpochs(1, maximum=3, window=2), [0.1] * 8)[-1] == 3


def test_plateau_has_no_scale():
    changes = [0.3, 0.2, 0.1, 0.11, 0.12, 0.1, 0.13, 0.12, 0.11, 0.12]
    assert epochs_of(PlateauEpochs(1), changes) == epochs_of(PlateauEpochs(1), [1e-6 * c for c in changes])
    assert max(epochs_of(PlateauEpochs(1), changes)) > 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_plateau_never_doubles_on_what_is_no_number(bad):
    assert epochs_of(PlateauEpochs(3, window=3), [0.1, bad, 0.1, 0.1]) == [3] * 5


def test_rounds_with_these_epochs_are_the_last_run_of_them():
    rounds = [RoundOutcome(i, t, 0.1, i, 0.1) for i, t in enumerate([2, 4, 2, 2])]
    last = replace(rounds[3], history=tuple(rounds[:3]))
    assert [seen.round for seen in last.with_these_epochs] == [2, 3]
    assert [seen.round for seen in rounds[0].with_these_epochs] == [0]


# --- rules that argue otherwise -----------------------------------------------------------------------


def test_post_local_switches_once():
    assert epochs_of(PostLocalEpochs(switch=3, after=4), [0.1] * 5) == [1, 1, 1, 4, 4, 4]
    assert epochs_of(PostLocalEpochs(switch=4, after=8, initial=3), [0.1] * 3) == [3, 3, 8, 8]


def test_decaying_by_rounds_is_the_papers_table():
    """K_0 = 8: ⌈8/∛r⌉ for r = 1 … 9."""
    assert epochs_of(DecayingEpochs(8), [0.1] * 8) == [8, 7, 6, 6, 5, 5, 5, 4, 4]


def test_decaying_by_loss():
    losses = [2.0, 2.0, 1.0, 0.25, math.nan, 0.02, 5.0, math.inf]
    #         -    1    ∛½    ½    stays     ∛.01  at most T_0
    assert epochs_of(DecayingEpochs(10, by="loss"), losses=losses) == [10, 10, 10, 8, 5, 5, 3, 10, 10]


def test_adacomm_against_a_loop():
    losses = [2.3, 1.9, 1.2, 1.2, 1.25, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1]
    expected, period = [20, 20], 20
    for loss in losses[1:]:
        wanted = math.ceil(math.sqrt(loss / losses[0]) * 20)
        period = wanted if wanted < period else math.ceil(0.5 * period)
        expected.append(period)
    found = epochs_of(AdaptiveEpochs(20), losses=losses)
    assert found == expected and found[-1] == 1


def test_adacomm_without_a_loss_changes_nothing():
    assert epochs_of(AdaptiveEpochs(4), losses=[2.0, math.nan, math.nan, 0.0]) == [4] * 5


def test_in_steps_changes_the_unit_and_no_number():
    """QSR's α is then the paper's: H = ⌊(α/η)²⌋ steps."""
    rule = QuadraticEpochs(initial=4, alpha=0.0175)
    rates = [0.008, 0.004, 0.002, 0.001]
    assert epochs_of(InSteps(rule), rates=rates) == [4] + [max(4, math.floor((0.0175 / r) ** 2)) for r in rates]
    assert InSteps(rule).unit == "steps" and not hasattr(rule, "unit")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlateauEpochs(0), "initial"),
        (lambda: PlateauEpochs(2, maximum=1), "maximum=1 is below initial=2"),
        (lambda: PlateauEpochs(2, window=1), "window .* at least 2; found 1"),
        (lambda: PostLocalEpochs(switch=0, after=2), "switch"),
        (lambda: PostLocalEpochs(switch=2, after=1, initial=2), "after=1 is below initial=2"),
        (lambda: DecayingEpochs(0), "initial"),
        (lambda: DecayingEpochs(3, by="error"), 'by must be "rounds" or "loss", found \'error\''),
        (lambda: AdaptiveEpochs(3, gamma=1.0), "gamma must be in"),
        (lambda: InSteps(InSteps(IncreasingEpochs(1))), "already"),
    ],
)
def test_impossible_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()
