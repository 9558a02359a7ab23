"""From local models to the shared one: what happens between the last batch of a round and its validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    first_non_finite,
    float_buffers,
    relative_change,
    trainable_parameters,
)
from colearn_hpc.errors import ParticipantError
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.trainer.optimizers import OptimizerState, averaged_state, reset_state
from colearn_hpc.trainer.round_log import CenterRecord

D = TypeVar("D")


@dataclass(frozen=True)
class Arrival:
    """What a data center says when it arrives at a round's end.

    Attributes:
        size: length of the vector it offers.
        examples: training examples it went through in the round.
        non_finite: name of the first tensor with NaN or Inf in it, empty if there is none.
        leaving: its Trainer ended, and this is its last round.
    """

    size: int
    examples: int
    non_finite: str
    leaving: bool


class Averaging:
    """Takes the mean (eq. 2), measures its change (eq. 4), commits it everywhere or nowhere.

    With one data center there is nobody to average with: weights, buffers and optimizers stay untouched.

    Args:
        exchange: the conversation with the other data centers.
        optimizer_state: what happens to momenta at a round's end.
        weighting: ``"uniform"`` or ``"examples"``.
        previous: the parameters of the last shared model as a flat vector; needed on leaders.
    """

    def __init__(self, exchange: Exchange, optimizer_state: OptimizerState, weighting: str, previous: Tensor | None):
        self.exchange = exchange
        self.optimizer_state = optimizer_state
        self.weighting = weighting
        self.previous = previous if exchange.center.is_leader else None

    def start_from(self, module: LightningModule) -> None:
        """Take the module's parameters as the shared model that round 0 starts from."""
        if self.exchange.center.is_leader:
            self.previous = FlatModel(trainable_parameters(module)).pack()

    def run(
        self,
        module: LightningModule,
        optimizers: Sequence[Optimizer],
        record: CenterRecord,
        round_index: int,
        leaving: bool,
        decide: Callable[[float, bool], D],
    ) -> D:
        """Average once. Collective over the world; times and bytes go into ``record``.

        Args:
            module: the local model; becomes the shared one.
            optimizers: its optimizers.
            record: this data center's part in the round.
            round_index: i.
            leaving: whether this data center's Trainer has ended.
            decide: called on the first leader with the relative change and whether any data center leaves; what it
                returns is returned on all ranks.

        Raises:
            ParticipantError: on all ranks, when some data center's model must not enter the mean. No weights
                have been touched then.
        """
        exchange, center = self.exchange, self.exchange.center
        alone = len(center.topology.centers) == 1
        others = float_buffers(module)
        if self.optimizer_state == "average":
            others += averaged_state(optimizers)
        model = FlatModel(trainable_parameters(module), others)
        vector = model.pack()
        if not alone:
            # DDP keeps parameters equal inside a data center, buffers not.
            exchange.mean_in_center(vector[model.parameter_size :])
        counts = exchange.gather_in_center(record.examples)
        record.examples = sum(counts) if counts is not None else record.examples
        non_finite = first_non_finite(vector, model) if center.is_leader else ""

        clock = time.monotonic()
        statuses = exchange.meet(f"round {round_index}", Arrival(model.size, record.examples, non_finite, leaving))
        record.wait_seconds = time.monotonic() - clock
        arrivals = {c.name: statuses[c.leader].content for c in center.topology.centers}
        self._check(arrivals, round_index)

        clock, sent = time.monotonic(), exchange.bytes_sent
        if center.is_leader:
            weights = [float(a.examples) if self.weighting == "examples" else 1.0 for a in arrivals.values()]
            exchange.mean(vector, weights)
        if not alone:
            exchange.distribute_in_center(vector)
        record.exchange_seconds, record.bytes_sent = time.monotonic() - clock, exchange.bytes_sent - sent

        # The decision comes in a meeting of its own: once it is here, everyone has the mean, and all commit.
        shared = vector[: model.parameter_size]
        leaves = any(arrival.leaving for arrival in arrivals.values())
        decision = exchange.decide(f"round {round_index}: mean", lambda: decide(self._change(shared), leaves))
        if center.is_leader:
            record.divergence = model.parameter_distance(vector)
            self.previous = shared.clone()
        if not alone:
            model.unpack(vector)
            if self.optimizer_state == "reset":
                reset_state(optimizers)
        return decision

    def _change(self, shared: Tensor) -> float:
        assert self.previous is not None, "only leaders hold the previous shared model"
        return relative_change(shared, self.previous)

    def _check(self, arrivals: dict[str, Arrival], round_index: int) -> None:
        broken = [f"{name} ({a.non_finite})" for name, a in arrivals.items() if a.non_finite]
        if broken:
            raise ParticipantError(
                f"round {round_index}: NaN or Inf in the model of data center {', '.join(broken)}; the mean was not "
                "taken. Lower the learning rate or clip gradients; shared.ckpt holds the last good shared model"
            ).on_all_ranks()
        if len({a.size for a in arrivals.values()}) > 1:
            found = ", ".join(f"{name}: {a.size}" for name, a in arrivals.items())
            raise ParticipantError(
                f"round {round_index}: the data centers offer vectors of different sizes ({found}); with "
                'optimizer_state="average" every parameter needs a state in every data center: use "reset" or "keep"'
            ).on_all_ranks()
        if self.weighting == "examples" and not all(a.examples for a in arrivals.values()):
            raise ParticipantError(
                f'round {round_index}: weighting="examples", but no batch size could be read; use "uniform"'
            ).on_all_ranks()
