"""How a run stands: an immutable snapshot for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Standing:
    """How a run stands in this process. One value, so that a thread that reads it never mixes two rounds.

    Attributes:
        center: the data center's name.
        rank: center_rank of this process.
        presides: it writes the run's files and speaks for the run.
        centers: all data centers, for people.
        folder: the run folder.
        rounds: how many rounds were asked for; None: the Trainer's limits end the run.
        round: i.
        epoch: local epochs of the round that are done.
        local_epochs: T_i.
        epochs_done: local epochs of the run that are done.
        rounds_done: rounds whose mean is there.
        relative_change: of the last mean; None before the first.
        examples: that this process has trained on since it began.
        shows: the round whose shared model the module is right now; None: it is the local model.
        ends_round: a mean was taken, begun or finished at the last batch, and the epoch's end has not closed it.
        stopping: no round follows.
        in_steps: optimizer steps are counted instead of local epochs.
        block: of the epoch that is trained: 1, or its steps.
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
        """Where this data center's own files lie."""
        return self.folder / "centers" / self.center

    @property
    def epoch_text(self) -> str:
        """``local epoch 3 of 5`` or ``steps 501-1000 of 2000``, what is trained now, from 1."""
        last = min(self.epoch + self.block, self.local_epochs)
        what = f"steps {self.epoch + 1}-{last}" if self.in_steps else f"local epoch {last}"
        return f"{what} of {self.local_epochs}"
