"""How much privacy the steps of DP-SGD have spent, and how many more a budget allows.

Opacus' Rényi accountant does the mathematics. It composes step by step, so that nobody has to know beforehand how
many local epochs a round will have.

Sources: Mironov, Talwar, Zhang 2019, arXiv 1908.10530 (the sampled Gaussian mechanism); Balle et al. 2020,
arXiv 1905.09982, theorem 21 (from Rényi to (ε, δ)).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.opacus_import import import_opacus


@dataclass(frozen=True)
class Steps:
    """Steps of DP-SGD that were alike.

    Attributes:
        noise: σ, standard deviation of the noise over the clipping norm.
        rate: q, the probability with which a record is in a batch.
        count: how many.
    """

    noise: float
    rate: float
    count: int


class Accountant:
    """Counts the steps of one site over its whole run.

    Args:
        delta: δ of the guarantee.

    Raises:
        ConfigurationError: δ is not between 0 and 1.
    """

    def __init__(self, delta: float) -> None:
        check_delta(delta)
        self.delta = delta
        self._history: list[Steps] = []

    @property
    def steps(self) -> int:
        """Steps counted so far."""
        return sum(part.count for part in self._history)

    def step(self, noise: float, rate: float) -> None:
        """Count one step."""
        self._history = _with(self._history, noise, rate, 1)

    def epsilon(self) -> float:
        """ε spent so far; 0 before the first step."""
        return epsilon_of(self._history, self.delta)

    def steps_left(self, budget: float, noise: float, rate: float) -> int:
        """How many more steps like this keep ε at or below ``budget``."""

        def passes(count: int) -> bool:
            return epsilon_of(_with(self._history, noise, rate, count), self.delta) > budget

        return least(passes) - 1

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: a checkpoint with them opens with ``weights_only=True``."""
        return {"history": [[part.noise, part.rate, part.count] for part in self._history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._history = [Steps(float(noise), float(rate), int(count)) for noise, rate, count in state["history"]]


def epsilon_of(history: Sequence[Steps], delta: float) -> float:
    """ε of all these steps together, at ``delta``; 0 for none, ``inf`` where the noise is too small for any bound."""
    if not any(part.count for part in history):
        return 0.0
    import_opacus()
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import get_privacy_spent

    # Added up as Opacus' own accountant does, so that both have the same bits.
    spent = sum(_rdp_of_one(part.noise, part.rate) * part.count for part in history)
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound holds, a wider range of orders could only lower it.
        warnings.filterwarnings("ignore", "Optimal order is the")
        epsilon, _ = get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=spent, delta=delta)
    return math.inf if math.isnan(epsilon) else float(epsilon)


def check_delta(delta: float, examples: int = 1) -> None:
    """Refuse a δ that promises nothing.

    Raises:
        ConfigurationError: it is not between 0 and 1 / examples.
    """
    if not 0 < delta * examples < 1:
        raise ConfigurationError(
            f"delta={delta:g} must lie between 0 and 1 / examples, here {1 / examples:.1g}: a mechanism that publishes "
            "one record whole has δ = 1 / examples; take a tenth of it"
        )


def least(holds: Callable[[int], bool], limit: int = 2**40) -> int:
    """The least n ≥ 1 for which ``holds(n)``, which stays true from there on; ``limit`` where it is none below."""
    above = 1
    while above < limit and not holds(above):
        above *= 2
    below, above = above // 2, min(above, limit)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above


@functools.lru_cache(maxsize=64)
def _rdp_of_one(noise: float, rate: float) -> NDArray[np.float64]:
    """Rényi divergence of one step at each of Opacus' orders: the slow part, linear in the number of steps."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    return compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=RDPAccountant.DEFAULT_ALPHAS)


def _with(history: Sequence[Steps], noise: float, rate: float, count: int) -> list[Steps]:
    """``history`` and ``count`` steps more."""
    *before, last = history or [Steps(noise, rate, 0)]
    if (last.noise, last.rate) == (noise, rate):
        return [*before, Steps(noise, rate, last.count + count)]
    return [*before, last, Steps(noise, rate, count)]
