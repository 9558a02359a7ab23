"""The few things for which Lightning 2.6 has no (typed) public face. Look here first when Lightning changes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Callback, CSVLogger, TensorBoardLogger, fabric_of, kinds
from colearn_hpc.errors import CheckpointError, ConfigurationError, text_of
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
    refused = kinds("callbacks", "StochasticWeightAveraging")
    if any(isinstance(callback, refused) for callback in callbacks_of(trainer)):
        raise ConfigurationError(
            "StochasticWeightAveraging sets rates of its own and ends with an average of one data center's weights. "
            "Leave it out; to average over rounds use CoLearning(outer_optimizer=OuterSGD(0.5, 0.0, nesterov=False))"
        )


def tuners(trainer: pl.Trainer) -> list[Any]:
    """Callbacks that train a few steps when a fit begins, and put everything back from a checkpoint of their own."""
    searches = kinds("callbacks", "BatchSizeFinder") + kinds("callbacks", "LearningRateFinder")
    return [one for one in callbacks_of(trainer) if isinstance(one, searches)]


def drop_tuners(trainer: pl.Trainer) -> None:
    """Between two fits: no search begins the next one."""
    callbacks_of(trainer)[:] = [one for one in callbacks_of(trainer) if one not in tuners(trainer)]


def note_found_rate(trainer: pl.Trainer) -> None:
    """Have the module remember the rate that its optimizer has now: what ``LearningRateFinder`` found in another data
    center. Optimizers are made anew after a failure."""
    finders = kinds("callbacks", "LearningRateFinder")
    finder = next((one for one in tuners(trainer) if isinstance(one, finders)), None)
    if finder is not None and trainer.optimizers:
        module = trainer.lightning_module
        parsing: Any = import_module(f"{pl.package_of(trainer).__name__}.utilities.parsing")
        names = [finder._attr_name] if finder._attr_name else ["lr", "learning_rate"]
        for name in names:
            if parsing.lightning_hasattr(module, name):
                parsing.lightning_setattr(module, name, float(trainer.optimizers[0].param_groups[0]["lr"]))


def limits_of(trainer: pl.Trainer) -> tuple[int | None, int]:
    """The Trainer's ``max_epochs`` and ``max_steps``."""
    return trainer.max_epochs, trainer.max_steps


def set_limits(trainer: pl.Trainer, limits: tuple[int | None, int]) -> None:
    """Set what :func:`limits_of` has told."""
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = limits


def expect(trainer: pl.Trainer, length: int | None, in_steps: bool) -> None:
    """Let ``trainer.estimated_stepping_batches`` know how many epochs or steps a run has. Where the fit ends, the
    Trainer's own limits have to be put back."""
    epochs, steps = limits_of(trainer)
    limit = steps if in_steps else epochs
    if length is not None and (limit is None or limit == -1 or limit > length):
        set_limits(trainer, (epochs, length) if in_steps else (length, steps))


def set_epoch_length(trainer: pl.Trainer, batches: int) -> None:
    """The epoch that begins has so many batches: when it ends, and when it is validated."""
    trainer.fit_loop.max_batches = batches
    if trainer.val_check_batch is not None:  # None: by the clock
        interval = trainer.val_check_interval
        every = interval if isinstance(interval, int) else max(1, int(batches * (interval or 1)))
        trainer.val_check_batch = every


def average_from_here(trainer: pl.Trainer) -> None:
    """Have Lightning's ``WeightAveraging`` begin again at the module as it is: the shared model, of which validation
    and the end of ``fit`` are to speak. Its average is private in 2.6."""
    for callback in callbacks_of(trainer):
        average = getattr(callback, "_average_model", None)
        if isinstance(callback, kinds("callbacks", "WeightAveraging")) and average is not None:
            average.module.load_state_dict(trainer.lightning_module.state_dict())


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether each rank of the Trainer holds a part of the model (see sharded.py)."""
    return isinstance(trainer.strategy, kinds("strategies", "ModelParallelStrategy"))


def writes_one_file(trainer: pl.Trainer) -> bool:
    """Whether a checkpoint is one file that the leader writes: no folder with a part per rank, and no plugin of the
    user's own writes it."""
    return not is_sharded(trainer) and type(trainer.strategy.checkpoint_io) in kinds("plugins.io", "TorchCheckpointIO")


def checkpoint_of(trainer: pl.Trainer, weights_only: bool = False) -> dict[str, Any]:
    """What ``trainer.save_checkpoint`` would write. Collective over the data center."""
    found: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only)
    return found


def write_checkpoint(trainer: pl.Trainer, path: Path, weights_only: bool, mode: int | None = None) -> None:
    """``trainer.save_checkpoint``, written where it belongs, with permissions ``mode``; None: as the umask has it.
    Collective over the data center.

    2.6 writes through a transaction of fsspec in the system's temporary folder, which may be full, small or missing. A
    user's own plugin for checkpoints is left its way. So is a strategy that writes a folder with a part per rank.
    """
    if is_sharded(trainer):
        trainer.strategy.save_checkpoint(checkpoint_of(trainer, weights_only), path)
        return
    if not writes_one_file(trainer):
        trainer.save_checkpoint(path, weights_only=weights_only)
        return
    problem: OSError | None = None
    try:
        checkpoint = checkpoint_of(trainer, weights_only)
        if trainer.is_global_zero:
            write_file(checkpoint, path, mode)
    except OSError as error:
        problem = error
    trainer.strategy.barrier("write_checkpoint")
    if problem is not None:
        raise problem


def write_file(checkpoint: dict[str, Any], path: Path, mode: int | None = None) -> None:
    """Write a checkpoint into a new file, on the disk at the end.

    Raises:
        OSError: the disk refuses.
    """
    try:
        with opened_new(path, mode, binary=True) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if "PytorchStreamWriter" not in text_of(error):  # how torch says that the disk is full
            raise
        raise OSError(f"{path}: {error}") from error


def when_restored(trainer: pl.Trainer, begin: Callable[[], None]) -> None:
    """Call ``begin`` when module and callbacks are restored; to be called in ``on_fit_start``.

    Mostly they are by then. With a model in shards 2.6 restores them right after that hook, because its optimizers must
    exist first.
    """
    if not trainer.strategy.restore_checkpoint_after_setup:
        return begin()
    connector, name = trainer._checkpoint_connector, "_restore_modules_and_callbacks"
    restore = getattr(connector, name)

    def restore_and_begin(*arguments: Any, **more: Any) -> None:
        vars(connector).pop(name, None)
        restore(*arguments, **more)
        begin()

    setattr(connector, name, restore_and_begin)


def rename_version(logger: CSVLogger | TensorBoardLogger, version: int | str, suffix: str) -> None:
    """Set a logger's version, after it has made its folder: 2.6 makes it before a callback's first hook.

    The old folder stays, so that the next run gets another number.
    """
    base = version if isinstance(version, str) else f"version_{version}"
    logger._version = f"{base}-{suffix}" if base else suffix
    logger._experiment = None


def group_run(logger: Any, run_name: str, center: str) -> None:
    """Have a service show the runs of all data centers as one group, before 2.6 makes this one: it does so before a
    callback's first hook. What the user has set stays, but for the data center's name at the end of the run's.

    Args:
        logger: W&B's and MLflow's are known; others are left as they are.
        run_name: of the run folder.
        center: the data center's name.
    """
    if isinstance(logger, kinds("loggers", "WandbLogger")) and logger._experiment is None:
        settings = logger._wandb_init
        settings["group"] = settings.get("group") or run_name
        settings["name"] = logger._name = f"{settings.get('name') or run_name}-{center}"
    elif isinstance(logger, kinds("loggers", "MLFlowLogger")) and not logger._initialized and logger._run_id is None:
        logger._run_name = f"{logger._run_name or run_name}-{center}"


def mark_run(logger: Any, run_name: str, center: str) -> None:
    """Write into a service's run to which run and data center it belongs, so that the user can group by it there."""
    marks = {"colearn_run": run_name, "data_center": center}
    if isinstance(logger, kinds("loggers", "WandbLogger")):
        logger.experiment.config.update(marks, allow_val_change=True)
    elif isinstance(logger, kinds("loggers", "MLFlowLogger")) and logger.run_id is not None:
        for key, value in marks.items():
            logger.experiment.set_tag(logger.run_id, key, value)


def wants_stop(trainer: pl.Trainer) -> bool:
    """Whether the Trainer will leave its loop after this epoch; 2.6 decides it after the last hook."""
    met_epochs = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
    met_steps = trainer.global_step >= (trainer.min_steps or 0)
    return (trainer.should_stop and met_epochs and met_steps) or 0 <= trainer.max_steps <= trainer.global_step


def replace_fetcher(trainer: pl.Trainer, ours: Any) -> Any:
    """Have Lightning take training batches from ``ours``; returns its own fetcher, whose iterator is made.

    Raises:
        ConfigurationError: ``training_step`` fetches by itself.
    """
    fetcher = trainer.fit_loop._data_fetcher
    if isinstance(fetcher, kinds("loops.fetchers", "_DataLoaderIterDataFetcher")):
        raise ConfigurationError(
            "a training_step(dataloader_iter) fetches its batches by itself, and with local_steps nobody could count "
            "them; take a batch as its argument, or count local epochs"
        )
    trainer.fit_loop._data_fetcher = ours
    return fetcher


def can_skip_batches(trainer: pl.Trainer) -> bool:
    """Whether a resumed epoch can find its place: its length is known, and not ``training_step`` itself fetches."""
    fetcher = trainer.fit_loop._data_fetcher
    in_step = kinds("loops.fetchers", "_DataLoaderIterDataFetcher")
    return fetcher is not None and fetcher.length is not None and not isinstance(fetcher, in_step)


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
    resumes_loaders()
    left = tell_place(fetcher.combined_loader, trainer.current_epoch, skip)
    if left is None:
        return
    iter(fetcher)
    for _ in range(left):
        next(fetcher)
    fetcher.fetched -= left


def resumes_loaders() -> None:
    """Keep 2.6 from warning that a loader cannot be resumed: it is being resumed here."""
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")


def set_sampler_epochs(combined_loader: Any, epoch: int) -> None:
    """Tell the loaders' samplers which pass over the data begins."""
    for loader in combined_loader.flattened:
        fabric_of(combined_loader).utilities.data._set_sampler_epoch(loader, epoch)


def tell_place(combined_loader: Any, epoch: int, skip: int) -> int | None:
    """Tell loaders where a pass over the data goes on.

    Args:
        combined_loader: Lightning's, around all training loaders.
        epoch: the pass.
        skip: batches of it that are trained.

    Returns:
        How many batches have still to be read and dropped; None where the loaders know their place already.

    Raises:
        CheckpointError: some know it, and some do not.
    """
    fabric: Any = fabric_of(combined_loader)
    loaders = combined_loader.flattened
    stateful = [isinstance(loader, fabric.utilities.types._Stateful) for loader in loaders]
    if all(stateful):
        return None
    if any(stateful):
        raise CheckpointError(
            "some of the training loaders have state_dict() and some do not: the place in the epoch is unknown; "
            "delete the newest resume point of each data center to go on from the epoch's start"
        )
    set_sampler_epochs(combined_loader, epoch)
    starts = [getattr(getattr(loader, "sampler", None), "start_at", None) for loader in loaders]
    if skip and all(starts):
        for start_at in filter(None, starts):
            start_at(skip)
        return 0
    return skip


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


# --- who monitors a metric, and what they find (validation.py) ------------------------------------------

LOCAL = "local/"  # in front of the names of what was measured of the local model


class _Metrics(dict[str, Any]):
    """A Trainer's metrics, of which some stay as they are, whatever Lightning has measured meanwhile: 2.6 puts its own
    values back at each look."""

    fixed: frozenset[str] = frozenset()

    def update(self, found: Mapping[str, Any]) -> None:  # type: ignore[override]
        super().update({name: value for name, value in found.items() if name not in self.fixed})


def fix_metrics(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Let ``trainer.callback_metrics`` hold these, until they are released; loggers keep what was measured."""
    found = _Metrics(trainer.callback_metrics)
    for name, value in values.items():
        like = found.get(name, torch.zeros(()))
        found[name] = torch.tensor(value, dtype=like.dtype if like.is_floating_point() else None, device=like.device)
    found.fixed = frozenset(values)
    trainer._logger_connector._callback_metrics = found


def release_metrics(trainer: pl.Trainer) -> None:
    """Let Lightning's own values take the place of those that were fixed, as they are measured."""
    if isinstance(found := trainer._logger_connector._callback_metrics, _Metrics):
        found.fixed = frozenset()


def name_as_local(trainer: pl.Trainer, local: bool) -> None:
    """Have Lightning put :data:`LOCAL` in front of every name that the validation loop logs, or no more."""
    results: Any = trainer.fit_loop.epoch_loop.val_loop._results
    vars(results).pop("metrics", None)
    if local:
        measured = results.metrics

        def renamed(on_step: bool) -> dict[str, dict[str, Any]]:
            found = measured(on_step)
            return {where: {f"{LOCAL}{name}": one for name, one in found[where].items()} for where in found}

        results.metrics = renamed


def stop_at_epoch_end(trainer: pl.Trainer, now: bool) -> None:
    """Whether EarlyStopping looks at its metric in ``on_train_epoch_end``; otherwise it does in ``on_validation_end``,
    which is past by then. 2.6 settles that in its ``setup``."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, kinds("callbacks", "EarlyStopping")):
            callback._check_on_train_epoch_end = now


def saves_by_step(callback: Any) -> bool:
    """Whether a ModelCheckpoint saves between two epochs' ends."""
    return bool(callback._every_n_train_steps) or callback._train_time_interval is not None


def save_where_validated(callback: Any) -> None:
    """Have a ModelCheckpoint save at the ends of those epochs alone that the Trainer validates."""
    callback._save_on_train_epoch_end = None


def plateau_schedulers(trainer: pl.Trainer) -> list[Any]:
    """The configurations of schedulers that monitor a metric."""
    return [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]


def step_scheduler(trainer: pl.Trainer, config: Any, value: float) -> None:
    """Step a scheduler that monitors a metric."""
    trainer.lightning_module.lr_scheduler_step(config.scheduler, torch.tensor(value))


def never_step(trainer: pl.Trainer) -> None:
    """Keep Lightning from stepping the schedulers that monitor a metric: 2.6 does it after the epoch's resume point is
    written, and a resumed run would miss the step."""
    for config in plateau_schedulers(trainer):
        config.frequency = sys.maxsize
