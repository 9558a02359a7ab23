"""What the round has to know of a data center's privacy: what is spent, what is left, and what would tell too much."""

from __future__ import annotations

from typing import Protocol, cast

import colearn_hpc._lightning as pl
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.lightning_gaps import callbacks_of


class Accounted(Protocol):
    """A callback that trains privately and counts what it spends, as ``PrivateTraining`` does."""

    def epsilon(self) -> float:
        """ε spent so far."""

    def epochs_left(self, steps_per_epoch: int) -> int:
        """How many more local epochs of so many steps the budget allows."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one local epoch."""


def accounted(trainer: pl.Trainer) -> Accounted | None:
    """The Trainer's callback that trains privately; None without one."""
    return next((cast("Accounted", callback) for callback in callbacks_of(trainer) if _counts(callback)), None)


def epsilon_of(trainer: pl.Trainer) -> float | None:
    """ε that this data center has spent in the whole run; None where it does not train privately."""
    private = accounted(trainer)
    return None if private is None else private.epsilon()


def epochs_left(trainer: pl.Trainer, in_steps: bool = False) -> int | None:
    """Local epochs, or steps, that the privacy budget still allows; None without one."""
    private = accounted(trainer)
    return None if private is None else private.epochs_left(1 if in_steps else private.steps_per_epoch)


def check_monitors(trainer: pl.Trainer, settings: Settings) -> None:
    """With secure sums, what a callback does by a metric on private data could be seen by others.

    Raises:
        ConfigurationError: there is such a callback, and nobody has said that it may.
    """
    if settings.share_metrics or settings.public_validation:
        return
    for callback in callbacks_of(trainer):
        if monitored := getattr(callback, "monitor", None):
            raise ConfigurationError(
                f"{type(callback).__name__}(monitor={monitored!r}) follows a metric, and with privacy: secure=True "
                "metrics on private data stay home: what it does could be seen. Validate on public data and set "
                "privacy: public_validation=True, or set share_metrics=True, or drop the monitor"
            )


def _counts(callback: object) -> bool:
    # Asking an instance whether it has a property runs it; the class does not.
    return all(hasattr(type(callback), name) for name in ("epsilon", "epochs_left", "steps_per_epoch"))
