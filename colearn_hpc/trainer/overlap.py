"""Overlap: the mean travels while the next round's first local epoch is trained (``exchange: {overlap: true}``).

    round i, its last batch            all meet; each sends its model s_k as it is now, and trains on from it
    round i+1, every batch of epoch 0  messages pass
    its last batch                     all meet; the mean w̄ⁱ is here, T_{i+1} is decided, the module is made w̄ⁱ
    validation, checkpoints            see w̄ⁱ, as they do without overlap, but an epoch later
    the epoch's end                    the module becomes w_k + (w̄ⁱ - s_k): w̄ⁱ, and what was learned meanwhile

Epoch 0 has the rate of T_i, because T_{i+1} is not known yet. With T = 1 a mean arrives and the next leaves at the same
batch. The last round has no epoch after it: its mean is waited for, and is the mean of what all have, w̄ of eq. 2.

Only parameters are corrected. Running statistics (float buffers) of w̄ⁱ are the mean's, for validation and checkpoints;
those of the local model stay its own: they forget what was before within batches, and a variance that is corrected can
become negative. Optimizer state is reset where the weights jump, or kept.

While a mean is under way no data center can be done without: a failure ends the run, and is not restarted in place.
Resume points hold what was sent, and a resumed run sends it again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import Optimizer

from colearn_hpc.algorithm.overlap import correct
from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.mpi.pipeline import Vector
from colearn_hpc.trainer import books, rules
from colearn_hpc.trainer.averaging import Averaging, RunPlace
from colearn_hpc.trainer.books import Books
from colearn_hpc.trainer.lightning_gaps import wants_stop
from colearn_hpc.trainer.metrics import MetricsSplit
from colearn_hpc.trainer.optimizers import reset_state
from colearn_hpc.trainer.outputs import save_shared_model
from colearn_hpc.trainer.round_log import CenterRecord

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning

D = TypeVar("D")

# Chunks that can move from one batch's end to the next.
GATHERING = 16


class OverlappedAveraging(Averaging):
    """Averaging whose mean is begun by :meth:`run`, and comes with :meth:`finish`, unless the round is the last.

    Holds one vector more than :class:`Averaging`, on all ranks: the model as it was sent, and when the mean has come,
    the model with which to go on.
    """

    overlaps = True

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self._sent: Tensor | None = None  # where memory for it was needed once, it is kept
        self._under_way = False
        self._aside = False  # the module is the shared model, and the local one is in ``_sent``

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sent": self._sent if self._under_way else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sent = state.get("sent")

    def run(
        self,
        module: pl.LightningModule,
        optimizers: Sequence[Optimizer],
        record: CenterRecord,
        place: RunPlace,
        decide: Callable[[float, bool], D],
        absent: str = "",
    ) -> D | None:
        model = FlatModel.of(module)
        if not self._aside:
            self._sent = model.pack(self._sent)
        assert self._sent is not None
        # DDP keeps parameters equal inside a data center, buffers not, and gives the leader's to all at the next batch.
        self.exchange.transfer.mean_in_center(self._sent[model.parameter_size :])
        return self.send(module, optimizers, record, place, decide)

    def send(
        self,
        module: pl.LightningModule,
        optimizers: Sequence[Optimizer],
        record: CenterRecord,
        place: RunPlace,
        decide: Callable[[float, bool], D],
    ) -> D | None:
        """:meth:`run` with the model that a resume point says was to be sent. Collective over the world."""
        model, sent = FlatModel.of(module), self._sent
        assert sent is not None
        arrivals = self.arrive(model, sent, record, place)
        if place.last or any(arrival.place.leaving for arrival in arrivals.values()):
            model.unpack(sent)
            self._aside = False
            return self.take(model, optimizers, arrivals, record, decide)
        self._under_way = True
        if self.exchange.transfer.carries:
            self.exchange.transfer.begin(
                Vector(sent),
                self._result(model),
                self._weights(arrivals),
                model.parameter_size,
                self._last(model),
                self._compression,
                GATHERING,
            )
        return None

    def finish(
        self,
        module: pl.LightningModule,
        optimizers: Sequence[Optimizer],
        record: CenterRecord,
        round_index: int,
        decide: Callable[[float, bool], D],
    ) -> D:
        """Wait for the mean that is under way, and make it the module's. Collective over the world.

        Args:
            module: the local model; becomes the shared one, until :meth:`go_on` or :meth:`stay`.
            optimizers: its optimizers.
            record: this data center's part in the round that is averaged.
            round_index: its i.
            decide: see :meth:`run`.
        """
        exchange, model, sent = self.exchange, FlatModel.of(module), self._sent
        assert sent is not None and self._under_way
        clock = time.monotonic()
        exchange.meet(f"round {round_index}: under way")  # from here on no user's code runs: a failure was said there
        record.wait_seconds += time.monotonic() - clock

        clock, result = time.monotonic(), self._result(model)
        taken = exchange.transfer.finish() if exchange.transfer.carries else None
        taken = exchange.transfer.spread(result, taken)
        record.exchange_seconds += time.monotonic() - clock
        meeting = f"round {round_index}: mean"
        decision = exchange.decide(meeting, lambda: decide(self._change(model, result, taken), False))

        clock = time.monotonic()
        correct(model, sent, result)
        model.unpack(result)
        self._under_way, self._aside = False, True
        if taken is not None:
            record.divergence, record.bytes_sent = taken.divergence, taken.bytes_sent
            self.previous, self._room = result, self.previous
            if self._compression is not None:
                self._compression.commit()
        if self.optimizer_state == "reset":
            reset_state(optimizers)
        exchange.journal.gap = True  # the point before this asks for a mean that the others have done with
        exchange.commit()
        record.exchange_seconds += time.monotonic() - clock
        return decision

    def go_on(self, module: pl.LightningModule) -> None:
        """Make the module the local model again, corrected by the mean."""
        if self._aside:
            assert self._sent is not None
            FlatModel.of(module).unpack(self._sent)
            self._aside = False

    def stay(self) -> None:
        """Leave the module the shared model."""
        self._aside = False


def averaging_of(colearning: CoLearning) -> Averaging:
    """Overlapped where that is wanted and there is somebody to average with."""
    late = colearning.overlaps and len(colearning.center.topology.centers) > 1
    made = OverlappedAveraging if late else Averaging
    settings = colearning.optimizer_state, colearning.weighting, colearning.outer_optimizer, colearning.codec
    return made(colearning.exchange, *settings)


def land(colearning: CoLearning, trainer: pl.Trainer, for_good: bool = False) -> None:
    """The mean that is under way becomes the module's. Collective over the world.

    Args:
        colearning: with a round that has ended.
        trainer: its Trainer.
        for_good: no epoch follows.
    """
    averaging, ended = _late(colearning), colearning.ended
    assert ended is not None
    decide = functools.partial(books.decide, colearning, ended)
    module, optimizers = trainer.lightning_module, trainer.optimizers
    decision = averaging.finish(module, optimizers, ended.record, ended.round, decide)
    _conclude(colearning, trainer, decision, for_good)


def finish_epoch(colearning: CoLearning, trainer: pl.Trainer) -> None:
    """After validation and checkpoints: books, and the local model again. Collective over the world."""
    if (landed := colearning.landed) is not None:
        books.close(colearning, landed, trainer, wants_stop(trainer))
        _late(colearning).go_on(trainer.lightning_module)
        colearning.landed = None
        colearning.metrics = MetricsSplit()
    ended = colearning.ended
    if ended is not None and ended.round == colearning.round:  # in this epoch
        colearning.begin_round()
        _go_on_together(colearning, trainer, ended)


def _go_on_together(colearning: CoLearning, trainer: pl.Trainer, ended: Books) -> bool:
    """Whether all train on. Who leaves now has no epoch in which the mean could come: then all wait for it here, and it
    is the run's last. Collective over the world."""
    statuses = colearning.exchange.meet(f"round {ended.round}: going on", wants_stop(trainer))
    if leaves := any(status.content for status in statuses):
        land(colearning, trainer, for_good=True)
    return not leaves


def resume(colearning: CoLearning, trainer: pl.Trainer) -> bool:
    """What a resume point says was sent is sent again. Collective over the world: the others do it too, or are on their
    way to that round's end.

    Returns:
        Whether that round is the last after all: this run is to be shorter than the one before, or another data center
        leaves. Then the module is the shared model, and what was trained since is dropped.
    """
    averaging, ended = _late(colearning), colearning.ended
    assert ended is not None
    if not colearning.center.is_leader:
        ended.record.examples = 0  # the leader's is the data center's sum
    last = books.is_last(colearning, ended, trainer)
    place = RunPlace(ended.round, ended.local_epochs, ended.epochs_done - 1, last=last)
    decide = functools.partial(books.decide, colearning, ended)
    decision = averaging.send(trainer.lightning_module, trainer.optimizers, ended.record, place, decide)
    if decision is None:
        return not _go_on_together(colearning, trainer, ended)
    _conclude(colearning, trainer, decision, for_good=True)
    return True


def _conclude(colearning: CoLearning, trainer: pl.Trainer, decision: tuple[float, int, str], for_good: bool) -> None:
    landed, colearning.ended = colearning.ended, None
    assert landed is not None
    landed.relative_change, landed.next_local_epochs, stop = decision
    colearning.relative_change, colearning.rule_epochs = decision[:2]
    colearning.stop_reason = stop or (books.TRAINER_ENDED if for_good else "")
    save_shared_model(colearning, trainer)
    if for_good:
        _late(colearning).stay()
        books.close(colearning, landed, trainer, stop=True)
        trainer.should_stop = True
    else:
        colearning.landed = landed
        colearning.local_epochs = rules.planned_epochs(colearning, trainer)  # its first epoch has just been trained


def _late(colearning: CoLearning) -> OverlappedAveraging:
    assert isinstance(colearning.averaging, OverlappedAveraging), "only there means are begun"
    return colearning.averaging
