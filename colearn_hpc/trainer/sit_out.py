"""A round without this data center: it takes the others' mean, gives nothing to it, and goes on with the next round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import Tensor

from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.trainer.averaging import RunPlace
from colearn_hpc.trainer.lightning_gaps import skip_epochs
from colearn_hpc.trainer.optimizers import reset_state
from colearn_hpc.trainer.round_log import CenterRecord

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning


@dataclass(frozen=True)
class Leap:
    """Where a data center goes on after a round that it sat out, ahead of its resume point.

    Attributes:
        state: of :class:`CoLearning`.
        vector: the shared model, shape (n,).
    """

    state: dict[str, Any]
    vector: Tensor


def sit_out(colearning: CoLearning, trainer: pl.Trainer, why: str) -> Leap:
    """Take part in the round's end without a model of one's own. Collective over the world.

    Called between two attempts of the Trainer, as the failed one has left everything.
    """
    module = trainer.lightning_module
    colearning.plan_round(trainer)
    colearning.epochs_done += colearning.local_epochs - 1 - colearning.epoch_in_round
    colearning.epoch_in_round = colearning.local_epochs - 1
    colearning.record = CenterRecord(colearning.center.name)
    colearning.average(trainer, module, absent=" ".join(why.splitlines()[-2:]))
    colearning.epochs_done += 1
    colearning.close_books(trainer, stop=False)
    # The others' outcomes so far are in the state: they need not be told again.
    colearning.exchange.journal.clear()
    return Leap(colearning.state_dict(), FlatModel.of(module).pack())


def catch_up(colearning: CoLearning, trainer: pl.Trainer, others: RunPlace) -> None:
    """A data center that had been left out goes on from where the others are."""
    skip_epochs(trainer, others.epochs_done - colearning.epochs_done)
    colearning.round, colearning.epochs_done = others.round, others.epochs_done
    colearning.local_epochs, colearning.epoch_in_round = others.local_epochs, others.local_epochs - 1


def land(leap: Leap, colearning: CoLearning, trainer: pl.Trainer) -> None:
    """Bring the Trainer from its resume point to where the others are. To be called in ``on_train_start``."""
    FlatModel.of(trainer.lightning_module).unpack(leap.vector)
    if colearning.optimizer_state == "reset":
        reset_state(trainer.optimizers)
    skip_epochs(trainer, colearning.epochs_done - trainer.current_epoch)
