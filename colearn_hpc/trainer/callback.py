"""CoLearning: the callback that drives the rounds inside one uninterrupted ``trainer.fit()``.

It holds no mathematics (see ``algorithm/``) and no MPI call of its own (see ``mpi/exchange.py``); it knows
*when*: the rate at an epoch's start, the mean at the last batch of a round's last epoch — before validation,
so that validation, metrics and checkpoints see the shared model — and the books at the epoch's end.
"""

from __future__ import annotations

import functools
import logging
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from colearn_hpc.algorithm.learning_rate import EpochPosition, LearningRateSchedule
from colearn_hpc.algorithm.local_epochs import LocalEpochsRule
from colearn_hpc.algorithm.outer import OuterOptimizer
from colearn_hpc.errors import ConfigurationError, Interrupted
from colearn_hpc.mpi.exchange import Exchange
from colearn_hpc.mpi.topology import CentersSpec, DataCenter
from colearn_hpc.trainer import books as bookkeeping
from colearn_hpc.trainer import overlap, recovery, rules
from colearn_hpc.trainer import resume_points as resume_files
from colearn_hpc.trainer.averaging import Averaging, RunPlace
from colearn_hpc.trainer.books import Books
from colearn_hpc.trainer.ensemble import Ensemble
from colearn_hpc.trainer.environment import join_trainer
from colearn_hpc.trainer.fingerprint import check_unchanged, fingerprint
from colearn_hpc.trainer.lightning_gaps import callbacks_of, wants_stop
from colearn_hpc.trainer.metrics import MetricsSplit, batch_size
from colearn_hpc.trainer.optimizers import BaseRates, OptimizerState, first_rate
from colearn_hpc.trainer.outputs import save_shared_model, saves_shared_model, separate_outputs
from colearn_hpc.trainer.restart import OnFailure, Restarts, environment_of, run_with_restarts
from colearn_hpc.trainer.round_log import CenterRecord, RoundLog, RoundRecord, summary_of
from colearn_hpc.trainer.sit_out import catch_up

log = logging.getLogger("colearn_hpc")

_STATE: tuple[str, ...] = ("run_id", "round", "epoch_in_round", "epochs_done", "rule_epochs", "local_epochs")
_STATE += ("relative_change", "averaged", "_untaken", "data", "settings")


class CoLearning(Callback):
    """Co-learning (Mi et al. 2020) for any LightningModule: add it to ``Trainer(callbacks=[...])``.

    Start one process per GPU with ``mpirun`` or ``srun``. With one process per data center nothing else is
    needed; for several, also pass ``plugins=[DataCenterEnvironment(K)]`` to the Trainer.

    Args:
        rounds: stop after so many rounds; None goes on until the Trainer's own limits. Where
            ``max_epochs`` ends a round early, that round is shortened and still averaged.
        local_epochs: T_0, local epochs of the first round.
        epsilon: ε of eq. 4, for ``local_epochs_rule="ile"``. Watch ``relative_change`` in ``rounds.jsonl``.
        learning_rate: ηⁱ for all parameter groups; None keeps each group's own as the base.
        decay: r of eq. 3, for ``schedule="clr"``.
        schedule: ``"clr"`` (eq. 3), ``"elr"`` (one exponential decay over the run), ``"constant"``, ``"none"``
            (rates are the optimizer's and its scheduler's business), or any object with a ``factor`` method
            (:class:`~colearn_hpc.algorithm.learning_rate.LearningRateSchedule`).
        local_epochs_rule: ``"ile"`` (eq. 4), ``"fle"`` (fixed), or any object with ``first`` and ``next``
            (:class:`~colearn_hpc.algorithm.local_epochs.LocalEpochsRule`).
        max_local_epochs: bound for ``"ile"``; None doubles for ever, as the paper.
        optimizer_state: at a round's end ``"reset"`` it, ``"keep"`` it, or ``"average"`` it like the weights.
        weighting: ``"uniform"`` (the paper's plain mean) or ``"examples"`` (by the examples trained on).
        outer_optimizer: a rival of the plain mean, :class:`~colearn_hpc.algorithm.outer.OuterSGD`; None: the mean.
        exchange: how the mean travels: ``{"codec": "fp32" | "bf16" | "fp16" | "int8"}``, see ``algorithm/codec.py``;
            ``{"overlap": True}``: while the next round's first local epoch is trained, see ``trainer/overlap.py``;
            ``{"lanes": 1}``: by leaders alone instead of a rank per node, see ``mpi/lanes.py``.
        combine: ``"weights"`` (eq. 2), or ``"predictions"``: ensemble-learning, see ``trainer/ensemble.py``.
        centers: number of data centers or their sizes, where no DataCenterEnvironment says so.
        run_dir: the run folder (see ``round_log.py``); None: ``colearn`` in the Trainer's ``default_root_dir``.
        resume_points: write a resume point at every local epoch's end, and one where SIGUSR1 or SIGTERM stops the run.
        round_timeout: seconds to wait for another data center at a round's end; None waits for ever.
        restarts: how often in one round a data center that failed begins again from its last resume point, where
            :meth:`fit` runs the Trainer.
        on_failure: what comes after that, or when ``round_timeout`` has passed: ``"stop"`` ends the run (the paper
            wants all participants), ``"continue_without"`` takes the round's mean over the others; the missing one
            takes part again with the next shared model.

    Raises:
        ConfigurationError: an argument is impossible, or contradicts another.
    """

    def __init__(
        self,
        rounds: int | None = None,
        local_epochs: int = 5,
        epsilon: float = 0.01,
        learning_rate: float | None = None,
        decay: float = 0.25,
        schedule: Literal["clr", "elr", "constant", "none"] | LearningRateSchedule = "clr",
        local_epochs_rule: Literal["ile", "fle"] | LocalEpochsRule = "ile",
        max_local_epochs: int | None = None,
        optimizer_state: OptimizerState = "reset",
        weighting: Literal["uniform", "examples"] = "uniform",
        outer_optimizer: OuterOptimizer | None = None,
        combine: Literal["weights", "predictions"] = "weights",
        exchange: dict[str, Any] | None = None,
        centers: CentersSpec | DataCenter = None,
        run_dir: str | Path | None = None,
        resume_points: bool = True,
        round_timeout: float | None = None,
        restarts: int = 3,
        on_failure: OnFailure = "stop",
    ) -> None:
        rules.check_choices(rounds, learning_rate, schedule, optimizer_state, weighting, combine, outer_optimizer)
        rules.check_failures(round_timeout, restarts, on_failure, optimizer_state, combine)
        self.schedule = rules.schedule_of(schedule, decay)
        self.rule = rules.local_epochs_rule_of(local_epochs_rule, local_epochs, epsilon, max_local_epochs)
        self.rounds = rounds
        self.learning_rate = learning_rate
        self.optimizer_state: OptimizerState = optimizer_state
        self.weighting, self.combine, self.outer_optimizer = weighting, combine, outer_optimizer
        self.codec, self.overlaps, self.lanes = rules.exchange_of(exchange, combine, outer_optimizer)
        if self.overlaps:
            rules.check_overlap(optimizer_state, combine, outer_optimizer, on_failure)
        self.centers = centers
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.resume_points = resume_points
        self.round_timeout = round_timeout
        self.restarts = Restarts(restarts, on_failure)

        # Where the run stands: travels in every checkpoint.
        self.round = 0
        self.epoch_in_round = 0
        self.epochs_done = 0
        self.rule_epochs = self.rule.first()  # T_i as the rule says
        self.local_epochs = self.rule_epochs  # T_i as trained: max_epochs may cut the last round short
        self.relative_change: float | None = None
        self.rates: list[float] = []  # of this round's local epochs
        self.run_id = ""
        self.stop_reason = ""
        self.data: dict[str, str] = {}  # what this data center trains on
        self.settings: dict[str, str] = {}  # the run's fingerprint
        self.averaged = False  # this epoch ended its round
        self.ended: Books | None = None  # the round whose mean is under way: the one before, in the epoch after it
        self.landed: Books | None = None  # the round before, whose mean came at this epoch's end
        self._untaken = False  # trained since the last mean
        self._loaded: dict[str, Any] | None = None  # the averaging's state, from a resume point

        self._resumed = False
        self.record = CenterRecord("")
        self.last_record: RoundRecord | None = None
        self._epoch_start = 0.0
        self.started = 0.0
        self.examples = 0  # that this process has trained on since it began

    # --- Lightning's hooks, in the order in which they run --------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if (environment := environment_of(trainer)) is not None:
            environment.note_process_group()
        self._connect(trainer)
        self.folder = self.run_dir or Path(trainer.default_root_dir) / "colearn"
        self.teardown(trainer, pl_module, stage)  # an attempt that failed before this one
        self.round_log = RoundLog(self.folder, self.center.name, self.center.is_first, self.center.is_leader)
        if self.restarts.under_way:
            return  # the others are far from here
        self.saves_shared = saves_shared_model(self.folder, self.exchange)
        if not any(isinstance(callback, recovery.EpochEnd) for callback in callbacks_of(trainer)):
            callbacks_of(trainer).append(recovery.EpochEnd(self))
        if trainer.progress_bar_callback is not None and self.center.index != 0:
            trainer.progress_bar_callback.disable()  # one bar for the run
        separate_outputs(trainer, self.exchange)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rules.check_trainer(trainer, pl_module, self.schedule)
        self._rates = BaseRates(trainer.optimizers, self.learning_rate)
        self.metrics = MetricsSplit()
        alone = self.combine == "predictions"
        self.averaging: Averaging = Ensemble(self.exchange) if alone else overlap.averaging_of(self)
        if self._loaded is not None:
            self.averaging.load_state_dict(self._loaded)
            self._loaded = None
        if self.restarts.under_way:
            self.round_log.rewind(self.round)
            self._epoch_start = time.monotonic()
            self.restarts.under_way = False
            return
        settings = fingerprint(trainer, pl_module, rules.settings_of(self))
        self.exchange.compare("start", settings)
        check_unchanged(self.settings, settings)
        self.settings = settings
        if not self._resumed:
            self.run_id = self.exchange.decide("run id", lambda: uuid.uuid4().hex)
            # w⁰ of Algorithm 1: everything, frozen parameters and counters included.
            self.exchange.broadcast([*pl_module.parameters(), *pl_module.buffers()])
            self.averaging.start_from(pl_module)
            self.record = CenterRecord(self.center.name)
        place = f"run {self.run_id[:8]}, round {self.rounds_done} of T={self.rule_epochs}"
        resume_files.check_same_place(place if self._resumed else "the start", self.exchange)
        self.round_log.rewind(self.rounds_done)
        self.started = self._epoch_start = time.monotonic()
        if self.rounds is not None and self.rounds_done >= self.rounds:
            trainer.should_stop = True  # a finished run was resumed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ended is not None and overlap.resume(self, trainer):
            self._untaken = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.plan_round(trainer)
        if self.schedule is not None:
            position = EpochPosition(self.round, self.epoch_in_round, self.local_epochs, self.epochs_done)
            self._rates.apply(self.schedule.factor(position))
        self.rates.append(first_rate(trainer.optimizers))
        self._epoch_start = time.monotonic()

    def plan_round(self, trainer: pl.Trainer) -> None:
        """T_i as it will be trained, where a round begins."""
        if self.epoch_in_round == 0:
            self.local_epochs, self.rates = rules.planned_epochs(self, trainer), []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.record.examples += (size := batch_size(batch))
        self.examples += size
        self._untaken = True
        if trainer.is_last_batch:
            self.read_clock()
            self._end_epoch(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.metrics.before_validation(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.averaged and isinstance(self.averaging, Ensemble) and dataloader_idx == 0:
            self.averaging.predict(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shared = (self.averaged or self.landed is not None) and self.averaging.shares_model
        self.metrics.after_validation(trainer, shared)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch(trainer, pl_module)  # a training_step that returns -1 skips the last batch's hook
        self.record.local_metrics, shared = self.metrics.split(trainer)
        of = self.landed if self.landed is not None and not self.averaged else self
        of.record.shared_metrics = shared
        if self.averaged and isinstance(self.averaging, Ensemble):
            self.record.shared_metrics = self.averaging.evaluate(trainer, pl_module)
        self.epochs_done += 1
        self.epoch_in_round += 1

    def read_clock(self) -> None:
        """Book the seconds trained since the epoch's start, or since the last call in the epoch."""
        now = time.monotonic()
        self.record.train_seconds += now - self._epoch_start
        self._epoch_start = now

    def _end_epoch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """What is due when a local epoch has been trained; nothing when it has been done already."""
        if self.ended is not None and self.ended.round < self.round:
            overlap.land(self, trainer)
        if self.epoch_in_round == self.local_epochs - 1 and not self.averaged and self.ended is None:
            self.average(trainer, module)

    def finish_epoch(self, trainer: pl.Trainer) -> None:
        """The books of a round, after every other callback has had its say. Called by :class:`EpochEnd`."""
        overlap.finish_epoch(self, trainer)
        if self.averaged:
            self.close_books(trainer, stop=wants_stop(trainer))
        if self.stop_reason:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._untaken:  # max_steps, max_time or a user's stop ended the Trainer in mid-round
            self.average(trainer, pl_module, leaving=True)
            self.close_books(trainer, stop=True)
        self.round_log.summarize(**summary_of(self), status="finished", stopped_by=self.stop_reason or "the Trainer")
        self.exchange.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != "fit":
            return
        if getattr(exception, "everywhere", False):
            return self._end(exception)
        # A DataModule's setup comes before ours: then the others are on their way to meet us.
        self._connect(trainer)
        verdict = self.restarts.after(exception, self, trainer)
        if verdict.action == "stop":
            self._end(exception)
            self.exchange.fail(exception, verdict.text)

    def _end(self, exception: BaseException) -> None:
        if hasattr(self, "round_log"):
            status = "interrupted" if isinstance(exception, Interrupted) else "failed"
            self.round_log.summarize(**summary_of(self), status=status, error=str(exception))
            log.info("%s: %r", status, exception)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and hasattr(self, "round_log"):
            self.round_log.close()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE} | {
            "rates": list(self.rates),
            "record": asdict(self.record),
            "ended": None if self.ended is None else asdict(self.ended),
            "averaging": self.averaging.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.restarts.leap is not None:
            state_dict = self.restarts.leap.state
        for name in _STATE:
            setattr(self, name, state_dict[name])
        self.rates = list(state_dict["rates"])
        self.record = CenterRecord(**state_dict["record"])
        self.ended = Books.of(state_dict.get("ended"))
        self._loaded = state_dict["averaging"]
        self._resumed = True

    def fit(self, trainer: pl.Trainer, model: pl.LightningModule, ckpt_path: Any = None, **data: Any) -> None:
        """``trainer.fit(...)``, and again from this data center's last resume point when it fails (see ``restart.py``).

        Raises:
            Exception: what ended the run when ``restarts`` were used up or could not help.
        """
        run_with_restarts(self, trainer, model, lambda path: trainer.fit(model, ckpt_path=path, **data), ckpt_path)

    def resume_path(self) -> Path | None:
        """The resume point from which this data center should continue, for ``trainer.fit(ckpt_path=...)``.

        None where there is nothing to continue. Collective over the world; needs ``run_dir``.

        Raises:
            CheckpointError: on all ranks, when the data centers' resume points do not fit together.
        """
        if self.run_dir is None:
            raise ConfigurationError("resume_path() needs CoLearning(run_dir=...), found None")
        center = self.centers if isinstance(self.centers, DataCenter) else DataCenter.join(self.centers)
        return resume_files.find_resume_point(self.run_dir, Exchange(center, self.round_timeout))

    # --- a round's end --------------------------------------------------------------------------------

    @property
    def rounds_done(self) -> int:
        """Rounds whose mean is there."""
        return self.round - (self.ended is not None and self.ended.round < self.round)

    def books(self, epochs_done: int) -> Books:
        """Of the round that is trained."""
        found = self.relative_change, self.rule_epochs
        return Books(self.round, self.local_epochs, epochs_done, self.rates, self.record, *found)

    def average(self, trainer: pl.Trainer, module: pl.LightningModule, leaving: bool = False, absent: str = "") -> None:
        """Equations 2 and 4. Collective over the world."""
        ending = self.books(self.epochs_done + 1)
        leaving = leaving or (self.averaging.overlaps and wants_stop(trainer))
        last = bookkeeping.is_last(self, ending, trainer)
        place = RunPlace(self.round, self.local_epochs, self.epochs_done, leaving, last)
        decide = functools.partial(bookkeeping.decide, self, ending)
        decision = self.averaging.run(module, trainer.optimizers, self.record, place, decide, absent)
        self._untaken = False
        if decision is None:
            self.ended = ending
            return
        self.relative_change, self.rule_epochs, self.stop_reason = decision
        if self.record.absent and (others := self.averaging.others_place) != place:
            catch_up(self, trainer, others)
        self.averaged = True
        save_shared_model(self, trainer)

    def close_books(self, trainer: pl.Trainer, stop: bool) -> None:
        """Log the round and step to the next. Collective over the world."""
        bookkeeping.close(self, self.books(self.epochs_done), trainer, stop)
        self.begin_round()

    def begin_round(self) -> None:
        """Step to the next."""
        self.round += 1
        self.epoch_in_round = 0
        self.averaged = False
        self.record = CenterRecord(self.center.name)
        self.metrics = MetricsSplit()

    # --- checks and small things ----------------------------------------------------------------------

    def _connect(self, trainer: pl.Trainer) -> None:
        """Find this process's place, once. Collective over the world."""
        if not hasattr(self, "exchange"):
            self.center = join_trainer(trainer, self.centers)
            self.exchange = Exchange(self.center, self.round_timeout, self.lanes)
            self.exchange.may_miss = self.restarts.on_failure == "continue_without"
