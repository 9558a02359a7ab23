"""The rivals of equations 2 and 4 against what their papers' authors would compute."""

import warnings

import pytest
import torch
from jsonargparse import ArgumentParser

from colearn_hpc import CoLearning, ConstantLR, FixedEpochs, OuterSGD, QuadraticEpochs
from colearn_hpc.algorithm import EpochPosition, RoundOutcome
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.methods import ARMS, completed
from colearn_hpc.studies.settings import merged


def outcome(rate: float, local_epochs: int = 2) -> RoundOutcome:
    return RoundOutcome(round=3, local_epochs=local_epochs, relative_change=0.1, epochs_done=8, learning_rate=rate)


@pytest.mark.parametrize("nesterov", [True, False])
def test_outer_sgd_is_torch_sgd_on_the_pseudo_gradient(nesterov: bool) -> None:
    torch.manual_seed(0)
    outer = OuterSGD(learning_rate=0.7, momentum=0.9, nesterov=nesterov)
    shared = torch.randn(1000, dtype=torch.float64)
    reference = torch.nn.Parameter(shared.clone())
    sgd = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=nesterov)
    state = None
    for _ in range(5):
        mean = shared + 0.1 * torch.randn_like(shared)
        reference.grad = reference.detach() - mean
        sgd.step()
        shared, state = outer.step(shared, mean, state)
        torch.testing.assert_close(shared, reference.detach(), rtol=1e-12, atol=1e-12)


def test_rate_one_without_momentum_is_the_plain_mean() -> None:
    previous, mean = torch.randn(100), torch.randn(100)
    new, _ = OuterSGD(1.0, 0.0, nesterov=False).step(previous, mean, None)
    torch.testing.assert_close(new, mean, rtol=0, atol=1e-7)


def test_outer_step_leaves_its_arguments_alone() -> None:
    previous, mean, state = torch.ones(4), torch.zeros(4), torch.ones(4)
    new, velocity = OuterSGD().step(previous, mean, state)
    assert torch.equal(previous, torch.ones(4)) and torch.equal(mean, torch.zeros(4))
    assert torch.equal(state, torch.ones(4)) and not torch.equal(velocity, state)
    assert not torch.equal(new, previous)


def test_outer_step_spans_blocks() -> None:
    size = (1 << 20) + 7
    previous, mean = torch.randn(size), torch.randn(size)
    new, velocity = OuterSGD(0.5, 0.5, nesterov=False).step(previous, mean, None)
    torch.testing.assert_close(new, previous - 0.5 * (previous - mean))
    torch.testing.assert_close(velocity, previous - mean)


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}, {"momentum": 0.0, "nesterov": True}]
)
def test_outer_sgd_refuses(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"found|nesterov=false"):
        OuterSGD(**settings)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.1, 2), (0.05, 2), (0.02, 4), (0.015, 7), (0.01, 16), (0.001, 64), (0.0, 64)],
)
def test_qsr_grows_with_the_inverse_square_of_the_rate(rate: float, expected: int) -> None:
    rule = QuadraticEpochs(initial=2, alpha=0.04, maximum=64)
    assert rule.first() == 2
    assert rule.next(outcome(rate)) == expected


def test_qsr_without_bound_and_rate_stays_a_number() -> None:
    assert QuadraticEpochs(2, 0.04).next(outcome(0.0, local_epochs=8)) == 16


@pytest.mark.parametrize("settings", [(0, 0.1), (2, 0.0), (2, 0.1, 1)])
def test_qsr_refuses(settings: tuple) -> None:
    with pytest.raises(ValueError, match=r"found|below"):
        QuadraticEpochs(*settings)


def test_fedavg_is_a_constant_rate_and_fixed_epochs() -> None:
    rule = FixedEpochs(5)
    assert [rule.first(), rule.next(outcome(0.1)), rule.next(outcome(1e-6))] == [5, 5, 5]
    assert {ConstantLR().factor(EpochPosition(i, 0, 5, 5 * i)) for i in range(4)} == {1.0}


GIVEN = {"colearning": {"local_epochs": 3, "learning_rate": 0.1}, "trainer": {"max_epochs": 30}}
# Schedule, rule for T, outer optimizer.
MEANT = {
    "clr+ile": "CyclicalLR IncreasingEpochs",
    "clr+fle": "CyclicalLR FixedEpochs",
    "elr+ile": "ExponentialLR IncreasingEpochs",
    "elr+fle": "ExponentialLR FixedEpochs",
    "clr+auto": "CyclicalLR PlateauEpochs",
    "clr+ile-int4": "CyclicalLR IncreasingEpochs",
    "clr+ile-topk": "CyclicalLR IncreasingEpochs",
    "fedavg": "ConstantLR FixedEpochs",
    "fedprox": "ConstantLR FixedEpochs",
    "scaffold": "ConstantLR FixedEpochs",
    "fedbn": "ConstantLR FixedEpochs",
    "lawa": "ConstantLR FixedEpochs",
    "fedswa": "LinearLR FixedEpochs OuterSGD",
    "fedswa-mean": "LinearLR FixedEpochs",
    "qsr": "ExponentialLR QuadraticEpochs",
    "post-local": "ExponentialLR PostLocalEpochs",
    "decaying": "ConstantLR DecayingEpochs",
    "adacomm": "ConstantLR AdaptiveEpochs",
    "diloco": "ExponentialLR FixedEpochs OuterSGD",
    "streaming-diloco": "ExponentialLR FixedEpochs OuterSGD",
    "muloco": "ExponentialLR FixedEpochs OuterSGD",
    "delayed-nesterov": "ExponentialLR FixedEpochs DelayedNesterov",
    "fedavgm": "ConstantLR FixedEpochs OuterSGD",
    "fedadam": "ConstantLR FixedEpochs FedAdam",
    "fedyogi": "ConstantLR FixedEpochs FedYogi",
}


@pytest.mark.parametrize("arm", [name for name, settings in ARMS.items() if settings["method"] == "colearning"])
def test_every_arm_of_a_study_is_a_configuration_that_fit_takes(arm: str) -> None:
    """Study files are plain settings: that they mean what they say is seen only where they are parsed."""
    settings = completed(merged(GIVEN, ARMS[arm]))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CoLearning, "colearning", skip={"centers", "run_dir"})
    parsed = parser.parse_object({"colearning": settings["colearning"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own deprecation
        found = parser.instantiate_classes(parsed).colearning.settings
    kinds = [type(one).__name__ for one in (found.schedule, found.rule, found.outer_optimizer)]
    assert kinds == [*MEANT[arm].split(), "NoneType"][:3]
    assert found.rule.first() == (1 if arm == "post-local" else 3)


@pytest.mark.parametrize(
    "settings",
    [{"outer_optimizer": 3}, {"outer_optimizer": OuterSGD(), "combine": "predictions"}, {"combine": "votes"}],
)
def test_impossible_combinations_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigurationError, match=r"OuterSGD|drop one|must be one of"):
        CoLearning(**settings)
