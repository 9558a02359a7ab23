"""The few things for which Lightning 2.6 has no (typed) public face. Look here first when Lightning changes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.data import _set_sampler_epoch
from lightning_fabric.utilities.types import _Stateful
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loops.fetchers import _DataLoaderIterDataFetcher
from pytorch_lightning.utilities.parsing import lightning_hasattr, lightning_setattr
from torch import Tensor

from colearn_hpc.errors import CheckpointError, ConfigurationError
from colearn_hpc.trainer.writing import opened_new


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """The Trainer's own list of callbacks, public but unannotated in 2.6; what is appended is called."""
    return trainer.callbacks  # type: ignore[attr-defined]


def set_callbacks(trainer: pl.Trainer, callbacks: list[Callback]) -> None:
    """Replace the list: 2.6 may be going through the old one, and would call one of them twice where others move."""
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


# What Lightning calls at every batch.
_BATCH_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)


def pass_over_empty_hooks(callback: Callback) -> None:
    """Have Lightning skip the callback's hooks that do nothing: 2.6 takes 2 µs and more for each, and passes over what
    is not callable. Hooks of a subclass stay, and so does what their ``super()`` means."""
    for name in _BATCH_HOOKS:
        if getattr(type(callback), name) is getattr(Callback, name):
            setattr(callback, name, None)


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuse callbacks that cannot be had together with rounds.

    Raises:
        ConfigurationError: there is one.
    """
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks_of(trainer)):
        raise ConfigurationError(
            "StochasticWeightAveraging sets rates of its own and ends with an average of one data center's weights. "
            "Leave it out; to average over rounds use CoLearning(outer_optimizer=OuterSGD(0.5, 0.0, nesterov=False))"
        )


def tuners(trainer: pl.Trainer) -> list[Callback]:
    """Callbacks that train a few steps when a fit begins, and put everything back from a checkpoint of their own."""
    return [one for one in callbacks_of(trainer) if isinstance(one, BatchSizeFinder | LearningRateFinder)]


def drop_tuners(trainer: pl.Trainer) -> None:
    """Between two fits: no search begins the next one."""
    callbacks_of(trainer)[:] = [one for one in callbacks_of(trainer) if one not in tuners(trainer)]


def note_found_rate(trainer: pl.Trainer) -> None:
    """Have the module remember the rate that its optimizer has now: what :class:`LearningRateFinder` found in another
    data center. Optimizers are made anew after a failure."""
    finder = next((one for one in tuners(trainer) if isinstance(one, LearningRateFinder)), None)
    if finder is not None and trainer.optimizers:
        module = trainer.lightning_module
        names = [finder._attr_name] if finder._attr_name else ["lr", "learning_rate"]
        for name in names:
            if lightning_hasattr(module, name):
                lightning_setattr(module, name, float(trainer.optimizers[0].param_groups[0]["lr"]))


def average_from_here(trainer: pl.Trainer) -> None:
    """Have Lightning's ``WeightAveraging`` begin again at the module as it is: the shared model, of which validation
    and the end of ``fit`` are to speak. Its average is private in 2.6."""
    for callback in callbacks_of(trainer):
        average = getattr(callback, "_average_model", None)
        if isinstance(callback, WeightAveraging) and average is not None:
            average.module.load_state_dict(trainer.lightning_module.state_dict())


def write_checkpoint(trainer: pl.Trainer, path: Path, weights_only: bool, mode: int | None = None) -> None:
    """``trainer.save_checkpoint``, written where it belongs, with permissions ``mode``; None: as the umask has it.
    Collective over the data center.

    2.6 writes through a transaction of fsspec in the system's temporary folder, which may be full, small or missing. A
    user's own plugin for checkpoints is left its way.
    """
    io = trainer.strategy.checkpoint_io
    if type(io) is not TorchCheckpointIO:
        trainer.save_checkpoint(path, weights_only=weights_only)
        return
    problem: OSError | None = None
    try:
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
        if trainer.is_global_zero:
            with opened_new(path, mode, binary=True) as file:
                torch.save(checkpoint, file)
    except OSError as error:
        problem = error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):  # how torch says that the disk is full
            raise
        problem = OSError(f"{path}: {error}")
    trainer.strategy.barrier("write_checkpoint")
    if problem is not None:
        raise problem


def rename_version(logger: CSVLogger | TensorBoardLogger, version: int | str, suffix: str) -> None:
    """Set a logger's version, after it has made its folder: 2.6 makes it before a callback's first hook.

    The old folder stays, so that the next run gets another number.
    """
    base = version if isinstance(version, str) else f"version_{version}"
    logger._version = f"{base}-{suffix}" if base else suffix
    logger._experiment = None


def group_run(logger: Logger, run_name: str, center: str) -> None:
    """Have a service show the runs of all data centers as one group, before 2.6 makes this one: it does so before a
    callback's first hook. What the user has set stays, but for the data center's name at the end of the run's.

    Args:
        logger: W&B's and MLflow's are known; others are left as they are.
        run_name: of the run folder.
        center: the data center's name.
    """
    if isinstance(logger, WandbLogger) and logger._experiment is None:
        settings = logger._wandb_init
        settings["group"] = settings.get("group") or run_name
        settings["name"] = logger._name = f"{settings.get('name') or run_name}-{center}"
    elif isinstance(logger, MLFlowLogger) and not logger._initialized and logger._run_id is None:
        logger._run_name = f"{logger._run_name or run_name}-{center}"


def mark_run(logger: Logger, run_name: str, center: str) -> None:
    """Write into a service's run to which run and data center it belongs, so that the user can group by it there."""
    marks = {"colearn_run": run_name, "data_center": center}
    if isinstance(logger, WandbLogger):
        logger.experiment.config.update(marks, allow_val_change=True)
    elif isinstance(logger, MLFlowLogger) and logger.run_id is not None:
        for key, value in marks.items():
            logger.experiment.set_tag(logger.run_id, key, value)


def wants_stop(trainer: pl.Trainer) -> bool:
    """Whether the Trainer will leave its loop after this epoch; 2.6 decides it after the last hook."""
    met_epochs = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
    met_steps = trainer.global_step >= (trainer.min_steps or 0)
    return (trainer.should_stop and met_epochs and met_steps) or 0 <= trainer.max_steps <= trainer.global_step


def can_skip_batches(trainer: pl.Trainer) -> bool:
    """Whether a resumed epoch can find its place: its length is known, and not ``training_step`` itself fetches."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and fetcher.length is not None and not isinstance(fetcher, _DataLoaderIterDataFetcher)


def restart_epoch(trainer: pl.Trainer, skip: int) -> None:
    """Make a resumed epoch's data iterator anew, and read and drop the batches that it has trained.

    To be called in ``on_train_start``. 2.6 makes the first iterator before it tells the samplers the epoch: with
    workers, which fetch ahead, a resumed epoch would have the order of epoch 0. It counts the skipped batches itself
    (``data_fetcher.fetched``) when the epoch goes on. Loaders with ``state_dict`` have been told their place
    already; samplers with ``start_at`` are told it here.
    """
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None:
        return
    stateful = [isinstance(loader, _Stateful) for loader in fetcher.combined_loader.flattened]
    if all(stateful):
        return
    if any(stateful):
        raise CheckpointError(
            "some of the training loaders have state_dict() and some do not: the place in the epoch is unknown; "
            "delete the newest resume point of each data center to go on from the epoch's start"
        )
    # 2.6 will warn that this loader cannot be resumed: it is being resumed here.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    loaders = fetcher.combined_loader.flattened
    for loader in loaders:
        _set_sampler_epoch(loader, trainer.current_epoch)
    starts = [getattr(getattr(loader, "sampler", None), "start_at", None) for loader in loaders]
    if skip and all(starts):
        for start_at in filter(None, starts):
            start_at(skip)
        skip = 0
    iter(fetcher)
    for _ in range(skip):
        next(fetcher)
    fetcher.fetched -= skip


def batches_done(trainer: pl.Trainer) -> tuple[int, bool]:
    """Batches done in the epoch under way, and whether they are all; (0, False) between two epochs.

    Raises:
        CheckpointError: right now no run could go on as if nothing had happened: a batch is half trained, or an epoch
            begins.
    """
    loop = trainer.fit_loop.epoch_loop
    # Annotated as their base class in 2.6.
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = loop.batch_progress.current
    if epoch.ready == epoch.processed:
        return 0, False
    if epoch.started < epoch.ready:
        raise CheckpointError("while a local epoch began")
    if batches.processed < batches.ready or not batches.ready:
        raise CheckpointError("in the middle of a batch")
    trained = bool(loop.batch_progress.is_last_batch)
    if trained and batches.completed < batches.processed:
        raise CheckpointError("at the last batch of a local epoch, before its validation")
    return int(batches.ready), trained


def skip_epochs(trainer: pl.Trainer, epochs: int) -> None:
    """Count ``epochs`` epochs as done that were not trained here."""
    progress = trainer.fit_loop.epoch_progress
    for part in (progress.total, progress.current):
        for count in ("ready", "started", "processed", "completed"):
            setattr(part, count, getattr(part, count) + epochs)


def running_sums(trainer: pl.Trainer) -> dict[str, dict[str, Tensor]]:
    """The sums behind ``self.log(..., on_epoch=True)`` of the epoch under way; no checkpoint of 2.6 holds them."""
    results = trainer.fit_loop.epoch_loop._results
    return {
        key: {name: getattr(metric, name).detach().cpu().clone() for name in metric._defaults}
        for key, metric in results.items()
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
    }


def add_running_sums(trainer: pl.Trainer, sums: dict[str, dict[str, Tensor]]) -> None:
    """Put what :func:`running_sums` found before an interruption under what was logged since; takes it out of ``sums``.

    A result exists from its first ``log`` on. After one batch it holds that batch's term alone, so that
    adding it to the old sum is the very addition of a run that was not interrupted.
    """
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        if key not in sums or metric.has_reset:
            continue
        before = {name: value.to(metric.value.device) for name, value in sums.pop(key).items()}
        if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
            metric.value = metric.meta.reduce_fx(before["value"], metric.value)
        else:
            for name, value in before.items():
                setattr(metric, name, value + getattr(metric, name))
        metric._computed = None
