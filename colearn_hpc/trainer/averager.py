"""What a round's end does to models, as the callback sees it: :class:`Averager`, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from colearn_hpc._lightning import LightningModule, Trainer
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.run import Decision, RoundPlace
from colearn_hpc.trainer.round_end import RoundEnd


@dataclass(frozen=True)
class MeanResult:
    """What came of a round's end.

    Attributes:
        report: this data center's, with what it cost.
        decision: None where the mean has only begun.
        others: where those are who gave to the mean.
        void: there was none, and the module is the local model still.
    """

    report: CenterReport
    decision: Decision | None
    others: RoundPlace
    void: bool = False


class Averager(Protocol):
    """What a round's end does to models.

    Attributes:
        shares_model: after a round all data centers hold one model.
    """

    shares_model: bool

    def watch(self, module: LightningModule) -> None:
        """See the module before it is trained, in each ``fit``."""

    def start_from(self, module: LightningModule) -> None:
        """Take the module as the shared model that round 0 starts from."""

    def begin_epoch(self, module: LightningModule) -> None:
        """A local epoch begins: what is trainable now is trained in it."""

    def end_epoch(self, module: LightningModule) -> None:
        """Its last batch is done.

        Raises:
            ConfigurationError: other parameters are trainable than at its beginning.
        """

    def take(self, end: RoundEnd) -> MeanResult:
        """Average once. Collective over the world.

        Raises:
            ParticipantError: this data center's model must not enter the mean, or, on all ranks, the data
                centers' models do not fit together. No weights have been touched then.
        """

    def show_local(self, module: LightningModule) -> None:
        """Where the module was made the shared model only for a time: make it the local one again."""

    def show_result(self, module: LightningModule) -> None:
        """The run has ended: make the module its result. Collective over the data center."""

    def predict(self, trainer: Trainer, module: LightningModule, batch: Any, batch_index: int) -> None:
        """See a batch of the validation after a mean."""

    def shared_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, float] | None:
        """Metrics of the shared model where validation did not give them. Collective over the world."""

    def checkpoint_path(self, run_folder: Path, center_folder: Path) -> Path:
        """Where the model that a round ends with is kept."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to continue."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LateAverager(Averager, Protocol):
    """An :class:`Averager` whose means may come an epoch late."""

    def begin(self, end: RoundEnd, again: bool = False) -> MeanResult:
        """Send what is to be averaged, or average at once where no epoch follows in which the mean could come.
        Collective over the world.

        Args:
            end: of the round.
            again: send what a checkpoint says was sent.

        Returns:
            Without a decision where the mean has begun.
        """

    def finish(self, end: RoundEnd) -> MeanResult:
        """Wait for the mean that is under way, and make it the module's until :meth:`show_local`. Collective over the
        world.

        Args:
            end: of the round that is averaged.
        """

    def keep_shared(self) -> None:
        """No epoch follows: the module stays the shared model."""


class HoldsOneModel:
    """What averagers have in common whose data centers hold one model after a round."""

    shares_model = True

    def predict(self, trainer: Trainer, module: LightningModule, batch: Any, batch_index: int) -> None:
        """Validation itself measures the shared model."""

    def shared_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, float] | None:
        return None

    def checkpoint_path(self, run_folder: Path, center_folder: Path) -> Path:
        return run_folder / "shared.ckpt"

    def show_local(self, module: LightningModule) -> None:
        """The module is the shared model until it is trained on."""

    def show_result(self, module: LightningModule) -> None:
        """The module is that already."""
