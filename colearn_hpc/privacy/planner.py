"""What a number of local epochs costs in privacy, and how much noise a budget asks for. Before any training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from colearn_hpc.algorithm.local_epochs import LocalEpochsRule, RoundOutcome
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.accountant import Accountant, Steps, check_delta, epsilon_of, least
from colearn_hpc.privacy.sampling import Sampling

_MOST_NOISE = 10**6  # thousandths


@dataclass(frozen=True)
class Plan:
    """The training of one site and its guarantee.

    Attributes:
        sampling: how the site's records make up batches.
        epochs: local epochs of the whole run.
        noise: σ, in units of the clipping norm.
        epsilon: ε that these epochs spend.
        delta: δ.
    """

    sampling: Sampling
    epochs: int
    noise: float
    epsilon: float
    delta: float

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.sampling.steps_per_epoch


def most_epochs(rule: LocalEpochsRule) -> Iterator[int]:
    """T_i of round 0, 1, … if the shared model never changes again: no rule of eq. 4 trains longer than this."""
    epochs, done = rule.first(), 0
    for index in itertools.count():
        yield epochs
        done += epochs
        epochs = rule.next(RoundOutcome(index, epochs, 0.0, done, learning_rate=1.0))


def plan_noise(sampling: Sampling, epochs: int, epsilon: float, delta: float) -> Plan:
    """The least noise, in thousandths, with which ``epochs`` local epochs spend at most ``epsilon``.

    Args:
        sampling: how the site's records make up batches.
        epochs: local epochs of the whole run, 1 or more.
        epsilon: ε that may be spent.
        delta: δ of the guarantee.

    Raises:
        ConfigurationError: a number out of its range, or no noise is enough.
    """
    _check(sampling, delta, epochs=epochs, epsilon=epsilon)
    steps = epochs * sampling.steps_per_epoch

    def spends(thousandths: int) -> float:
        return epsilon_of([Steps(thousandths / 1000, sampling.rate, steps)], delta)

    thousandths = least(lambda n: spends(n) <= epsilon, _MOST_NOISE)
    if thousandths == _MOST_NOISE:
        raise ConfigurationError(
            f"no noise brings {epochs} epochs down to ε={epsilon:g} at δ={delta:g}; plan fewer epochs, or spend more"
        )
    return Plan(sampling, epochs, thousandths / 1000, spends(thousandths), delta)


def plan_epsilon(sampling: Sampling, epochs: int, noise: float, delta: float) -> Plan:
    """What ``epochs`` local epochs spend with this noise; see :func:`plan_noise`."""
    _check(sampling, delta, epochs=epochs, noise=noise)
    steps = Steps(noise, sampling.rate, epochs * sampling.steps_per_epoch)
    return Plan(sampling, epochs, noise, epsilon_of([steps], delta), delta)


def plan_epochs(sampling: Sampling, noise: float, epsilon: float, delta: float) -> Plan:
    """How many local epochs this noise and ε allow; see :func:`plan_noise`.

    Raises:
        ConfigurationError: a number out of its range, or not even one epoch.
    """
    _check(sampling, delta, noise=noise, epsilon=epsilon)
    epochs = Accountant(delta).steps_left(epsilon, noise, sampling.rate) // sampling.steps_per_epoch
    if not epochs:
        raise ConfigurationError(
            f"ε={epsilon:g} does not pay one epoch with noise {noise:g}; take more noise, or smaller batches"
        )
    return plan_epsilon(sampling, epochs, noise, delta)


def _check(sampling: Sampling, delta: float, **numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ConfigurationError(f"{name}={value!r}: must be a number above 0")
    check_delta(delta, sampling.examples)
