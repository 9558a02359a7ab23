"""What a leader remembers of a codec between means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from colearn_hpc.algorithm.codec import Codec


@dataclass
class Compression:
    """A codec, and what messages could not say so far (error feedback).

    Attributes:
        codec: for the parameters. The rest goes as it is: a variance that is rounded below zero would be the end.
        residual: shape ``(parameter_size,)``. In this leader's own slices: what was missing in the means it sent;
            elsewhere: what was missing in its own steps. None before the first mean, or without feedback.
        pending: the residual after the mean that is under way; takes its place when that is committed.
    """

    codec: Codec
    residual: Tensor | None = None
    pending: Tensor | None = None

    def prepare(self, size: int) -> None:
        """Make room for the residuals of ``size`` parameters. One of another size is forgotten."""
        if not self.codec.feedback:
            return
        if self.residual is None or len(self.residual) != size:
            self.residual = torch.zeros(size)
        if self.pending is None or len(self.pending) != size:
            self.pending = torch.empty(size)

    def commit(self) -> None:
        self.residual, self.pending = self.pending, self.residual
