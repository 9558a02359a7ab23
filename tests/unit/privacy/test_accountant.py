"""ε is Opacus' own, for steps that differ too; a budget is kept to the step."""

import numpy as np
import pytest
from opacus.accountants import RDPAccountant

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.accountant import Accountant, Steps, epsilon_of


def test_epsilon_is_opacus_own():
    ours, theirs = Accountant(1e-5), RDPAccountant()
    for noise, rate, count in ((1.0, 0.05, 40), (1.0, 0.1, 7), (0.8, 0.1, 13), (1.0, 0.1, 2)):
        for _ in range(count):
            ours.step(noise, rate)
            theirs.step(noise_multiplier=noise, sample_rate=rate)
    assert ours.steps == 62
    assert ours.epsilon() == pytest.approx(theirs.get_epsilon(1e-5), abs=1e-9)


def test_the_gaussian_mechanism_by_hand():
    """Without sampling n steps have the Rényi divergence nα / 2σ² (Mironov 2017); here the best α of all."""
    noise, count, delta = 4.0, 20, 1e-5
    orders = np.linspace(1.01, 60, 100_000)
    bounds = count * orders / (2 * noise**2) + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    assert bounds.min() <= epsilon_of([Steps(noise, 1.0, count)], delta) < bounds.min() * 1.001


def test_nothing_done_spends_nothing():
    assert Accountant(1e-5).epsilon() == 0


@pytest.mark.parametrize("before", [0, 5, 50])
def test_steps_left_is_the_last_step_that_fits(before):
    accountant = Accountant(1e-5)
    for _ in range(before):
        accountant.step(1.0, 0.05)
    left = accountant.steps_left(4.0, 1.3, 0.05)
    assert left > 0
    for _ in range(left):
        accountant.step(1.3, 0.05)
    assert accountant.epsilon() <= 4.0
    assert accountant.steps_left(4.0, 1.3, 0.05) == 0
    accountant.step(1.3, 0.05)
    assert accountant.epsilon() > 4.0


def test_state_goes_on_where_it_was():
    one = Accountant(1e-5)
    for _ in range(9):
        one.step(1.0, 0.05)
    other = Accountant(1e-5)
    other.load_state_dict(one.state_dict())
    for accountant in (one, other):
        accountant.step(1.0, 0.05)
    assert one.epsilon() == other.epsilon()
    assert other.steps == 10


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_impossible_delta(delta):
    with pytest.raises(ConfigurationError, match="must lie between 0 and 1"):
        Accountant(delta)
