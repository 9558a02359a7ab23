"""A local epoch's end, after every other callback: the round's line, then the resume point, then a stop if asked.

A resume point is a Lightning checkpoint (weights, optimizers, loops, callbacks) plus the random number generators of
every rank: what a data center needs to continue with the bits of a run that was never interrupted. One is written at
the start, at the end of every local epoch, and in the middle where the run was asked to stop (see mid_epoch.py).
resume_points.py knows the files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Checkpoint
from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    first_non_finite,
    float_buffers,
    infinite_buffers,
    trainable_parameters,
)
from colearn_hpc.errors import CheckpointError, FingerprintError, Interrupted, ParticipantError
from colearn_hpc.trainer import signals
from colearn_hpc.trainer.blocks import Blocks
from colearn_hpc.trainer.generators import generators, set_generators, set_rank_generators
from colearn_hpc.trainer.heartbeat import Heartbeat
from colearn_hpc.trainer.lightning_gaps import (
    add_running_sums,
    batches_done,
    pass_over_empty_hooks,
    restart_epoch,
    when_restored,
)
from colearn_hpc.trainer.mid_epoch import epoch_metrics, is_safe_point, restore_metrics
from colearn_hpc.trainer.optimizers import float_state
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.point_writer import PointWriter
from colearn_hpc.trainer.resume_points import path_of
from colearn_hpc.trainer.run_folder import RunFolder
from colearn_hpc.trainer.standing import Standing
from colearn_hpc.trainer.supervisor import Supervisor
from colearn_hpc.trainer.tally import Tally

log = logging.getLogger("colearn_hpc")


class EpochEnd(Checkpoint):
    """Closes a local epoch after everyone else, writes resume points, and stops the run when asked to.

    A ``Checkpoint`` by class, because Lightning calls those last; added by :class:`CoLearning`. For the sake of
    microseconds a batch the heartbeat is no callback of its own, and ``on_train_batch_end`` is there for Lightning only
    at batches at whose end there is something to do.

    Args:
        place: this process's.
        folder: the run's.
        supervisor: who begins again after a failure.
        standing: tells how the run stands.
        close_epoch: closes the epoch; called in ``on_train_epoch_end``.
        report_trained: gives the run what was trained since the epoch's start, for a point in its middle.
        end_validation: what is to be done when all have seen what a validation found.
        tally: of what this rank has trained.
        points: writes resume points.
        resume_points: whether they are written.
        blocks: where the run counts steps: they know the place in the data, which each point holds then.
    """

    best_model_path = ""  # Lightning asks the first Checkpoint for it; without ModelCheckpoint that is this one

    def __init__(
        self,
        place: Place,
        folder: RunFolder,
        supervisor: Supervisor,
        standing: Callable[[], Standing],
        close_epoch: Callable[[pl.Trainer], None],
        report_trained: Callable[[], None],
        end_validation: Callable[[pl.Trainer], None],
        tally: Tally,
        points: PointWriter,
        resume_points: bool,
        blocks: Blocks | None = None,
    ) -> None:
        self._place, self._folder, self._supervisor = place, folder, supervisor
        self._standing, self._close_epoch, self._report_trained = standing, close_epoch, report_trained
        self._end_validation, self._points = end_validation, points
        self._tally, self._writes, self._blocks = tally, resume_points, blocks
        self._conversation, self._stops = place.conversation, place.conversation.stops
        self._heartbeat = Heartbeat(place, standing, folder, tally)
        self._trainer: pl.Trainer | None = None
        self._saving = False  # the checkpoint that is written is a resume point
        # Of each rank: its generators, and under "loss" its Tally's state, under "data" its place in them.
        self._generators: list[dict[str, Any]] = []  # as they were before the epoch's data iterator was made
        self._middle: dict[str, Any] = {}  # where in the epoch, if in the middle of it
        self._sums: dict[str, dict[str, torch.Tensor]] = {}
        self._constant: dict[str, torch.Tensor] = {}  # buffers that are infinite by design
        self._resumed = False
        self._trained = False  # the epoch that is resumed is trained, and only its end is to come
        self._epochs_begun = 0  # in this fit
        pass_over_empty_hooks(self)

    # --- Lightning's hooks ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        when_restored(trainer, lambda: self._begin_fit(trainer, pl_module))

    def _begin_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trainer, self._epochs_begun = trainer, 0
        self._constant = infinite_buffers(pl_module)
        self._heartbeat.start()
        if self._resumed:
            # Here, and not later: the first epoch's data iterator, made next, already draws.
            set_rank_generators(self._generators, self._place.center.rank)
        else:
            if self._blocks is not None:
                self._blocks.start_from(generators())
            self._generators = self._place.site.gather(self._of_rank()) or []
        if self._writes:
            self._stops.signal = signals.first
            signals.listen()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_back_signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._heartbeat.trains(trainer)
        self._take_back_signals()
        if self._supervisor.attempt.rejoin is not None:
            self._middle = {}
        batch = self._middle.get("batches", 0)
        now = self._standing()
        log.info("training from round %d, epoch %d, batch %d", now.round, now.epochs_done, batch)
        if self._resumed:
            self._check_ranks()
            set_rank_generators(self._generators, self._place.center.rank)
            states = [of_rank["generators"] for of_rank in self._middle.get("ranks", [])] or self._generators
            self._restore_losses(states)
            if self._blocks is None:
                restart_epoch(trainer, batch)
            else:
                self._restore_place(self._blocks, states[self._place.center.rank])
        if self._middle:
            mine = self._middle["ranks"][self._place.center.rank]
            restore_metrics(pl_module, mine["metrics"])
            self._sums = mine["sums"]
            set_generators(mine["generators"])
            self._middle = {}
        if self._writes:
            if not self._resumed:
                self._save(trainer)
            self._place.journal.remembers = self._supervisor.supervises

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epochs_begun += 1
        self._heartbeat.begins_epoch(trainer)

    def batch_done(self) -> None:
        """A batch was trained. Called by :class:`CoLearning` in its ``on_train_batch_end``, before the one below.
        Collective over the data center."""
        # Asked here as well, because each call that finds nothing to do costs microseconds.
        if self._place.means.under_way or time.monotonic() >= self._conversation.next_look:
            self._conversation.progress(self._heartbeat.text)
        if self._writes and not self._stops.alone:
            self._stops.confer()

    @property
    def on_train_batch_end(self) -> Any:
        """The hook; None where there is nothing to do, which Lightning passes over."""
        stops = self._writes and (self._stops.due or signals.received)
        return self._end_batch if self._sums or stops else None

    def _end_batch(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._sums:
            add_running_sums(trainer, self._sums)
        if not self._writes:
            return
        if signals.received:  # perhaps sent by another callback, after batch_done
            self._stops.poll()
        if self._stops.due and is_safe_point(trainer, batch_idx):
            self._report_trained()
            self._middle = self._where_in_epoch(trainer, batch_idx + 1)
            self._save(trainer, batch_idx + 1, at_once=True)
            self._stop()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._heartbeat.validates()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._conversation.progress(self._heartbeat.text)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._heartbeat.trains(trainer)
        self._end_validation(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_epoch(trainer)
        if not self._writes:
            return
        self._check_finite(trainer, pl_module)
        if self._trained:  # nothing of that epoch was drawn again
            set_rank_generators(self._generators, self._place.center.rank)
            self._trained = False
        self._generators = self._place.site.gather(self._of_rank()) or []
        self._sums = {}
        self._save(trainer)
        # Known to all data centers alike: after the last round there is nothing left to stop.
        if not self._standing().stopping and self._stops.agreed():
            self._points.settle()
            self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._heartbeat.end("finished")
        signals.forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._heartbeat.end("interrupted" if isinstance(exception, Interrupted) else "failed")
        if isinstance(exception, Interrupted):
            signals.served()
            if self._conversation.presides:
                log.warning("%s; every data center has its resume point: start again with --resume", exception)

    # --- checkpoints ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of a resume point, or of a checkpoint that somebody else writes at this moment. Collective over the data
        center, as writing a checkpoint is."""
        if self._trainer is None:  # a tuner's, which trains before the fit begins
            return {}
        if self._saving:
            return {"generators": self._generators, "middle": self._middle, "trained": False, "unfit": ""}
        found, middle, trained, unfit = self._generators, {}, False, ""
        try:
            batches, trained = batches_done(self._trainer)
            if trained and self._standing().ends_round:
                unfit = "between the last batch of a round and the epoch's end"
            elif not batches or trained:
                # Until the first epoch has begun, those from before its iterator was made; see on_fit_start.
                found = self._place.site.gather(self._of_rank()) or [] if self._epochs_begun else found
            elif is_safe_point(self._trainer, batches - 1):
                middle = self._where_in_epoch(self._trainer, batches)
            else:
                unfit = "at a batch after which no run can go on (gradients are accumulated, or validation follows)"
        except CheckpointError as moment:
            unfit = str(moment)
        return {"generators": found, "middle": middle, "trained": trained, "unfit": unfit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if unfit := state_dict.get("unfit"):
            raise CheckpointError(
                f"this checkpoint was written {unfit}, from where no run can go on as if nothing had happened; "
                "continue from a resume point (`--resume`, or ckpt_path=colearning.resume_path()), or write "
                "checkpoints at a local epoch's end"
            )
        self._generators = state_dict["generators"]
        self._middle = state_dict.get("middle", {})
        self._trained = state_dict.get("trained", False)
        self._resumed = True

    def _of_rank(self) -> dict[str, Any]:
        mine = generators() | {"loss": list(self._tally.state)}
        return mine if self._blocks is None else mine | {"data": self._blocks.place}

    def _restore_place(self, blocks: Blocks, of_rank: dict[str, Any]) -> None:
        """Go on in the data where a point was written."""
        blocks.restore(of_rank["data"])
        if of_rank["data"]["batches"]:  # nothing has been drawn but the first pass's order otherwise
            set_generators(of_rank)

    def _restore_losses(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Go on with the losses of a point in an epoch's middle, or with those of an epoch's end."""
        states = [one["loss"] for one in ranks if "loss" in one]
        self._tally.restore(states, self._place.center.rank, self._place.center.size)

    def _where_in_epoch(self, trainer: pl.Trainer, batches: int) -> dict[str, Any]:
        """What a point in the middle of an epoch needs. Collective over the data center."""
        mine = epoch_metrics(trainer, trainer.lightning_module) | {"generators": self._of_rank()}
        mine["sums"] |= self._sums
        return {"batches": batches, "ranks": self._place.site.gather(mine)}

    def _save(self, trainer: pl.Trainer, batches: int = 0, at_once: bool = False) -> None:
        """Write this data center's resume point. Collective over the data center."""
        now = self._standing()
        path = path_of(self._folder.center_folder, now.rounds_done, now.epochs_done, batches)
        self._saving = True
        try:
            self._points.write(trainer, path, at_once)
        finally:
            self._saving = False

    # --- checks and stops -------------------------------------------------------------------------------

    def _check_finite(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Every restart from a resume point with NaN in it would fail again, and the points before it are removed."""
        buffers = float_buffers(module, self._constant)
        model = FlatModel(trainable_parameters(module), [*buffers, *float_state(trainer.optimizers)])
        if name := first_non_finite(None, model):
            raise ParticipantError(
                f"NaN or Inf in the model of data center {self._place.center.name} ({name}) after local epoch "
                f"{self._standing().epochs_done - 1}; lower the learning rate or clip gradients"
            )

    def _check_ranks(self) -> None:
        """A data center may be resumed with more ranks or fewer, though not in the middle of an epoch."""
        center, before = self._place.center, len(self._generators)
        if center.size == before:
            return
        if self._blocks is not None:
            raise FingerprintError(
                f"where steps are counted, each rank goes on at its own place in the data: data center {center.name} "
                f"trained with {before} rank(s), and now it has {center.size}; resume it with {before}"
            )
        if self._middle:
            raise FingerprintError(
                f"this resume point is from the middle of an epoch that data center {center.name} trained with "
                f"{before} rank(s), and now it has {center.size}; resume with {before} until the next local epoch's "
                "end, whose point can be resumed with any number"
            )
        if center.is_leader:
            log.warning(
                "data center %s goes on with %d rank(s) instead of %d: it draws other batches than it would have",
                center.name,
                center.size,
                before,
            )

    def _stop(self) -> NoReturn:
        log.info("resume point written, leaving: %s", self._stops.reason)
        self._conversation.stop()

    def _take_back_signals(self) -> None:
        if self._writes:
            signals.listen()
