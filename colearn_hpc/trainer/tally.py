"""What this rank has trained: batches, examples, and the loss of a round, for rules that look at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Counts at every batch, in one call: where a step takes milliseconds, each call at a batch's end shows.

    The sum of a round's losses is one number that grows batch by batch, also across a resume: so a resumed round has
    the same bits. A GPU is not waited for before the round's end.

    Args:
        examples: that this process has trained on before.

    Attributes:
        batches: trained in this fit.
        examples: that this process has trained on since it began.
        batch: of the epoch, counted from 1: the one that was trained last.
        loss: of that batch; None if it was no single number. On a GPU it stays there.
    """

    def __init__(self, examples: int = 0) -> None:
        self.batches, self.examples = 0, examples
        self.batch = 0
        self.loss: Tensor | float | None = None
        self._reported = (0, examples)
        self._sum: Tensor | float = 0.0
        self._examples = 0.0

    def add(self, batch: int, loss: Any, examples: int, accumulated: int = 1) -> None:
        """A batch was trained.

        Args:
            batch: of the epoch, counted from 1.
            loss: of the batch; only that of one number counts.
            examples: in the batch; 0 counts the batch as one among the losses.
            accumulated: batches of an optimizer step, by whose number Lightning has divided the loss.
        """
        self.batch = batch
        self.batches += 1
        self.examples += examples
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            self.loss = None
            return
        number = examples or 1
        self._examples += number
        if loss.is_cpu:  # the same bits as below, in a tenth of the time
            self.loss = value = loss.item()
            self._sum = self._sum + value * (number * accumulated)
            return
        # Not float(loss): that would wait for a GPU at every batch. MPS has no float64.
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        self.loss = loss.detach()
        self._sum = self._sum + self.loss.to(wide).reshape(()) * (number * accumulated)

    def since_report(self) -> tuple[int, int]:
        """Batches, and examples in them, since :meth:`reported`."""
        batches, examples = self._reported
        return self.batches - batches, self.examples - examples

    def reported(self) -> None:
        """What was counted is reported, or lost."""
        self._reported = self.batches, self.examples

    def begin_round(self) -> None:
        """A round begins: its losses are summed from here."""
        self._sum, self._examples = 0.0, 0.0

    @property
    def state(self) -> tuple[float, float]:
        """Of the round: (the sum of losses over examples, the examples in it)."""
        return float(self._sum), self._examples

    def restore(self, states: Sequence[Sequence[float]], rank: int, size: int) -> None:
        """Go on from a resume point.

        Args:
            states: of the ranks that wrote it, by rank; empty where it holds none.
            rank: in the data center.
            size: its ranks. With others than before the first one takes all.
        """
        mine = states if rank == 0 else ()
        if len(states) == size:
            mine = [states[rank]]
        self._sum, self._examples = sum(one[0] for one in mine), sum(one[1] for one in mine)
