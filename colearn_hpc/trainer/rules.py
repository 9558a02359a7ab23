"""From the callback's arguments to rule objects, and the checks that keep a run from starting wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl

from colearn_hpc.algorithm.codec import NAMES, codec_of
from colearn_hpc.algorithm.learning_rate import ConstantLR, CyclicalLR, ExponentialLR, LearningRateSchedule
from colearn_hpc.algorithm.local_epochs import FixedEpochs, IncreasingEpochs, LocalEpochsRule
from colearn_hpc.errors import ConfigurationError

if TYPE_CHECKING:
    from colearn_hpc.trainer.callback import CoLearning


def schedule_of(schedule: Any, decay: float) -> LearningRateSchedule | None:
    """The schedule that a name or an object means; None for ``"none"``."""
    makers = {"clr": lambda: CyclicalLR(decay), "elr": ExponentialLR, "constant": ConstantLR, "none": lambda: None}
    if isinstance(schedule, str):
        return _made("schedule", schedule, makers)
    if not callable(getattr(schedule, "factor", None)):
        raise ConfigurationError(f"schedule={schedule!r} has no `factor(position)` method; use one of {list(makers)}")
    return schedule


def local_epochs_rule_of(rule: Any, local_epochs: int, epsilon: float, maximum: int | None) -> LocalEpochsRule:
    """The rule for T_i that a name or an object means."""
    makers = {
        "ile": lambda: IncreasingEpochs(local_epochs, epsilon, maximum),
        "fle": lambda: FixedEpochs(local_epochs),
    }
    if isinstance(rule, str):
        return _made("local_epochs_rule", rule, makers)
    if not (callable(getattr(rule, "first", None)) and callable(getattr(rule, "next", None))):
        raise ConfigurationError(
            f"local_epochs_rule={rule!r} has no `first()` and `next(outcome)`; use one of {list(makers)}"
        )
    return rule


def check_choices(
    rounds: int | None,
    learning_rate: float | None,
    schedule: Any,
    optimizer_state: str,
    weighting: str,
    combine: str = "weights",
    outer_optimizer: Any = None,
) -> None:
    """Raise a ConfigurationError for the first impossible setting."""
    if rounds is not None and (not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1):
        raise ConfigurationError(f"rounds must be a whole number, at least 1, or None; found {rounds!r}")
    if learning_rate is not None and not learning_rate > 0:
        raise ConfigurationError(
            f"learning_rate must be positive, or None for the optimizer's own; found {learning_rate}"
        )
    if learning_rate is not None and schedule == "none":
        raise ConfigurationError(
            f'schedule="none" leaves rates to the optimizer, but learning_rate={learning_rate} is set; '
            'drop one of the two (schedule="constant" holds a rate)'
        )
    for name, value, choices in (
        ("optimizer_state", optimizer_state, ("reset", "keep", "average")),
        ("weighting", weighting, ("uniform", "examples")),
        ("combine", combine, ("weights", "predictions")),
    ):
        if value not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(choices)}; found {value!r}")
    if outer_optimizer is not None:
        if not callable(getattr(outer_optimizer, "step", None)):
            raise ConfigurationError(
                f"outer_optimizer={outer_optimizer!r} has no `step(previous, mean, state)` method; use OuterSGD"
            )
        if combine == "predictions":
            raise ConfigurationError(
                'outer_optimizer steps from one shared model to the next, and with combine="predictions" there is '
                "none; drop one of the two"
            )


def check_failures(
    round_timeout: float | None, restarts: int, on_failure: str, optimizer_state: str, combine: str
) -> None:
    """Raise a ConfigurationError for an impossible answer to failures."""
    if round_timeout is not None and not round_timeout > 0:
        raise ConfigurationError(
            f"round_timeout must be a positive number of seconds, or None; found {round_timeout!r}"
        )
    if not isinstance(restarts, int) or isinstance(restarts, bool) or restarts < 0:
        raise ConfigurationError(f"restarts must be a whole number, at least 0; found {restarts!r}")
    if on_failure not in ("stop", "continue_without"):
        raise ConfigurationError(f"on_failure must be one of stop, continue_without; found {on_failure!r}")
    if on_failure == "continue_without":
        for name, value, other in (
            ("optimizer_state", optimizer_state, "average"),
            ("combine", combine, "predictions"),
        ):
            if value == other:
                raise ConfigurationError(
                    f'on_failure="continue_without" goes on with the others\' mean, which {name}="{other}" does not '
                    'allow: a data center that is left out has no part of it. Use on_failure="stop"'
                )


class ExchangeSettings(NamedTuple):
    """How the mean travels.

    Attributes:
        codec: how parameters are written on the wire.
        overlap: while the next round's first local epoch is trained.
        lanes: ranks of a data center that share the transfer; None: one per node.
    """

    codec: str = "fp32"
    overlap: bool = False
    lanes: int | None = None


def exchange_of(exchange: Any, combine: str, outer_optimizer: Any) -> ExchangeSettings:
    """The settings in ``exchange={"codec": name, "overlap": bool, "lanes": number}``, and what goes without saying."""
    known = ", ".join(f'"{name}"' for name in ExchangeSettings._fields)
    if exchange is not None and (not isinstance(exchange, dict) or set(exchange) - set(ExchangeSettings._fields)):
        raise ConfigurationError(f"exchange must be a mapping with the keys {known}, or None; found {exchange!r}")
    codec, overlap, lanes = found = ExchangeSettings(**(exchange or {}))
    if codec not in NAMES:
        raise ConfigurationError(f"exchange: codec must be one of {', '.join(NAMES)}; found {codec!r}")
    if codec != "fp32" and combine == "predictions":
        raise ConfigurationError(
            f'exchange: codec={codec!r} is for weights on the wire, and with combine="predictions" none travel; drop '
            "one of the two"
        )
    if not isinstance(overlap, bool):
        raise ConfigurationError(f"exchange: overlap must be true or false; found {overlap!r}")
    if lanes is not None and (not isinstance(lanes, int) or isinstance(lanes, bool) or lanes < 1):
        raise ConfigurationError(f"exchange: lanes must be a whole number, at least 1, or null; found {lanes!r}")
    coder = codec_of(codec)
    for alone, why in (
        (combine == "predictions", 'combine="predictions": no weights travel'),
        (outer_optimizer is not None, "an outer_optimizer: its state is the leader's"),
        (coder is not None and coder.feedback, f'codec="{codec}": what its messages lack is the leader\'s to remember'),
    ):
        if alone and lanes is not None and lanes > 1:
            raise ConfigurationError(f"exchange: lanes={lanes} cannot be combined with {why}. Drop one of the two")
        if alone:
            found = found._replace(lanes=1)
    return found


def check_overlap(optimizer_state: str, combine: str, outer_optimizer: Any, on_failure: str) -> None:
    """Raise a ConfigurationError for what a mean that comes an epoch late cannot be combined with."""
    for name, value, clash, why in (
        ("combine", combine, "predictions", "with it no weights travel. Drop one of the two"),
        (
            "optimizer_state",
            optimizer_state,
            "average",
            'a correction of state that went on meanwhile may make a variance negative. Use "reset" or "keep"',
        ),
        (
            "on_failure",
            on_failure,
            "continue_without",
            'while a mean is under way nobody can be done without. Use "stop"',
        ),
    ):
        if value == clash:
            raise ConfigurationError(f'exchange: overlap=True cannot be combined with {name}="{value}": {why}')
    if outer_optimizer is not None:
        raise ConfigurationError(
            f"exchange: overlap=True cannot be combined with outer_optimizer={describe(outer_optimizer)}: its step "
            "begins where all data centers are, and they have gone on. Drop one of the two"
        )


def check_trainer(trainer: pl.Trainer, module: pl.LightningModule, schedule: LearningRateSchedule | None) -> None:
    """Raise a ConfigurationError where the user's own scheduler and ours would fight over the rate."""
    if schedule is not None and trainer.lr_scheduler_configs:
        name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise ConfigurationError(
            f"{type(module).__name__}.configure_optimizers() returns a {name}, and CoLearning sets the rate by "
            f"{type(schedule).__name__}: the two would overwrite each other. Return only the optimizer, or use "
            'CoLearning(schedule="none")'
        )


def planned_epochs(colearning: CoLearning, trainer: pl.Trainer) -> int:
    """T of a round that begins after ``epochs_done``: what the rule says, cut short by the Trainer's limit."""
    left = (trainer.max_epochs or -1) - colearning.epochs_done
    return min(colearning.rule_epochs, left) if left > 0 else colearning.rule_epochs


def checked_epochs(local_epochs: Any) -> int:
    """T_{i+1} as a rule returned it; rules are users' code too."""
    if isinstance(local_epochs, bool) or not isinstance(local_epochs, int) or local_epochs < 1:
        raise ConfigurationError(f"the local epochs rule returned {local_epochs!r}; it must return an int, at least 1")
    return local_epochs


def describe(rule: Any) -> str:
    """A rule as text that is equal on all ranks: a default repr holds a memory address."""
    text = repr(rule)
    return f"{type(rule).__name__}({vars(rule)})" if " at 0x" in text else text


def _made(argument: str, name: str, makers: dict[str, Any]) -> Any:
    if name not in makers:
        raise ConfigurationError(f"{argument} must be one of {', '.join(makers)} or an object; found {name!r}")
    try:
        return makers[name]()
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def settings_of(colearning: CoLearning) -> dict[str, str]:
    """The callback's arguments that all data centers must have in common, as text."""
    overlap = {"overlap": "True"} if colearning.overlaps else {}
    return overlap | {
        "rounds": str(colearning.rounds),
        "schedule": describe(colearning.schedule),
        "local_epochs_rule": describe(colearning.rule),
        "learning_rate": str(colearning.learning_rate),
        "optimizer_state": colearning.optimizer_state,
        "weighting": colearning.weighting,
        "outer_optimizer": describe(colearning.outer_optimizer),
        "combine": colearning.combine,
        "codec": colearning.codec,
        "on_failure": colearning.restarts.on_failure,
    }
