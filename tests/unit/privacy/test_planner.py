"""The planner: noise, ε and epochs find each other, and its worst case is eq. 4's."""

import itertools

import pytest

from colearn_hpc.algorithm.local_epochs import FixedEpochs, IncreasingEpochs
from colearn_hpc.cli import main
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.planner import most_epochs, plan_epochs, plan_epsilon, plan_noise
from colearn_hpc.privacy.sampling import Sampling

SITE = Sampling(10_000, 100)


def test_the_least_noise_is_found():
    plan = plan_noise(SITE, 20, 4.0, 1e-5)
    assert plan.epsilon <= 4.0 < plan_epsilon(SITE, 20, plan.noise - 0.001, 1e-5).epsilon
    assert plan.epsilon == plan_epsilon(SITE, 20, plan.noise, 1e-5).epsilon
    assert plan.steps == 2000


def test_the_most_epochs_are_found():
    plan = plan_epochs(SITE, 1.0, 4.0, 1e-5)
    assert plan.epsilon <= 4.0 < plan_epsilon(SITE, plan.epochs + 1, 1.0, 1e-5).epsilon


def test_digits_as_measured():
    """1437 records, batches of 64, ten epochs without a last partial batch: Opacus' own 4.336 for 230 steps."""
    assert plan_epsilon(Sampling(1437, 64), 10, 1.0, 1e-4).epsilon == pytest.approx(4.34, abs=0.01)


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (IncreasingEpochs(2), [2, 4, 8, 16, 32]),
        (IncreasingEpochs(2, maximum=10), [2, 4, 8, 10, 10]),
        (FixedEpochs(3), [3, 3, 3, 3, 3]),
    ],
)
def test_the_worst_that_a_rule_can_do(rule, most):
    assert list(itertools.islice(most_epochs(rule), 5)) == most


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_noise(SITE, 20, 0.01, 1e-5), "no noise brings 20 epochs down to ε=0.01"),
        (lambda: plan_noise(SITE, 0, 1.0, 1e-5), "epochs=0: must be a number above 0"),
        (lambda: plan_epsilon(SITE, 1, -1.0, 1e-5), "noise=-1.0: must be a number above 0"),
        (lambda: plan_epochs(SITE, 0.3, 1.0, 1e-5), "does not pay one epoch with noise 0.3"),
        (lambda: plan_noise(SITE, 1, 1.0, 1e-4), "delta=0.0001 must lie between 0 and 1 / examples, here 0.0001"),
        (lambda: Sampling(10, 20), r"batch=20 \(batch_size times ranks\) is larger than the data, 10 examples"),
        (lambda: Sampling(10, 0), "both must be 1 or more"),
    ],
)
def test_what_makes_no_plan(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


def plan(capsys, arguments):
    code = main(["privacy", "plan", "--examples", "10000", "--batch", "100", *arguments.split()])
    return code, *capsys.readouterr()


def test_the_command_plans_rounds(capsys):
    code, out, err = plan(capsys, "--rounds 5 --local-epochs 2 --epsilon 4")
    noise = plan_noise(SITE, 62, 4.0, 1e-5).noise
    assert (code, err) == (0, "")
    assert "6200 = 62 local epochs of 100" in out
    assert "5: 2 + 4 + 8 + 16 + 32 local epochs if T doubles whenever it can" in out
    assert f"PrivateTraining(noise={noise:g}, delta=1e-05, budget=4)" in out


def test_the_command_plans_the_other_ways_round(capsys):
    assert "ε = 2.866 at δ = 1e-05" in plan(capsys, "--epochs 20 --noise 1")[1]
    assert "budget=2.867" in plan(capsys, "--epochs 20 --noise 1")[1], "rounded up"
    assert "38 local epochs" in plan(capsys, "--epsilon 4 --noise 1")[1]
    assert "3: 2 + 2 + 2 local epochs\n" in plan(capsys, "--rounds 3 --local-epochs 2 --rule fle --noise 1")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give two of --noise, --epsilon and a length (--epochs or --rounds); found none"),
        ("--noise 1 --epsilon 2 --epochs 3", "found epsilon, noise, length"),
        ("--epochs 1 --rounds 1 --noise 1", "--epochs and --rounds exclude each other"),
        ("--rounds 2 --local-epochs 0 --noise 1", "local_epochs (T_0) must be a whole number of epochs"),
    ],
)
def test_the_command_says_what_is_missing(capsys, arguments, message):
    code, out, err = plan(capsys, arguments)
    assert (code, out) == (2, "")
    assert err.startswith("colearn-hpc: error: ")
    assert message in err
    assert err.count("\n") == 1
