"""The optimizer of the tasks: SGD, as in the paper. ``optimizer:`` in a configuration puts another in its place."""

from dataclasses import dataclass

import torch
from torch import nn

from colearn_hpc.errors import ConfigurationError


@dataclass(frozen=True)
class SGDSettings:
    """Settings of SGD, checked before a run waits in a queue for hours.

    Args:
        learning_rate: η. Under co-learning the schedule (equation 3) multiplies it by a factor.
        momentum: 0 is the paper's plain SGD.
        nesterov: Nesterov's form of momentum; needs a ``momentum`` above 0.
        weight_decay: L2 coefficient.

    Raises:
        ConfigurationError: A setting is out of its range.
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ConfigurationError(f"learning_rate={self.learning_rate}: must be above 0")
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum={self.momentum}: must be in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ConfigurationError("nesterov=true with momentum=0: set momentum above 0, or nesterov=false")
        if not self.weight_decay >= 0:
            raise ConfigurationError(f"weight_decay={self.weight_decay}: must be 0 or more")

    def over(self, network: nn.Module) -> torch.optim.SGD:
        """SGD over the trainable parameters of ``network``. Frozen ones, such as word vectors, are left out."""
        return torch.optim.SGD(
            (p for p in network.parameters() if p.requires_grad),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
