"""The training loss of a round, for rules that look at it. A GPU is not waited for before the round's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LossTally:
    """Sums this rank's training losses over the examples of a round.

    The sum is one number that grows batch by batch, also across a resume: so a resumed round has the same bits.
    """

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._examples = 0.0

    def reset(self) -> None:
        """A round begins."""
        self._sum, self._examples = 0.0, 0.0

    def add(self, loss: Any, examples: int, accumulated: int = 1) -> None:
        """A batch was trained.

        Args:
            loss: of the batch; only that of one number counts.
            examples: in the batch; 0 counts the batch as one.
            accumulated: batches of an optimizer step, by whose number Lightning has divided the loss.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        number = examples or 1
        self._examples += number
        if loss.is_cpu:  # the same bits as below, in a tenth of the time
            self._sum = self._sum + loss.item() * (number * accumulated)
            return
        # Not float(loss): that would wait for a GPU at every batch. MPS has no float64.
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        self._sum = self._sum + loss.detach().to(wide).reshape(()) * (number * accumulated)

    @property
    def state(self) -> tuple[float, float]:
        """(the sum, the examples in it)."""
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
