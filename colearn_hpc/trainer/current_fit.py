"""What one call of ``trainer.fit`` needs, and what has been counted in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import colearn_hpc._lightning as pl
from colearn_hpc.trainer.averager import Averager
from colearn_hpc.trainer.blocks import Blocks
from colearn_hpc.trainer.epoch_end import EpochEnd
from colearn_hpc.trainer.joining import Joining
from colearn_hpc.trainer.lightning_gaps import set_limits
from colearn_hpc.trainer.metrics import MetricsSplit
from colearn_hpc.trainer.optimizers import BaseRates
from colearn_hpc.trainer.point_writer import PointWriter
from colearn_hpc.trainer.run_folder import RunFolder
from colearn_hpc.trainer.sums import Hiding
from colearn_hpc.trainer.tally import Tally
from colearn_hpc.trainer.validation import Validation


@dataclass
class CurrentFit:
    """What one call of ``trainer.fit`` needs; made anew in ``setup``.

    Attributes:
        folder: the run's.
        averager: what a round's end does to models.
        validation: when it runs, and what monitors find.
        rates: the optimizers' base rates.
        metrics: which metrics speak of which model.
        loaded: the averager's state, from a checkpoint.
        factor: of the schedule in this epoch; None without one.
        clock: when the epoch began, or when what was trained in it was last reported.
        limits: the Trainer's own.
        blocks: where steps are counted, what serves them.
        points: writes resume points.
        epoch_end: closes local epochs after all other callbacks.
        hiding: with secure sums; it outlives attempts, for the others know its keys.
        tally: of what this rank has trained.
        steps_now, steps: the Trainer's count of optimizer steps, now and when it was last reported.
        joining: who joins the run; the same in all attempts.
        began, trains, ends, finished: how far the fit has come. With ``ends`` all ranks of the data center have trained
            the last epoch and written its resume point.
    """

    folder: RunFolder | None = None
    averager: Averager = field(default=None)  # type: ignore[assignment]
    validation: Validation = field(default=None)  # type: ignore[assignment]
    rates: BaseRates | None = None
    metrics: MetricsSplit = field(default_factory=MetricsSplit)
    loaded: Mapping[str, Any] | None = None
    factor: float | None = None
    clock: float = 0.0
    hiding: Hiding | None = None
    tally: Tally = field(default_factory=Tally)
    steps_now: Callable[[], int] = lambda: 0
    steps: int = 0
    limits: tuple[int | None, int] = (None, -1)
    blocks: Blocks | None = None
    points: PointWriter | None = None
    epoch_end: EpochEnd = field(default=None)  # type: ignore[assignment]
    joining: Joining = field(default_factory=Joining)
    began: bool = False
    trains: bool = False
    ends: bool = False
    finished: bool = False

    @property
    def folder_(self) -> RunFolder:
        assert self.folder is not None, "from setup on"
        return self.folder

    @property
    def points_(self) -> PointWriter:
        assert self.points is not None, "from setup on"
        return self.points

    @property
    def rates_(self) -> BaseRates:
        assert self.rates is not None, "from on_fit_start on"
        return self.rates

    def leave(self, trainer: pl.Trainer) -> None:
        """Leave the Trainer as it was found."""
        self.validation.end(trainer)
        set_limits(trainer, self.limits)
