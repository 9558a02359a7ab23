"""What the rounds do to optimizers: the rate of a local epoch, the state at a round's end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

import colearn_hpc._lightning as pl
from colearn_hpc.algorithm.learning_rate import LearningRateSchedule
from colearn_hpc.errors import ConfigurationError


class BaseRates:
    """The base rate of every parameter group of every optimizer; a schedule multiplies it.

    Args:
        optimizers: as configured, before any schedule has touched them.
        learning_rate: η for all groups, or None for each group's own.
    """

    def __init__(self, optimizers: Sequence[Optimizer], learning_rate: float | None) -> None:
        self._optimizers, self._learning_rate = optimizers, learning_rate
        self._rates: list[list[float]] = [[] for _ in optimizers]
        self._see_groups()

    def _see_groups(self) -> None:
        """Note the base rate of groups that are new: fine-tuning adds them in the middle of a run."""
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group in optimizer.param_groups[len(rates) :]:
                rates.append(float(group["lr"]) if self._learning_rate is None else self._learning_rate)

    def apply(self, factor: float) -> None:
        """Set every group's rate to ``factor`` times its base."""
        self._see_groups()
        set_rates(self._optimizers, [[rate * factor for rate in rates] for rates in self._rates])


def rates_of(optimizers: Sequence[Optimizer]) -> list[list[float]]:
    """The current rate of every parameter group of every optimizer."""
    return [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]


def set_rates(optimizers: Sequence[Optimizer], rates: Sequence[Sequence[float]]) -> None:
    """Set what :func:`rates_of` has told."""
    for optimizer, of_groups in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
            if isinstance(group["lr"], Tensor):  # capturable and compiled optimizers hold the rate in a tensor
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def first_rate(optimizers: Sequence[Optimizer]) -> float:
    """The current rate of the first parameter group: the one that is logged. 0 without an optimizer."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]  # Lightning's stand-in has none
    return float(groups[0]["lr"]) if groups else 0.0


def reset_state(optimizers: Sequence[Optimizer], parameters: Collection[Tensor] | None = None) -> None:
    """Forget momenta: they point to where the local model was going, not the shared one.

    Args:
        optimizers: whose.
        parameters: of these alone; None: of all.
    """
    for optimizer in optimizers:
        if parameters is None:
            optimizer.state.clear()
        for parameter in parameters or ():
            optimizer.state.pop(parameter, None)


class LossScale:
    """The factor of the loss in training with float16: a ``GradScaler``, which grows and shrinks it from step to step.

    It belongs to the optimizer's state: after a mean it was found for a model that nobody has any more.

    Args:
        scaler: before a checkpoint was loaded into it.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler, self._first = scaler, scaler.state_dict()

    @classmethod
    def of(cls, trainer: pl.Trainer) -> LossScale | None:
        """That of a Trainer; None: it scales no loss."""
        scaler = _scaler_of(trainer)
        return None if scaler is None else cls(scaler)

    def reset(self) -> None:
        """Begin again, as if no step had been taken."""
        # Of a step that failed half-way; an optimizer that is made anew may have the id of the one that is noted.
        self._scaler._per_optimizer_states.clear()
        self._scaler.load_state_dict(self._first)


def skips_step(trainer: pl.Trainer, optimizer: Optimizer) -> bool:
    """Whether a GradScaler has found numbers that are not finite in the gradients of the step that comes next, and will
    leave it out."""
    scaler = _scaler_of(trainer)
    return scaler is not None and any(bool(found) for found in scaler._found_inf_per_device(optimizer).values())


def _scaler_of(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    """That scales a Trainer's loss; None: nothing does."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def averaged_state(optimizers: Sequence[Optimizer]) -> list[tuple[str, Tensor]]:
    """(name, tensor) of the state that can be averaged: floating-point, of the parameter's own shape.

    Step counters and other scalars are not averaged: they count, they do not point anywhere.
    """
    found = []
    for i, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for j, parameter in enumerate(parameters):
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                # A scalar parameter's step counter has its shape: known by name.
                if key == "step" or not isinstance(value, Tensor):
                    continue
                if value.is_floating_point() and value.shape == parameter.shape:
                    found.append((f"optimizer {i}, parameter {j}, {key}", value))
    return found


def float_state(optimizers: Sequence[Optimizer]) -> list[tuple[str, Tensor]]:
    """(name, tensor) of all floating-point state, of whatever shape (Adafactor's rows and columns)."""
    return [
        (f"optimizer {i}, {key}", value)
        for i, optimizer in enumerate(optimizers)
        for state in optimizer.state.values()
        for key, value in sorted(state.items())
        if isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided
    ]


def check_scheduler(trainer: pl.Trainer, module: pl.LightningModule, schedule: LearningRateSchedule | None) -> None:
    """Refuse a scheduler of the user's own beside ours: the two would fight over the rate.

    Raises:
        ConfigurationError: there is one.
    """
    if schedule is not None and trainer.lr_scheduler_configs:
        name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise ConfigurationError(
            f"{type(module).__name__}.configure_optimizers() returns a {name}, and CoLearning sets the rate by "
            f"{type(schedule).__name__}: the two would overwrite each other. Return only the optimizer, or use "
            'CoLearning(schedule="none")'
        )
