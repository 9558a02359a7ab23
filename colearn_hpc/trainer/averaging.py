"""From local models to the shared one: what happens between the last batch of a round and its validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.outer import OuterOptimizer
from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    first_non_finite,
    float_buffers,
    relative_change,
    trainable_parameters,
)
from colearn_hpc.errors import ParticipantError
from colearn_hpc.mpi.compression import Compression
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.mean import Taken
from colearn_hpc.trainer.optimizers import OptimizerState, averaged_state, reset_state
from colearn_hpc.trainer.round_log import CenterRecord

D = TypeVar("D")


@dataclass(frozen=True)
class RunPlace:
    """Where a data center is when it comes to a round's end.

    Attributes:
        round: i.
        local_epochs: T_i, as trained.
        epochs_done: local epochs finished before the one that ends.
        leaving: its Trainer ended, and this is its last round.
        last: no round follows, which all data centers know.
    """

    round: int
    local_epochs: int
    epochs_done: int
    leaving: bool = False
    last: bool = False


@dataclass(frozen=True)
class Arrival:
    """What a data center says when it arrives at a round's end.

    Attributes:
        size: length of the vector it offers.
        examples: training examples it went through in the round.
        place: where it is.
    """

    size: int
    examples: int
    place: RunPlace


class Averaging:
    """Takes the mean (eq. 2), measures its change (eq. 4), commits it everywhere or nowhere.

    With one data center there is nobody to average with: weights, buffers and optimizers stay untouched.

    Args:
        exchange: the conversation with the other data centers.
        optimizer_state: what happens to momenta at a round's end.
        weighting: ``"uniform"`` or ``"examples"``.
        outer: steps from the last shared model along the mean's pseudo-gradient; None: the mean is the shared model.
        codec: how parameters are written on the wire, see ``algorithm/codec.py``.

    Attributes:
        previous: on carriers, the last shared model as a flat vector, parameters first. It is the vector that was
            committed, not a copy, and is not written to before the next mean is committed.
        others_place: where the data centers were that gave to the last mean.
    """

    shares_model = True  # after a round all data centers hold one model
    overlaps = False  # a mean may come in the next round's first epoch

    def __init__(
        self,
        exchange: Exchange,
        optimizer_state: OptimizerState = "reset",
        weighting: str = "uniform",
        outer: OuterOptimizer | None = None,
        codec: str = "fp32",
    ):
        self.exchange = exchange
        self.optimizer_state = optimizer_state
        self.weighting = weighting
        self.outer = outer
        self.previous: Tensor | None = None
        self.others_place = RunPlace(0, 1, 0)
        self._outer_state: Tensor | None = None
        # Where the next mean goes. Kept between rounds: fresh memory of a model's size costs more than the sums in it.
        self._room: Tensor | None = None
        chosen = codec_of(codec)
        self._compression = Compression(chosen) if chosen is not None else None

    def start_from(self, module: LightningModule) -> None:
        """Take the module as the shared model that round 0 starts from."""
        if self.exchange.transfer.carries:
            self.previous = FlatModel.of(module).pack()

    def checkpoint_path(self, run_folder: Path, center_folder: Path) -> Path:
        """Where the model that a round ends with is kept."""
        return run_folder / "shared.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """What a resume point must hold to continue: w̄ of the last round, the outer optimizer's state, and what the
        codec still owes."""
        residual = self._compression.residual if self._compression is not None else None
        return {"previous": self.previous, "outer": self._outer_state, "residual": residual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.exchange.transfer.carries:
            self.previous, self._outer_state = state["previous"], state["outer"]
            if self._compression is not None:
                self._compression.residual = state.get("residual")

    def run(
        self,
        module: LightningModule,
        optimizers: Sequence[Optimizer],
        record: CenterRecord,
        place: RunPlace,
        decide: Callable[[float, bool], D],
        absent: str = "",
    ) -> D | None:
        """Average once. Collective over the world; times and bytes go into ``record``.

        Args:
            module: the local model; becomes the shared one.
            optimizers: its optimizers.
            record: this data center's part in the round.
            place: where this data center is.
            decide: called on the first leader with the relative change and whether any data center leaves; what it
                returns is returned on all ranks.
            absent: why this data center takes the mean without giving to it.

        Returns:
            The decision; None where the mean has only begun (``overlap.py``).

        Raises:
            ParticipantError: when this data center's model must not enter the mean, or, on all ranks, when the data
                centers' models do not fit together. No weights have been touched then.
        """
        exchange, center = self.exchange, self.exchange.center
        alone = len(center.topology.centers) == 1
        others = float_buffers(module)
        if self.optimizer_state == "average":
            others += averaged_state(optimizers)
        model = FlatModel(trainable_parameters(module), others)
        if not alone and center.size > 1:
            # DDP keeps parameters equal inside a data center, buffers not.
            exchange.transfer.mean_in_center(model.stage_others())
        arrivals = self.arrive(model, None, record, place, absent)
        return self.take(model, optimizers, arrivals, record, decide)

    def take(
        self,
        model: FlatModel,
        optimizers: Sequence[Optimizer],
        arrivals: dict[int, Arrival],
        record: CenterRecord,
        decide: Callable[[float, bool], D],
    ) -> D:
        """The mean of those who have arrived. Collective over the world; see :meth:`run` for the rest.

        Args:
            model: of the module, with what it offers.
            arrivals: what :meth:`arrive` returned.
        """
        exchange, transfer = self.exchange, self.exchange.transfer
        alone = len(exchange.center.topology.centers) == 1
        clock = time.monotonic()
        result = self._result(model)
        taken, outer_state = None, None
        if transfer.carries:
            taken = transfer.take(
                model, result, self._weights(arrivals), model.parameter_size, self._last(model), self._compression
            )
            if self.outer is not None and not alone:
                # Each leader steps by itself: same inputs, same elementwise operations, same bits.
                shared = result[: model.parameter_size]
                stepped, outer_state = self.outer.step(self._last(model), shared, self._outer_state)
                shared.copy_(stepped)
        if not alone:
            taken = transfer.spread(result, taken)
        record.exchange_seconds = time.monotonic() - clock

        # The decision comes in a meeting of its own: once it is here, everyone has the mean, and all commit.
        leaves = any(arrival.place.leaving for arrival in arrivals.values())
        decision = exchange.decide(
            f"round {self.others_place.round}: mean", lambda: decide(self._change(model, result, taken), leaves)
        )
        clock = time.monotonic()
        self._commit(model, result, taken, record)
        self._outer_state = outer_state
        if not alone and self.optimizer_state == "reset":
            reset_state(optimizers)
        exchange.commit()
        record.exchange_seconds += time.monotonic() - clock
        return decision

    def _result(self, model: FlatModel) -> Tensor:
        """Where the mean is put: it must not touch the model before all have it."""
        if self._room is None or self._room.shape != (model.size,) or self._room.dtype != model.dtype:
            self._room = model.staging(model.size)
        return self._room

    def _commit(self, model: FlatModel, result: Tensor, taken: Taken | None, record: CenterRecord) -> None:
        """Make the mean this rank's model. The last shared model's memory serves the next mean."""
        if len(self.exchange.center.topology.centers) > 1:
            model.unpack(result)
        if taken is not None:
            record.divergence, record.bytes_sent = taken.divergence, taken.bytes_sent
            self.previous, self._room = result, self.previous
            if self._compression is not None:
                self._compression.commit()

    def arrive(
        self, model: FlatModel, vector: Tensor | None, record: CenterRecord, place: RunPlace, absent: str = ""
    ) -> dict[int, Arrival]:
        """Meet at the round's end. Collective over the world.

        Returns:
            What each data center says that gives to the mean, by index.

        Raises:
            ParticipantError: see :meth:`run`.
        """
        exchange, center = self.exchange, self.exchange.center
        counts = exchange.link.gather(record.examples)
        record.examples = sum(counts) if counts is not None else record.examples
        if center.is_leader and not absent and (name := first_non_finite(vector, model)):
            raise ParticipantError(
                f"round {place.round}: NaN or Inf in the model of data center {center.name} ({name}); the mean was not "
                "taken. Lower the learning rate or clip gradients; shared.ckpt holds the last good shared model"
            )
        clock = time.monotonic()
        statuses = exchange.arrive(f"round {place.round}", Arrival(model.size, record.examples, place), absent)
        record.wait_seconds = time.monotonic() - clock
        record.absent = statuses[center.world_rank].absent
        of_leaders = {c.index: statuses[c.leader] for c in center.topology.centers}
        arrivals = {index: status.content for index, status in of_leaders.items() if not status.absent}
        if not arrivals:
            raise ParticipantError(
                f"round {place.round}: no data center has anything to give to the mean; see centers/*/log.txt"
            ).on_all_ranks()
        self.others_place = next(iter(arrivals.values())).place
        self._check(arrivals, self.others_place.round)
        return arrivals

    def _weights(self, arrivals: dict[int, Arrival]) -> list[float]:
        """n_k per data center; 0 for who gives nothing."""
        weights = [0.0] * len(self.exchange.center.topology.centers)
        for index, arrival in arrivals.items():
            weights[index] = float(arrival.examples) if self.weighting == "examples" else 1.0
        return weights

    def _change(self, model: FlatModel, result: Tensor, taken: Taken | None) -> float:
        """Equation 4's relative change; on the first leader only.

        Raises:
            ParticipantError: the mean of finite models is not finite, because a codec could not hold a step.
        """
        assert taken is not None, "only carriers take the mean"
        if not taken.finite and (name := first_non_finite(result, model)):
            raise ParticipantError(
                f"round {self.others_place.round}: NaN or Inf in the mean ({name}), though every model in it is "
                "finite: a step since the last shared model is too large for the codec; set exchange: {codec: fp32}"
            )
        if self.outer is not None:
            return relative_change(result[: model.parameter_size], self._last(model))
        return taken.squares.relative_change

    def _last(self, model: FlatModel) -> Tensor:
        """The parameters of the last shared model."""
        assert self.previous is not None, "only carriers hold the last shared model"
        return self.previous[: model.parameter_size].to(model.dtype)

    def _check(self, arrivals: dict[int, Arrival], round_index: int) -> None:
        if len({a.size for a in arrivals.values()}) > 1:
            names = [c.name for c in self.exchange.center.topology.centers]
            found = ", ".join(f"{names[index]}: {a.size}" for index, a in arrivals.items())
            raise ParticipantError(
                f"round {round_index}: the data centers offer vectors of different sizes ({found}); with "
                'optimizer_state="average" every parameter needs a state in every data center: use "reset" or "keep"'
            ).on_all_ranks()
        if self.weighting == "examples" and not all(a.examples for a in arrivals.values()):
            raise ParticipantError(
                f'round {round_index}: weighting="examples", but no batch size could be read; use "uniform"'
            ).on_all_ranks()
