"""CoLearning: the callback that drives the rounds inside one uninterrupted ``trainer.fit()``.

It holds no mathematics (see ``algorithm/``), decides nothing (see ``protocol/run.py``) and sends nothing (see
``protocol/conversation.py``): Lightning's hooks tell the run what happened, and what the run answers is performed here.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Callback
from colearn_hpc.algorithm.combine import Combine
from colearn_hpc.algorithm.kept_model import KeptModel
from colearn_hpc.algorithm.learning_rate import EpochPosition, LearningRateSchedule, WarmUp, schedule_of
from colearn_hpc.algorithm.local_correction import LocalCorrection
from colearn_hpc.algorithm.local_epochs import (
    FixedEpochs,
    InSteps,
    LocalEpochsRule,
    counts_steps,
    local_epochs_rule_of,
)
from colearn_hpc.algorithm.outer import OuterOptimizer
from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.errors import (
    CenterBrokenError,
    ColearnError,
    ConfigurationError,
    Interrupted,
    LeftOut,
    PeerError,
)
from colearn_hpc.join import CentersSpec, DataCenter, as_site, end_world, start_command
from colearn_hpc.protocol.contract import digest_of_texts
from colearn_hpc.protocol.conversation import is_everywhere, mark_everywhere
from colearn_hpc.protocol.failures import Failure, RestartPolicy
from colearn_hpc.protocol.messages import Absent, Topic, TopicKind, describe_elsewhere, describe_error
from colearn_hpc.protocol.reports import CenterReport, RoundReport
from colearn_hpc.protocol.run import Round, RoundPlace, Run, RunState, Step
from colearn_hpc.protocol.settings import OnFailure, OptimizerState, ValidationMode
from colearn_hpc.trainer.announce import announce, introduce, say
from colearn_hpc.trainer.arguments import membership_of, settings_of
from colearn_hpc.trainer.averager import Averager, LateAverager, MeanResult
from colearn_hpc.trainer.averaging import MeanAverager, changes_model
from colearn_hpc.trainer.before_round_0 import agree, check_same_run, share_first_model
from colearn_hpc.trainer.blocks import Blocks, check_counts_steps
from colearn_hpc.trainer.correcting import CorrectsGradients
from colearn_hpc.trainer.current_fit import CurrentFit
from colearn_hpc.trainer.deciding import decider
from colearn_hpc.trainer.ensemble import EnsembleAverager
from colearn_hpc.trainer.environment import check_trainer, join_trainer, joined_center
from colearn_hpc.trainer.epoch_end import EpochEnd
from colearn_hpc.trainer.epoch_start import EpochStart
from colearn_hpc.trainer.fingerprint import (
    check_data,
    check_lengths,
)
from colearn_hpc.trainer.joining import Joining, check_can_join, hand_on, joining_of, take_over
from colearn_hpc.trainer.keeping import KeptModelAverager
from colearn_hpc.trainer.lightning_gaps import (
    LOCAL,
    average_from_here,
    callbacks_of,
    check_callbacks,
    expect,
    is_sharded,
    limits_of,
    note_found_rate,
    pass_over_empty_hooks,
    set_callbacks,
    set_limits,
    skip_epochs,
    tuners,
    wants_stop,
    when_restored,
)
from colearn_hpc.trainer.metrics import batch_size, check_weight
from colearn_hpc.trainer.model_digest import model_digest
from colearn_hpc.trainer.optimizers import (
    BaseRates,
    LossScale,
    check_scheduler,
    first_rate,
    rates_of,
    reset_state,
    set_rates,
)
from colearn_hpc.trainer.outputs import claim_folder, save_model, separate_outputs
from colearn_hpc.trainer.overlapped import OverlappedAverager
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.point_writer import PointWriter
from colearn_hpc.trainer.prepare import Preparation
from colearn_hpc.trainer.privacy_budget import check_monitors, epochs_left, epsilon_of
from colearn_hpc.trainer.resume_points import check_origin, check_same_place, find_resume_point
from colearn_hpc.trainer.round_end import Decide, RoundEnd
from colearn_hpc.trainer.run_folder import RunFolder, log
from colearn_hpc.trainer.sharded import check_settings, fresh_state, put_rank_state, rank_state
from colearn_hpc.trainer.standing import Standing
from colearn_hpc.trainer.streaming import StreamingAverager
from colearn_hpc.trainer.sums import WholeSums
from colearn_hpc.trainer.supervisor import Rejoin, Supervisor, check_process_group, environment_of
from colearn_hpc.trainer.tally import Tally
from colearn_hpc.trainer.validation import Validation
from colearn_hpc.trainer.writing import remove_leftovers


class CoLearning(Callback):
    """Co-learning (Mi et al. 2020) for any LightningModule: add it to ``Trainer(callbacks=[...])``.

    Start one process for each GPU with ``mpirun`` or ``srun``. Where every data center has one process, nothing else
    is needed on CPUs. Where it has several, and on GPUs, give the Trainer
    ``**DataCenterEnvironment(K).trainer_arguments()`` as well, so that each process takes a GPU of its own.

    The arguments come in six groups: rounds and rates (``rounds`` to ``max_local_epochs``), the mean
    (``optimizer_state`` to ``kept_model``), how it travels and who may know what (``exchange``, ``privacy``), where the
    run is (``centers`` to ``resume_points``), failures (``round_timeout`` to ``share_tracebacks``), and how the Trainer
    is used (``validation`` to ``warmup_steps``).

    Args:
        rounds: stop after this many rounds. None: the Trainer's own limits end the run. A round that ``max_epochs``
            cuts short is averaged too.
        local_epochs: T_0, the number of local epochs in the first round.
        local_steps: T_0 in optimizer steps, in place of ``local_epochs``. Then T, j of eq. 3 and the doubling of eq. 4
            count steps, and a loader needs no length. See ``trainer/blocks.py``.
        epsilon: ε of eq. 4: T doubles when the relative change is at most ε. For ``local_epochs_rule="ile"``. To choose
            it, look at ``relative_change`` in ``rounds.jsonl``. ``"auto"``: T doubles when the change has stopped
            falling (:class:`~colearn_hpc.algorithm.local_epochs.PlateauEpochs`).
        learning_rate: ηⁱ, the base rate of all parameter groups. None: each group keeps its own.
        decay: r of eq. 3, the ratio of a round's last rate to the base rate. For ``schedule="clr"``.
        schedule: the learning rate. ``"clr"``: eq. 3. ``"elr"``: one exponential decay over the run. ``"constant"``:
            the base rate. ``"none"``: the optimizer and its own scheduler set it. Or any object with a ``factor``
            method (:class:`~colearn_hpc.algorithm.learning_rate.LearningRateSchedule`).
        local_epochs_rule: how T changes from round to round. ``"ile"``: eq. 4. ``"fle"``: it stays T_0. Or any object
            with ``first`` and ``next`` (:class:`~colearn_hpc.algorithm.local_epochs.LocalEpochsRule`).
        max_local_epochs: the largest T of ``"ile"``. None: T has no bound, as in the paper.
        max_local_steps: the same in optimizer steps. For ``local_steps``.
        optimizer_state: what happens to the optimizer's state at a round's end. ``"reset"``: it begins anew.
            ``"keep"``: it stays. ``"average"``: it is averaged like the weights.
        weighting: ``"uniform"``: all models count alike, as in the paper. ``"examples"``: each counts by the number of
            examples that it was trained on.
        outer_optimizer: the step from one shared model to the next, for example
            :class:`~colearn_hpc.algorithm.outer.OuterSGD`. None: the mean is the next shared model.
        combine: how the models become one. ``"weights"``: by their mean (eq. 2). ``"trimmed_mean"`` and ``"median"``
            bound what a few data centers can do, whatever they send. Or any object with a ``combine`` method
            (:class:`~colearn_hpc.algorithm.combine.Combine`). ``"predictions"``: not at all, their predictions are
            averaged (ensemble-learning, see ``trainer/ensemble.py``).
        local_correction: what pulls a data center's steps towards those of the others:
            :class:`~colearn_hpc.algorithm.local_correction.FedProx` or
            :class:`~colearn_hpc.algorithm.local_correction.Scaffold`. None: nothing.
        local_layers: what is not averaged and stays in its data center: ``"batch_norm"`` (FedBN), or names of layers
            such as ``["network.head"]``. Each data center then writes its model to ``centers/NAME/own.ckpt`` too.
        kept_model: which model is evaluated and saved, for example
            :class:`~colearn_hpc.algorithm.kept_model.LatestMean` (LAWA). Training goes on from the shared model all
            the same. None: the shared model.
        exchange: how the mean travels.
            ``{"codec": "fp32" | "bf16" | "fp16" | "int8" | "int4" | "topk"}``: in how many bits, see
            ``algorithm/codec.py``.
            ``{"overlap": True}``: while the next round's first local epoch is trained, see ``trainer/overlapped.py``.
            ``{"overlap": True, "mixing": 0.5}``: the same, and training goes on from 0.5 w_k + 0.5 w̄ then, see
            ``algorithm/overlap.py``.
            ``{"device": True}``: from GPU memory to GPU memory, see ``mpi/tensor_wire.py``.
            ``{"lanes": 1}``: by the leaders alone, where otherwise one rank of each node takes part, see
            ``mpi/lanes.py``.
            ``{"sums": "float64" | "fixed32" | "fixed64"}``: as sums of weights in float64, or of steps as whole
            numbers, see ``algorithm/fixed_point.py``.
            ``{"fragments": P}``: a round ends with the mean of one of P fragments of the model, and only that travels,
            see ``trainer/streaming.py``. With an outer optimizer this is Streaming DiLoCo.
        privacy: who may know what. ``{"secure": True}``: masks hide each data center's model, and only the sum can be
            known; what a data center measures on its own data stays there. This takes three data centers or more, and
            sums of whole numbers. ``"share_metrics": True`` lets these measurements travel. ``"public_validation":
            True`` says that everyone may know the validation data, and lets the shared model's metrics travel. See the
            page "Privacy" of the documentation.
        centers: the number of data centers, or a list of their sizes in ranks, where no DataCenterEnvironment says so.
        run_dir: the run folder; ``trainer/run_folder.py`` lists its files. None: ``colearn`` in the Trainer's
            ``default_root_dir``.
        resume_points: write a resume point at the end of every local epoch, and where SIGUSR1 or SIGTERM stops the run.
        round_timeout: how many seconds to wait for another data center at a round's end. None: for ever.
        restarts: how often in one round a data center that failed begins again from its last resume point. Only
            :meth:`fit` can do that; ``trainer.fit`` cannot.
        on_failure: what happens when no restart is left, or ``round_timeout`` has passed. ``"stop"``: the run ends,
            because the paper wants all participants. ``"continue_without"``: the round's mean is taken over the others,
            and the missing data center takes part again with the next shared model.
        share_tracebacks: tell other data centers the text and the traceback of an exception. Otherwise they are told
            its class, file name and line, because a text may quote a patient's row.
        federation: the file ``federation.yaml`` of a run whose sites share no MPI world; this MPI world is one of the
            sites. Or a membership that was read from it. ``round_timeout`` and ``on_failure`` are then those of the
            file. See the page "Federation" of the documentation.
        site: this site's name in the federation. None: the name in its certificate.
        identity: the folder of the site's certificate and key. None: a folder of the site's name beside the file.
        validation: which model the validation loop sees, and when. ``"round"``: the shared model, at rounds' ends;
            ``val_...``, loggers, ``ModelCheckpoint(monitor=...)`` and ``EarlyStopping`` see nothing else. ``"epoch"``:
            between means also the local model, as ``local/val_...``. ``"lightning"``: whichever model there is when the
            Trainer validates; ``combine="predictions"`` always does that. See ``trainer/validation.py``.
        warmup_epochs: in this many first local epochs of the run the rates rise along a line to those of the schedule,
            which may be any but ``"none"``.
        warmup_steps: the same in optimizer steps.

    Attributes:
        settings: all of this, as one frozen value.

    Raises:
        ConfigurationError: an argument is impossible, or contradicts another.
    """

    def __init__(
        self,
        rounds: int | None = None,
        local_epochs: int = 5,
        epsilon: float | Literal["auto"] = 0.01,
        learning_rate: float | None = None,
        decay: float = 0.25,
        schedule: Literal["clr", "elr", "constant", "none"] | LearningRateSchedule = "clr",
        local_epochs_rule: Literal["ile", "fle"] | LocalEpochsRule = "ile",
        max_local_epochs: int | None = None,
        optimizer_state: OptimizerState = "reset",
        weighting: Literal["uniform", "examples"] = "uniform",
        outer_optimizer: OuterOptimizer | None = None,
        combine: Literal["weights", "predictions", "trimmed_mean", "median"] | Combine = "weights",
        local_correction: LocalCorrection | None = None,
        local_layers: Literal["batch_norm"] | list[str] | None = None,
        kept_model: KeptModel | None = None,
        exchange: dict[str, Any] | None = None,
        privacy: dict[str, Any] | None = None,
        centers: CentersSpec | DataCenter = None,
        run_dir: str | Path | None = None,
        resume_points: bool = True,
        round_timeout: float | None = None,
        restarts: int = 3,
        on_failure: OnFailure = "stop",
        share_tracebacks: bool = False,
        federation: Any = None,
        site: str | None = None,
        identity: str | Path | None = None,
        validation: ValidationMode = "round",
        warmup_epochs: int = 0,
        warmup_steps: int = 0,
        local_steps: int | None = None,
        max_local_steps: int | None = None,
    ) -> None:
        self._membership = membership_of(federation, site, identity)
        rule = local_epochs_rule_of(
            local_epochs_rule, local_epochs, epsilon, max_local_epochs, local_steps, max_local_steps
        )
        self.settings = settings_of(
            self._membership,
            rounds=rounds,
            rule=rule,
            schedule=schedule_of(schedule, decay, in_steps=counts_steps(rule)),
            learning_rate=learning_rate,
            optimizer_state=optimizer_state,
            weighting=weighting,
            combine=combine,
            outer_optimizer=outer_optimizer,
            local_correction=local_correction,
            local_layers=local_layers,
            kept_model=kept_model,
            exchange=exchange,
            privacy=privacy,
            round_timeout=round_timeout,
            restarts=restarts,
            on_failure=on_failure,
            resume_points=resume_points,
            share_tracebacks=share_tracebacks,
            validation=validation,
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
        )
        self._centers, self._run_dir = centers, None if run_dir is None else Path(run_dir)
        self._supervisor = Supervisor(RestartPolicy(restarts, on_failure))
        self._preparation = Preparation()
        self._place: Place | None = None
        self._run = Run(RunState.new("", self.settings.rule.first()), rounds=rounds, overlap=False)
        self._fit = CurrentFit()
        pass_over_empty_hooks(self)

    # --- Lightning's hooks, in the order in which they run ------------------------------------------------

    @property
    def log(self) -> Any:
        """The module's ``log``, as in every callback."""
        return vars(self)["log"]

    @log.setter
    def log(self, function: Any) -> None:
        # Lightning sets this right before it prepares data; no hook comes as early.
        vars(self)["log"] = function
        if isinstance(module := getattr(function, "__self__", None), pl.LightningModule):
            self._before_data(module.trainer)

    def _before_data(self, trainer: pl.Trainer) -> None:
        """Collective over the world where it has not joined yet."""
        if trainer.state.fn != "fit":
            return
        center = join_trainer(trainer, self._centers)
        if self._centers is None and environment_of(trainer) is None and center.world_size == 1:
            say(f"one data center: nothing is averaged: was mpirun forgotten? ({start_command(5)})")
        if not isinstance(self._centers, DataCenter):
            self._centers = center
        if environment_of(trainer) is None and trainer.world_size > center.size:
            check_trainer(trainer, center)  # in `setup` it is too late: ranks would have met, or missed a GPU
        if len(center.topology.centers) > 1:
            owners = (trainer.datamodule, trainer.lightning_module)  # type: ignore[attr-defined]
            self._preparation.guard([one for one in owners if one is not None], center.start)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        place = self._connect(trainer)
        check_trainer(trainer, place.center)
        if is_sharded(trainer):
            check_settings(trainer, self.settings)
        if (before := self._fit.folder) is not None:
            before.close()  # of an attempt that failed before this one
        path = self._run_dir or Path(trainer.default_root_dir) / "colearn"
        restarted = self._supervisor.attempt.number > 0
        if not restarted:
            self._supervisor.loss_scale = LossScale.of(trainer)
        writes_shared, lock = (False, None) if restarted else claim_folder(path, place)
        center = place.center
        folder = RunFolder(path, center.name, place.conversation.presides, center.is_leader, center.start)
        if self.settings.secure:
            check_monitors(trainer, self.settings)
            if not restarted:
                from colearn_hpc.trainer.secure_sums import SecureSums  # of the extra "privacy"

                self._fit.hiding = SecureSums(place, self.settings, folder.center_folder)
        first, in_steps = self.settings.rule.first(), self.settings.in_steps
        overlaps = self.settings.overlap and not place.alone
        state, block = RunState.new(place.center.name, first), first if in_steps else 1
        self._run = Run(state, rounds=self.settings.rounds, overlap=overlaps, block=block)
        validation = Validation(self.settings, place)
        limits, tally, hiding = limits_of(trainer), Tally(self._fit.tally.examples), self._fit.hiding
        joining = self._fit.joining if restarted else Joining()
        self._fit = CurrentFit(
            folder, self._averager_of(place), validation, limits=limits, tally=tally, hiding=hiding, joining=joining
        )
        if in_steps:
            check_counts_steps(trainer)
            self._fit.blocks = Blocks(trainer)
        if restarted:
            assert before is not None, "a restart follows an attempt"
            folder.continues(before)
        else:
            folder.writes_shared, folder.lock = writes_shared, lock
            if lock is not None:
                remove_leftovers(path)
            separate_outputs(trainer, place, path.resolve().name)
            if trainer.progress_bar_callback is not None and not place.conversation.is_first:
                with contextlib.suppress(NotImplementedError):  # a bar of the user's own may not know how
                    trainer.progress_bar_callback.disable()  # one bar for the run
        check_callbacks(trainer)
        validation.prepare(trainer)
        expect(trainer, self._known_length, in_steps)
        start = EpochStart(self._start_epoch, self._start_batch, self._trainer_ends)
        corrector = getattr(self._fit.averager, "corrector", None)
        corrects = [] if corrector is None else [CorrectsGradients(corrector)]
        # With overlap no rank can begin again before it knows that the point after a mean is there.
        at_once = overlaps and center.size > 1
        self._fit.points = PointWriter(place, folder, self._supervisor, at_once)
        end = EpochEnd(
            place,
            folder,
            self._supervisor,
            self.standing,
            self._close_epoch,
            self._report_trained,
            validation.ends,
            tally,
            self._fit.points,
            self.settings.resume_points,
            self._fit.blocks,
        )
        ours = EpochStart | CorrectsGradients | EpochEnd
        others = [one for one in callbacks_of(trainer) if not isinstance(one, ours)]
        self._fit.epoch_end = end
        set_callbacks(trainer, [start, *others, *corrects, end])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        when_restored(trainer, lambda: self._begin_fit(trainer, pl_module))

    def _begin_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        place, run, fit, settings = self._placed, self._run, self._fit, self.settings
        if fit.loaded is None and not tuners(trainer):  # a tuner has put its own checkpoint back
            check_origin(trainer.ckpt_path)
        self._supervisor.fit_begins(pl_module)
        set_limits(trainer, fit.limits)
        check_scheduler(trainer, pl_module, settings.schedule)
        self._after_tuning(trainer)
        fit.validation.prepare_schedulers(trainer)
        fit.rates = BaseRates(trainer.optimizers, settings.learning_rate)
        fit.averager.watch(pl_module)
        if fit.loaded is not None and place.means.sharded:
            fit.averager.load_state_dict(rank_state(Path(str(trainer.ckpt_path)), place.center.rank, pl_module))
        elif fit.loaded is not None:
            fit.averager.load_state_dict(dict(fit.loaded))
        if self._supervisor.attempt.number > 0:
            fit.folder_.rewind(run.state.lines)
            fit.clock = time.monotonic()
            return
        if fit.loaded is not None and place.between.separate and run.is_finished:
            # The coordinator may have ended with the run: there is nothing left to agree on.
            fit.folder_.begin(pl_module)
            fit.clock, fit.began, trainer.should_stop = time.monotonic(), True, True
            return
        contract = agree(trainer, pl_module, settings, place, run)
        self._preparation.over()
        resumed = fit.loaded is not None
        fit.joining = joining_of(place, resumed)
        if fit.joining != Joining():
            check_can_join(trainer, settings, place)
        if (first := fit.joining.here) is not None:
            run.note(run_id=check_same_run(place, ""))
        elif resumed and place.between.separate:
            check_same_run(place, run.state.run_id)
        elif not resumed:
            run.note(run_id=place.conversation.decide(Topic(TopicKind.RUN_ID), lambda: uuid.uuid4().hex))
            share_first_model(pl_module, place)
            fit.averager.start_from(pl_module)
            if place.means.sharded:
                fresh_state(trainer.optimizers)
        if self._fit.hiding is not None:
            self._fit.hiding.join(run.state.run_id)
        if first is not None:
            before = take_over(first, place, run, pl_module, fit.averager)
            if contract.from_round == first:
                contract = replace(contract, head=before.head, former=before.members)
        state = run.state
        if fit.folder_.lock is not None:
            fit.folder_.lock.note_run(state.run_id)
        start = f"run {state.run_id[:8]}, round {state.rounds_done} of T={state.round.chosen}"
        check_same_place("the start" if not resumed and first is None else start, place)
        fit.folder_.rewind(state.lines)
        fit.folder_.agree(contract)
        fit.folder_.begin(pl_module)
        fit.clock = time.monotonic()
        fit.began = True
        if run.is_finished:
            trainer.should_stop = True  # a finished run was resumed
            if place.conversation.presides:
                log.warning(
                    "%s is finished after %d rounds; raise rounds or choose another folder",
                    fit.folder_.folder,
                    state.rounds_done,
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = self._run
        self._fit.trains, self._fit.steps_now = True, lambda: trainer.global_step
        self._fit.steps = trainer.global_step
        by_hand = self.settings.in_steps and not pl_module.automatic_optimization  # a step of ours may be several
        if not (by_hand or trainer.min_epochs or trainer.min_steps):  # these may let a run go on after its rounds
            expect(trainer, self._known_length, self.settings.in_steps)
        if (blocks := self._fit.blocks) is not None:
            blocks.take_over()
            blocks.begin(run.state.block)  # the rest of it, where a point in its middle is resumed
        if (rejoin := self._supervisor.attempt.rejoin) is not None:
            FlatModel.of(pl_module).unpack(rejoin.vector)
            if self.settings.optimizer_state == "reset":
                reset_state(trainer.optimizers)
                if self._supervisor.loss_scale is not None:
                    self._supervisor.loss_scale.reset()
            if blocks is None:
                skip_epochs(trainer, run.state.epochs_done - trainer.current_epoch)
        check_lengths(trainer, self._placed)
        run.note(data=check_data(trainer, dict(run.state.data)))
        # Others see the digest alone (`data` in rounds.jsonl); here a site can tell what it stands for.
        log.info("trains on %s: %s", digest_of_texts(run.state.data) or "unnamed data", dict(run.state.data))
        if self._supervisor.attempt.number == 0:
            introduce(trainer, self.standing())
        self._fit.validation.shows(trainer, bool(run.state.unlogged))
        first = self._supervisor.attempt.number == 0
        if first and self._fit.joining.here is not None and blocks is None:
            skip_epochs(trainer, run.state.epochs_done - trainer.current_epoch)
        if self._fit.loaded is not None:
            self._fit.loaded = None
            self._follow(run.resumed(), trainer)
            if first:  # a later attempt goes on from a point before or behind that
                self._hand_on(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        fit, examples = self._fit, batch_size(batch)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.settings.weighting == "examples":
            check_weight(batch, examples)
        fit.tally.add(batch_idx + 1, loss, examples, trainer.accumulate_grad_batches)
        if trainer.is_last_batch:
            check_process_group(trainer)
            fit.points_.settle()
            self._report_trained()
            fit.averager.end_epoch(pl_module)
            if fit.blocks is not None:
                self._run.rate(first_rate(trainer.optimizers))
            self._follow(self._run.epoch_trained(), trainer)
            fit.validation.shows(trainer, bool(self._run.state.unlogged))
        fit.epoch_end.batch_done()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._fit.metrics.before_validation(trainer)
            self._fit.validation.begins(trainer, bool(self._run.state.unlogged))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != "fit":
            return
        self._fit.validation.count(batch_size(batch), dataloader_idx)
        if dataloader_idx == 0 and self._run.state.mean_is_taken:
            self._fit.averager.predict(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        shared = bool(self._run.state.unlogged) and self._fit.averager.shares_model
        self._fit.metrics.after_validation(trainer, shared)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run, fit = self._run, self._fit
        fit.points_.settle()
        self._report_trained()
        if fit.blocks is not None and not trainer.is_last_batch:  # max_time, or a user's stop
            run.cut_block(fit.blocks.steps(fit.blocks.fetched))
        self._follow(run.epoch_trained(), trainer)  # a training_step that returns -1 skips the last batch's hook
        local, shared = fit.metrics.split(trainer)
        run.report(local_metrics={name.removeprefix(LOCAL): value for name, value in local.items()})
        run.report_shared(shared)
        if run.state.mean_is_taken and (found := fit.averager.shared_metrics(trainer, pl_module)) is not None:
            run.report_shared(found)
        run.count_epoch()
        fit.validation.ask_monitors(trainer, bool(run.state.unlogged))
        if run.state.unlogged:
            round_ = run.state.unlogged[0]
            fit.validation.agree(trainer, round_.index, shared, local, round_.report.examples)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fit.points_.settle()
        self._fit.points_.close()
        self._report_trained()
        self._follow(self._run.trainer_ended(), trainer)  # max_steps, max_time or a user's stop, in mid-round
        self._fit.averager.show_result(pl_module)
        self._end()

    def _trainer_ends(self) -> None:
        self._fit.ends = True

    def _end(self) -> None:
        """The run is over, and nobody is left to be waited for."""
        self._summarize("finished", stopped_by=self.stop_reason or "the Trainer")
        self._fit.finished = True
        self._placed.conversation.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != "fit":
            return
        if self._fit.points is not None:
            self._fit.points.close()
        if self._fit.folder is not None:
            self._fit.leave(trainer)
        if self._fit.finished:  # on_fit_end, a logger's last words: nothing is left to be done again, or to be told
            return mark_everywhere(exception, after_the_end=True)
        if self._fit.ends and self._run.state.is_done:  # a user's on_train_end before ours; other ranks may have left
            self._end()
            return mark_everywhere(exception, after_the_end=True)
        if is_everywhere(exception):
            if isinstance(exception, Interrupted) and self._place is not None:
                # All are here and leave, so a mean comes to its end; nobody may leave while messages are under way.
                self._place.means.abandon()
            return self._ended_by(exception)
        if self._place is None and self._cannot_tell(trainer, exception):
            return
        place, state = self._connect(trainer, exception), self._run.state
        where = (state.round.index, state.epoch, trainer.fit_loop.batch_idx)
        restartable = self._supervisor.can_restart(exception, place)
        failure = Failure.of(exception, place.center.rank, where, restartable, state.mean_is_taken)
        verdict = self._supervisor.judge(exception, place, trainer, failure)
        if verdict.action == "stop":
            self._ended_by(exception, verdict.elsewhere)
            place.conversation.fail(exception, verdict.text, verdict.elsewhere)
            if isinstance(exception, SystemExit):  # whatever its code is, this run has not succeeded
                said = place.conversation.told(verdict.text, verdict.elsewhere)
                for other in trainer.callbacks[trainer.callbacks.index(self) + 1 :]:  # type: ignore[attr-defined]
                    other.on_exception(trainer, pl_module, exception)  # Lightning calls none after one that raises
                raise PeerError(f"{said}\n(sys.exit() in a run ends it for all data centers)") from exception

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or self._fit.folder is None:
            return
        self._fit.folder.close()
        self._fit.folder.release()
        self._fit.leave(trainer)
        fit, alone = self._fit, self._placed.alone
        if fit.began and not fit.trains and fit.loaded is None and not alone and not trainer.interrupted:
            # Lightning passes over a fit without a batch in silence; the others would wait for ever.
            raise ConfigurationError(
                f"data center {self._placed.center.name} has nothing to train on: its loader has no batch, or "
                "limit_train_batches or max_steps is 0; give it data, or leave it out of the run"
            )

    def state_dict(self) -> dict[str, Any]:
        if self._fit.rates is None:  # a tuner's, which trains before the fit begins
            return {}
        return self._state_dict()

    def _state_dict(self) -> dict[str, Any]:
        self._report_trained()
        sharded = self._placed.means.sharded  # then it is each rank's own, see on_save_checkpoint
        return {"run": self._run.state.to_plain(), "averaging": {} if sharded else self._fit.averager.state_dict()}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._placed.means.sharded and trainer.state.fn == "fit":
            put_rank_state(checkpoint, self._placed.center.rank, self._fit.averager.state_dict(), pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (rejoin := self._supervisor.attempt.rejoin) is not None:
            state_dict = rejoin.state
        if "run" in state_dict:
            state = RunState.from_plain(state_dict["run"])
        else:
            state = RunState.from_first_version(state_dict)
        self._run.state = state
        self._fit.loaded = state_dict["averaging"]

    # --- for users ----------------------------------------------------------------------------------------

    def fit(self, trainer: pl.Trainer, model: pl.LightningModule, ckpt_path: Any = None, **data: Any) -> None:
        """``trainer.fit(...)``, and again from this data center's last resume point when it fails.

        Raises:
            Exception: what ended the run when ``restarts`` were used up or could not help.
        """
        self._supervisor.loads_everything = data.get("weights_only") is False
        check_origin(ckpt_path)
        self._supervisor.run(
            trainer,
            model,
            lambda path: trainer.fit(model, ckpt_path=path, **data),
            ckpt_path,
            lambda: (self._placed, self._fit.folder_.folder),
            lambda: self._fit.points_.settle_after_failure(),
            lambda why: self._miss_round(trainer, why),
        )

    def resume_path(self) -> Path | None:
        """The resume point from which this data center should continue, for ``trainer.fit(ckpt_path=...)``.

        None where there is nothing to continue. Collective over the world; needs ``run_dir``.

        Raises:
            CheckpointError: on all ranks, when the data centers' resume points do not fit together.
        """
        if self._run_dir is None:
            raise ConfigurationError("resume_path() needs CoLearning(run_dir=...), found None")
        center = self._centers if isinstance(self._centers, DataCenter) else DataCenter.join(self._centers)
        # Inside this world alone: a site knows by itself from where it can go on, and the coordinator the rest.
        center = as_site(center, self._membership)
        return find_resume_point(self._run_dir, Place.of(center, patience=self.settings.round_timeout))

    @property
    def _known_length(self) -> int | None:
        """Local epochs or steps of the run, where rounds and T say so beforehand."""
        rounds, rule = self.settings.rounds, self.settings.rule
        rule = rule.rule if isinstance(rule, InSteps) else rule
        return rounds * rule.initial if rounds is not None and isinstance(rule, FixedEpochs) else None

    @property
    def rounds(self) -> int | None:
        """How many rounds are asked for. May be set until ``fit`` begins, like :attr:`schedule`; the rest is said in
        ``CoLearning(...)``."""
        return self.settings.rounds

    @rounds.setter
    def rounds(self, rounds: int | None) -> None:
        self._change(rounds=rounds)

    @property
    def schedule(self) -> LearningRateSchedule | None:
        """What sets the learning rate; None: the optimizer and its scheduler."""
        return self.settings.schedule

    @schedule.setter
    def schedule(self, schedule: LearningRateSchedule | None) -> None:
        warm_up = self.settings.warmup_epochs
        self._change(schedule=schedule if schedule is None or not warm_up else WarmUp(schedule, warm_up))

    def _change(self, **settings: Any) -> None:
        if self._fit.folder is not None and not self._fit.finished:
            raise ConfigurationError(f"{', '.join(settings)} can be set until `fit` begins, and not in a run")
        self.settings = replace(self.settings, **settings)

    @property
    def round(self) -> int:
        """i, the round that is trained; after the run, how many there were."""
        return self._run.state.round.index

    @property
    def stop_reason(self) -> str:
        """Why the run ends; empty while it does not."""
        stop = self._run.state.stop
        return "" if stop is None else stop.text(self.settings.rounds)

    def standing(self) -> Standing:
        """How the run stands, as an immutable snapshot. From ``setup`` on."""
        state, place, center = self._run.state, self._placed, self._placed.center
        return Standing(
            center=center.name,
            rank=center.rank,
            presides=place.conversation.presides,
            centers=", ".join(self._members) if place.between.separate else center.topology.describe(),
            folder=self._fit.folder_.folder,
            rounds=self.settings.rounds,
            round=state.round.index,
            epoch=state.epoch,
            local_epochs=state.round.epochs,
            epochs_done=state.epochs_done,
            rounds_done=state.rounds_done,
            relative_change=state.change,
            examples=self._fit.tally.examples,
            shows=state.unlogged[-1].index if state.unlogged else None,
            ends_round=state.ends_round,
            stopping=state.stop is not None,
            in_steps=self.settings.in_steps,
            block=state.block,
        )

    # --- steps of the run ---------------------------------------------------------------------------------

    def _follow(self, step: Step | None, trainer: pl.Trainer, absent: str = "") -> None:
        """Perform what is due, one step after the other. Collective over the world.

        Args:
            step: what is due.
            trainer: of this data center.
            absent: why it gives nothing to the round; its Trainer is then between two attempts.
        """
        while step is not None and step is not Step.STOP_TRAINER:
            match step:
                case Step.TAKE_MEAN:
                    step = self._take_mean(trainer, absent)
                case Step.BEGIN_MEAN:
                    step = self._begin_mean(trainer)
                case Step.FINISH_MEAN:
                    step = self._finish_mean(trainer)
                case Step.ASK_WHO_GOES_ON:
                    step = self._ask_who_goes_on(trainer)
                case Step.LOG_ROUND:
                    step = self._log_round(trainer, leaves=not absent and wants_stop(trainer))
        if step is Step.STOP_TRAINER:
            trainer.should_stop = True

    def _take_mean(self, trainer: pl.Trainer, absent: str) -> Step | None:
        """Equations 2 and 4."""
        run, state = self._run, self._run.state
        # Fragments that are not due are averaged once more at the run's end.
        leaving = self.settings.fragments is not None and wants_stop(trainer)
        place = run.place(self._limit(trainer), leaving)
        decide = self._decider(state.round, run.epochs_done_then)
        losses, known = self._fit.tally.state, len(state.history)
        left = None if absent else epochs_left(trainer, self.settings.in_steps)
        more = {"absent": absent, "loss": losses, "known": known, "epochs_left": left}
        end = self._round_end(trainer, state.round.report, place, decide, **more)
        return self._taken(self._fit.averager.take(end), place, trainer)

    def _begin_mean(self, trainer: pl.Trainer) -> Step | None:
        """Send the model: the round's that has just been trained, or, after a resume, what was sent before."""
        run, state, averager = self._run, self._run.state, self._late_averager
        round_ = state.travelling or state.round
        place = run.place(self._limit(trainer), leaving=state.travelling is None and wants_stop(trainer))
        report, epochs_done = round_.report, round_.epochs_done or run.epochs_done_then
        losses, known = self._fit.tally.state, len(state.history)
        if state.travelling is not None:
            losses = (0.0, 0.0) if math.isnan(report.loss) else (report.loss, 1.0)
            if not self._placed.center.is_leader:  # the leader's is the data center's sum
                report, losses = replace(report, examples=0), (0.0, 0.0)
        decide = self._decider(round_, epochs_done)
        left = epochs_left(trainer, self.settings.in_steps)
        end = self._round_end(trainer, report, place, decide, loss=losses, known=known, epochs_left=left)
        found = averager.begin(end, again=state.travelling is not None)
        return run.mean_begun(found.report) if found.decision is None else self._taken(found, place, trainer)

    def _round_end(
        self, trainer: pl.Trainer, report: CenterReport, place: RoundPlace, decide: Decide, **more: Any
    ) -> RoundEnd:
        """With what the Trainer trains; ``more``: further fields."""
        module, scale = trainer.lightning_module, self._supervisor.loss_scale
        return RoundEnd(module, trainer.optimizers, report, place, decide, loss_scale=scale, **more)

    def _taken(self, found: MeanResult, place: RoundPlace, trainer: pl.Trainer) -> Step | None:
        assert found.decision is not None, "a mean that is taken is decided on"
        others = None
        if found.report.absent and found.others != place:  # one that had been left out goes on with the others
            others = found.others
            if self._fit.blocks is None:
                skip_epochs(trainer, others.epochs_done - self._run.state.epochs_done)
        average_from_here(trainer)
        report = found.report if found.void else self._signed(found.report, trainer)
        step = self._run.mean_taken(found.decision, report, others)
        if not found.void:  # the module is this data center's own
            self._save_model(trainer)
        return step

    def _finish_mean(self, trainer: pl.Trainer) -> Step | None:
        state, averager = self._run.state, self._late_averager
        round_ = state.travelling
        assert round_ is not None, "it is due only then"
        place = self._run.place_of(round_)
        decide = self._decider(round_, round_.epochs_done)
        found = averager.finish(self._round_end(trainer, round_.report, place, decide))
        assert found.decision is not None, "a mean that is here is decided on"
        average_from_here(trainer)
        step = self._run.mean_finished(found.decision, self._signed(found.report, trainer), self._limit(trainer))
        if state.leaving:
            averager.keep_shared()
        self._save_model(trainer)
        return step

    def _ask_who_goes_on(self, trainer: pl.Trainer) -> Step | None:
        """Who leaves now has no epoch in which the mean could come: then all wait for it, and it is the run's last."""
        round_ = self._run.state.travelling
        assert round_ is not None, "it is due only then"
        asked = self._placed.conversation.meet(Topic(TopicKind.GOING_ON, round_.index), wants_stop(trainer))
        return self._run.going_on(not any(asked.contents.values()))

    def _log_round(self, trainer: pl.Trainer, leaves: bool) -> Step | None:
        """Write the round's line, and tell whoever listens; ``leaves``: this data center's Trainer ends."""
        run, fit, place = self._run, self._fit, self._placed
        state, round_ = run.state, run.state.unlogged[0]
        assert round_.decision is not None, "a round whose mean is there is decided on"
        fit.validation.agree(trainer, round_.index, {}, {}, 0)  # where no epoch's end has come before
        leaves |= state.over or state.leaving
        mine = replace(round_.report, epsilon=epsilon_of(trainer))
        if self.settings.secure and place.center.is_leader:
            log.info("round %d, of this data center alone: %s", round_.index, mine.private_text())
        told = mine.to_be_told(self.settings)
        said = place.conversation.meet(Topic(TopicKind.REPORT, round_.index), [told.to_plain(), leaves])
        reports, anyone_leaves, members = [], False, fit.folder_.members(round_.index)
        for name, brought in zip(place.between.names, said.brought, strict=True):
            if members and name not in members:
                continue  # it had left, or had not joined
            if brought.content is None:
                reports.append(CenterReport(name, absent=brought.why if isinstance(brought, Absent) else ""))
            else:
                reports.append(CenterReport.from_plain(brought.content[0]))
                anyone_leaves |= bool(brought.content[1])
        report = RoundReport(
            round=round_.index,
            local_epochs=round_.epochs,
            learning_rates=list(round_.rates),
            relative_change=round_.decision.change,
            epochs_done=round_.epochs_done,
            next_local_epochs=round_.decision.next_epochs,
            centers=reports,
            unit="steps" if self.settings.in_steps else "epochs",
        )
        fit.folder_.append(report)
        step = run.round_logged(anyone_leaves)
        self._summarize("running")
        announce(trainer, report, run.state.stop is not None, place.conversation.presides)
        fit.averager.show_local(trainer.lightning_module)
        fit.metrics.end_round(fit.validation.by_rounds)
        return step

    def _start_epoch(self, trainer: pl.Trainer) -> None:
        """The rate of a local epoch. Called by :class:`EpochStart`, before any other callback can read it."""
        run = self._run
        run.start_epoch(self._limit(trainer))
        if run.state.epoch == 0:
            self._fit.tally.begin_round()
        if self._fit.blocks is not None:
            self._fit.blocks.begin(run.state.block)
        self._fit.validation.begin_epoch(trainer)
        self._fit.factor = self._factor()
        self._apply_rate(trainer)
        run.rate(first_rate(trainer.optimizers))
        self._fit.clock = time.monotonic()

    def _start_batch(self, trainer: pl.Trainer, first: bool) -> bool:
        """Called by :class:`EpochStart` before the first batch of a local epoch, and before each one as long as this
        says so: the rate rises from step to step."""
        if first:  # all hooks of the epoch's beginning have frozen and unfrozen
            self._fit.averager.begin_epoch(trainer.lightning_module)
        if (blocks := self._fit.blocks) is not None:
            self._fit.factor = self._factor(blocks.steps(blocks.fetched - 1))
        elif not first and self._fit.factor is None and self.settings.warmup_steps:
            self._fit.factor = self._factor()  # resumed in the middle of an epoch
        return self._apply_rate(trainer) or (blocks is not None and self._fit.factor is not None)

    def _factor(self, steps: int = 0) -> float | None:
        """The schedule's, of this local epoch, or after so many steps of this block; None without one."""
        state, schedule = self._run.state, self.settings.schedule
        if schedule is None:
            return None
        done, of_run = state.epoch + steps, state.epochs_done + steps
        return schedule.factor(EpochPosition(state.round.index, done, state.round.epochs, of_run))

    def _apply_rate(self, trainer: pl.Trainer) -> bool:
        """Set the rate of the next step, in all groups, also those that have been added since; returns whether the step
        after that has another."""
        if self._fit.factor is None:
            return False
        share = min((trainer.global_step + 1) / (self.settings.warmup_steps + 1), 1.0)
        self._fit.rates_.apply(self._fit.factor * share)
        return share < 1.0

    def _close_epoch(self, trainer: pl.Trainer) -> None:
        self._follow(self._run.close_epoch(), trainer)
        if self._run.state.epoch == 0:
            self._hand_on(trainer)

    def _hand_on(self, trainer: pl.Trainer) -> None:
        """Hand the run on, where a site joins with the round that is trained. Collective over the world."""
        state, first, folder = self._run.state, self._fit.joining.others, self._fit.folder_
        if first is not None and state.lines == first and state.stop is None:
            said = [folder.head, list(folder.members(first - 1)) if first else []]
            hand_on(first, self._placed, self._run, trainer.lightning_module, self._fit.averager, said)

    def _miss_round(self, trainer: pl.Trainer, why: str) -> Rejoin:
        """Take part in the round's end without a model of one's own. Collective over the world.

        Called between two attempts of the Trainer, as the failed one has left everything.
        """
        run = self._run
        self._fit.tally.reported()
        text = " ".join(why.splitlines()[-2:])
        self._follow(run.miss_round(text, self._limit(trainer)), trainer, absent=text)
        run.count_epoch()
        self._follow(run.close_epoch(), trainer, absent=text)
        # The others' outcomes so far are in the state: they need not be replayed.
        self._placed.journal.forget()
        return Rejoin(self._state_dict(), FlatModel.of(trainer.lightning_module).pack())

    def _after_tuning(self, trainer: pl.Trainer) -> None:
        """A rate that was searched for when the fit began is one for all data centers: the first one's.

        Collective over the world where there is such a callback.
        """
        if not (found := tuners(trainer)):
            return
        name = type(found[0]).__name__
        if self._fit.loaded is not None:
            raise ConfigurationError(
                f"{name} trains a few steps before a checkpoint's place in the run is restored, which would be lost. "
                "Leave it out when a run is resumed, and set what it had found"
            )
        decision = self._placed.conversation.decide(
            Topic(TopicKind.START, detail="rates"), lambda: rates_of(trainer.optimizers)
        )
        set_rates(trainer.optimizers, decision)
        note_found_rate(trainer)

    # --- small things -------------------------------------------------------------------------------------

    def _limit(self, trainer: pl.Trainer) -> int | None:
        """Local epochs or steps of the run at which the Trainer ends; None: there is no such number."""
        limit, steps = self._fit.limits  # the Trainer's may be what is expected
        if self.settings.in_steps:
            # By hand several optimizers may step in what is one step here.
            limit = steps if trainer.lightning_module.automatic_optimization else None
        return limit if (limit or -1) > 0 else None

    def _decider(self, round_: Round, epochs_done: int) -> Decide:
        return decider(self._run, self.settings.rule, round_, epochs_done)

    def _report_trained(self) -> None:
        """Give the run what was trained since the epoch's start, or since the last call in the epoch."""
        batches, examples = self._fit.tally.since_report()
        if batches:
            now, steps = time.monotonic(), self._fit.steps_now()
            self._run.trained(examples, now - self._fit.clock, steps - self._fit.steps)
            self._fit.clock, self._fit.steps = now, steps
            self._fit.tally.reported()

    def _signed(self, report: CenterReport, trainer: pl.Trainer) -> CenterReport:
        """A round's report, with what it was trained on and what came of it."""
        # Of a model in shards no rank has all of it.
        whole = not self._placed.means.sharded and self._fit.averager.shares_model
        shares = whole and self._fit.folder_.writes_run
        model = model_digest(trainer.lightning_module.state_dict()) if shares else ""
        return replace(report, data=digest_of_texts(self._run.state.data), model=model)

    def _save_model(self, trainer: pl.Trainer) -> None:
        """Write the model with which the round ends."""
        folder, averager = self._fit.folder_, self._fit.averager
        if folder.writes_shared or not averager.shares_model:
            path = averager.checkpoint_path(folder.folder, folder.center_folder)
            save_model(trainer, path, self._placed.center, required=self._run.state.stop is not None)
        if self.settings.local_layers is not None:
            path, required = folder.center_folder / "own.ckpt", self._run.state.stop is not None
            save_model(trainer, path, self._placed.center, required=required)

    def _summarize(self, status: str, **content: Any) -> None:
        if self._fit.folder is not None:
            content |= {"unit": "steps"} if self.settings.in_steps else {}
            center, names = self._placed.center, self._members
            self._fit.folder.summarize(self._run.state, names, center.world_size, status=status, **content)

    def _ended_by(self, exception: BaseException, elsewhere: str = "") -> None:
        """Note the end; ``elsewhere``: what others hear of it, where this rank only noticed another one's error."""
        if self._fit.folder is not None:
            status = "interrupted" if isinstance(exception, Interrupted) else "failed"
            trained = self._fit.trains or self._supervisor.attempt.number > 0
            if trained or not (self._fit.folder.folder / "summary.json").exists():  # that of the start before stays
                self._summarize(status, error=self._brief(exception, elsewhere))
            log.info("%s: %s", status, describe_error(exception))
            self._fit.folder.release()
            self._fit.folder.close()  # what this process does next is no part of the run

    def _brief(self, error: BaseException, elsewhere: str) -> str:
        """For the summary, which others may read."""
        place = self._place
        shares = self.settings.share_tracebacks if place is None else place.conversation.shares_tracebacks
        with contextlib.suppress(Exception):  # its own __str__ fails
            noticed = isinstance(error, CenterBrokenError)  # it says what the other rank's error said
            if shares or (isinstance(error, ColearnError | Interrupted | LeftOut) and not noticed):
                return str(error) or type(error).__name__
        return elsewhere or describe_elsewhere(error)

    def _averager_of(self, place: Place) -> Averager:
        if self.settings.combine == "predictions":
            return EnsembleAverager(place, self.settings)
        whole = self.settings.whole_numbers and not place.alone
        if self.settings.fragments is not None and changes_model(place, self.settings):
            return StreamingAverager(place, self.settings)
        sums = WholeSums(place, self.settings, self._fit.hiding) if whole else None
        if self.settings.overlap and not place.alone:
            return OverlappedAverager(place, self.settings, sums)
        return (MeanAverager if self.settings.kept_model is None else KeptModelAverager)(place, self.settings, sums)

    @property
    def _late_averager(self) -> LateAverager:
        averager = self._fit.averager
        assert isinstance(averager, OverlappedAverager | StreamingAverager), "only there means are begun"
        return averager

    def _connect(self, trainer: pl.Trainer, error: BaseException | None = None) -> Place:
        """Find this process's place, once. Collective over the world.

        Args:
            trainer: of this data center.
            error: of this rank, which has nothing else to tell.
        """
        if self._place is None:
            center, settings = as_site(join_trainer(trainer, self._centers), self._membership), self.settings
            failed = None if error is None else lambda: describe_error(error)
            self._place = Place.of(
                center,
                settings.transfer_lanes,
                settings.round_timeout,
                settings.may_miss,
                failed,
                self.settings.share_tracebacks,
                self._membership,
                is_sharded(trainer),
                trainer.strategy.root_device if settings.device else None,
            )
        return self._place

    def _cannot_tell(self, trainer: pl.Trainer, error: BaseException) -> bool:
        """Whether this rank failed before it has met any other, and cannot meet them now: then all are ended, or it is
        alone.

        A DataModule's ``prepare_data`` and ``setup`` come before ours, and the others are on their way to meet us. A
        rank that has not even joined must not begin a collective in which nobody else is.
        """
        if (environment := environment_of(trainer)) is not None:
            environment.leave_process_group()  # its peers may wait for it there
        if joined_center(trainer, self._centers) is not None:
            return False
        end_world(describe_error(error))
        return True

    @property
    def _members(self) -> list[str]:
        """Names of the data centers that have not left the run for good."""
        between = self._placed.between
        return [between.names[k] for k in between.roster]

    @property
    def _placed(self) -> Place:
        assert self._place is not None, "from setup on"
        return self._place
