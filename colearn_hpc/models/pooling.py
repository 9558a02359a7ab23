"""Four ways to make one score per clip of the scores at every time step: AP, MP, SA and MA of the paper's Table 6."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from colearn_hpc.errors import ConfigurationError


class AveragePooling(nn.Module):
    """AP: the mean over time of each step's probabilities.

    Shapes: (batch, time, features) -> (batch, classes) probabilities. Of several levels the last is taken.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(features, classes)

    def forward(self, *levels: Tensor) -> Tensor:
        return torch.sigmoid(self.classifier(levels[-1])).mean(dim=1)


class MaxPooling(AveragePooling):
    """MP: the maximum over time of each step's probabilities.

    Shapes: (batch, time, features) -> (batch, classes) probabilities. Of several levels the last is taken.
    """

    def forward(self, *levels: Tensor) -> Tensor:
        return torch.sigmoid(self.classifier(levels[-1])).amax(dim=1)


class SingleAttention(nn.Module):
    """SA: a mean over time of each step's probabilities, weighted by an attention: Σ cla · att / Σ att.

    Both cla and att are the sigmoid of a linear layer of their own.

    Shapes: (batch, time, features) -> (batch, classes) probabilities. Of several levels the last is taken.

    Source: Kong et al. 2018, arXiv 1711.00927.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.attention = nn.Linear(features, classes)
        self.classifier = nn.Linear(features, classes)

    def forward(self, *levels: Tensor) -> Tensor:
        # Never all zero, or a clip whose attention died divides 0 by 0.
        attention = torch.sigmoid(self.attention(levels[-1])).clamp(min=1e-7)
        return (torch.sigmoid(self.classifier(levels[-1])) * attention).sum(dim=1) / attention.sum(dim=1)


class MultiAttention(nn.Module):
    """MA: single attention on each of the last two levels, and a linear layer on both results together.

    Shapes: at least two levels of (batch, time, features) -> (batch, classes) probabilities.

    Source: Yu et al. 2018, arXiv 1803.02353.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList([SingleAttention(features, classes) for _ in range(2)])
        self.classifier = nn.Linear(2 * classes, classes)

    def forward(self, *levels: Tensor) -> Tensor:
        pooled = [attend(level) for attend, level in zip(self.levels, levels[-2:], strict=True)]
        return torch.sigmoid(self.classifier(torch.cat(pooled, dim=1)))


_POOLINGS: dict[str, Callable[[int, int], nn.Module]] = {
    "ap": AveragePooling,
    "ma": MultiAttention,
    "mp": MaxPooling,
    "sa": SingleAttention,
}


def build_pooling(name: str, features: int, classes: int) -> nn.Module:
    """A pooling by its letters in Table 6, in either case.

    Args:
        name: ``ap``, ``mp``, ``sa`` or ``ma``.
        features: Length of a step's feature row, on every level.
        classes: Number of classes.

    Returns:
        A module that is called with the levels of a network, (batch, time, features) each, the last one last, and
        gives (batch, classes) probabilities.

    Raises:
        ConfigurationError: There is no such pooling.
    """
    if name.lower() not in _POOLINGS:
        raise ConfigurationError(f"pooling={name!r} is not known; choose one of {', '.join(_POOLINGS)}")
    return _POOLINGS[name.lower()](features, classes)
