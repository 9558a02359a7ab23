"""How a run stands: an immutable snapshot for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Standing:
    """How a run stands in this process: one immutable value, so a thread that reads it never mixes two rounds.

    Attributes:
        center: the data center's name.
        rank: center_rank of this process.
        presides: whether this process writes the run's files and speaks for the run.
        centers: all data centers, for people.
        folder: the run folder.
        rounds: how many rounds were asked for; None: the Trainer's limits end the run.
        round: i, the round that is being trained, from 0.
        epoch: how many local epochs of this round are done.
        local_epochs: T_i, how many local epochs this round has.
        epochs_done: how many local epochs of the whole run are done.
        rounds_done: how many rounds have their mean.
        relative_change: of the shared model at the last mean (eq. 4); None before the first mean.
        examples: how many examples this process has trained on since it began.
        shows: the round whose shared model the module holds right now; None: it holds the local model.
        ends_round: whether a mean was taken, begun or finished at the last batch, and the epoch's end is still to come.
        stopping: whether the run ends without another round.
        in_steps: whether T counts optimizer steps. Then the numbers of local epochs above are numbers of steps.
        block: how many units of T the present Lightning epoch holds: 1, or its optimizer steps.
    """

    center: str
    rank: int
    presides: bool
    centers: str
    folder: Path
    rounds: int | None
    round: int
    epoch: int
    local_epochs: int
    epochs_done: int
    rounds_done: int
    relative_change: float | None
    examples: int
    shows: int | None
    ends_round: bool
    stopping: bool
    in_steps: bool = False
    block: int = 1

    @property
    def center_folder(self) -> Path:
        """The folder of this data center's own files."""
        return self.folder / "centers" / self.center

    @property
    def epoch_text(self) -> str:
        """What is trained now, counted from 1: ``local epoch 3 of 5`` or ``steps 501-1000 of 2000``."""
        last = min(self.epoch + self.block, self.local_epochs)
        what = f"steps {self.epoch + 1}-{last}" if self.in_steps else f"local epoch {last}"
        return f"{what} of {self.local_epochs}"
