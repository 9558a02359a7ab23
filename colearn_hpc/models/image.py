"""Image networks written here: small ones for 8×8 digits and for a CPU, and DenseNet-40 (which timm does not have)."""

import torch
from torch import Tensor, nn

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.registry import register


@register("digits_cnn")
class DigitsCNN(nn.Module):
    """Three convolutions with BatchNorm for scikit-learn's handwritten digits; 33,658 parameters at 10 classes.

    It trains in seconds on one core. It has BatchNorm on purpose: float and integer buffers are what an average over
    data centers gets wrong most easily.

    Shapes: (batch, channels, 8, 8) or (batch, 8, 8) float -> (batch, num_classes) logits. Pixels may have any scale,
    because BatchNorm follows the first convolution.

    Args:
        num_classes: Length of the output row.
        in_channels: Channels of the image.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_norm_relu(in_channels, 16),
            *_conv_norm_relu(16, 32),
            nn.MaxPool2d(2),
            *_conv_norm_relu(32, 64),
        )
        self.classifier = nn.Linear(64 * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x if x.dim() == 4 else x.unsqueeze(1)).flatten(1))


def _conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution, whose output is appended to the input.

    Shapes: (batch, in_channels, h, w) -> (batch, in_channels + growth, h, w).
    """

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.dropout(self.conv(torch.relu(self.norm(x))))], dim=1)


class DenseNet(nn.Module):
    """DenseNet with 3 dense blocks, without bottleneck and without compression.

    With ``depth=40, growth=12`` it is the DenseNet-40 of the co-learning paper (Table 2), and has 1,019,722 parameters
    at 10 classes and 3 channels. Weights are initialised as by He et al., as in the DenseNet paper.

    Shapes: (batch, channels, h, w) float -> (batch, num_classes) logits; h and w at least 4 (32 in the paper).

    Sources: Huang et al. 2017, arXiv 1608.06993; Mi et al. 2020, Table 2.

    Args:
        num_classes: Length of the output row.
        depth: Number of layers with weights: 3·n + 4, with n layers in each block.
        growth: k, the number of channels that every layer adds.
        dropout: Probability of dropout after each convolution. DenseNet's authors use 0.2 for data that are not
            augmented.
        in_channels: Channels of the image.

    Raises:
        ConfigurationError: ``depth`` is not 3·n + 4 with n ≥ 1.
    """

    def __init__(
        self, num_classes: int = 10, depth: int = 40, growth: int = 12, dropout: float = 0.0, in_channels: int = 3
    ) -> None:
        super().__init__()
        layers_per_block, rest = divmod(depth - 4, 3)
        if rest or layers_per_block < 1:
            raise ConfigurationError(f"DenseNet depth={depth}: must be 3·n + 4 with n of 1 or more, as in 40 or 100")
        channels = 16
        stages: list[nn.Module] = [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)]
        for block in range(3):
            if block > 0:
                stages += _transition(channels, dropout)
            for _ in range(layers_per_block):
                stages.append(DenseLayer(channels, growth, dropout))
                channels += growth
        stages += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _transition(channels: int, dropout: float) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), conv, nn.Dropout(dropout), nn.AvgPool2d(2)]


@register("densenet40")
def densenet40(num_classes: int = 10, dropout: float = 0.0, in_channels: int = 3) -> DenseNet:
    """DenseNet-40, k = 12; see :class:`DenseNet`."""
    return DenseNet(num_classes, depth=40, growth=12, dropout=dropout, in_channels=in_channels)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a shortcut that is added to their output.

    Shapes: (batch, in_channels, h, w) -> (batch, channels, h / stride, w / stride), rounded up.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


@register("resnet8")
class ResNet8(nn.Module):
    """A residual network of 8 layers, for images of 32 pixels on a CPU; 78,042 parameters at 10 classes and 3 channels.

    It has the 6n + 2 layers of the paper with n = 1. A shortcut that changes the shape is a projection. Images are laid
    out channels last in memory, which is faster on CPUs and on GPUs.

    Shapes: (batch, channels, h, w) float -> (batch, num_classes) logits; h and w at least 4.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2.

    Args:
        num_classes: Length of the output row.
        in_channels: Channels of the image.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_norm_relu(in_channels, 16),
            ResidualBlock(16, 16, 1),
            ResidualBlock(16, 32, 2),
            ResidualBlock(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x.contiguous(memory_format=torch.channels_last)))
