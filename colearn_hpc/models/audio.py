"""The audio networks of Tables 5 and 6: the speech CNN, and AudioSet's fully connected net and CRNN."""

from typing import Literal

import torch
from torch import Tensor, nn

from colearn_hpc.models.pooling import build_pooling
from colearn_hpc.models.registry import register


@register("speech_cnn")
class SpeechCNN(nn.Module):
    """Two convolutions and two fully connected layers, on one second of log-mel features.

    It has 2,226,206 parameters at 30 classes and 98 × 40 features. The convolutions are those of TensorFlow's
    speech-commands example ("conv"). The second fully connected layer is the co-learning paper's.

    Two things are not in the paper. Each clip is standardised first, without parameters: log-mel features lie around
    −10, and at a rate of 0.01 the net would diverge on them. And weights are initialised as by He et al., but for the
    last layer.

    Sources: Mi et al. 2020, Table 5; Sainath and Parada 2015 (convolutions).

    Shapes: (batch, frames, bands) or (batch, 1, frames, bands) log-mel -> (batch, num_classes) logits.

    Args:
        num_classes: Length of the output row.
        frames: Time steps; 98 are one second in windows of 30 ms every 10 ms.
        bands: Mel bands.
        hidden: Units of the first fully connected layer.
        dropout: Probability after each convolution.
    """

    def __init__(
        self, num_classes: int = 30, frames: int = 98, bands: int = 40, hidden: int = 128, dropout: float = 0.5
    ) -> None:
        super().__init__()
        # ceil_mode: the reference pads its poolings ("SAME"), 49 frames become 25.
        self.features = nn.Sequential(
            nn.LayerNorm([frames, bands], elementwise_affine=False),
            *_same_convolution(1, 64, (20, 8)),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.MaxPool2d(2, ceil_mode=True),
            *_same_convolution(64, 64, (10, 4)),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
        )
        places = _halved(_halved(frames)) * _halved(_halved(bands))
        last = nn.Linear(hidden, num_classes)
        self.classifier = nn.Sequential(nn.Linear(64 * places, hidden), nn.ReLU(), last)
        for module in (*self.features, self.classifier[0]):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        # Small first logits: from He's a rate of 0.01 with momentum kills every ReLU in the first epoch.
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x if x.dim() == 4 else x.unsqueeze(1)))


def _same_convolution(in_channels: int, out_channels: int, kernel: tuple[int, int]) -> list[nn.Module]:
    # padding="same" of an even kernel copies the input and warns about it; the explicit padding is the same, once.
    (height, width) = kernel
    padding = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
    return [nn.ZeroPad2d(padding), nn.Conv2d(in_channels, out_channels, kernel)]


def _halved(n: int) -> int:
    return (n + 1) // 2


@register("audioset_fc")
class AudioSetFC(nn.Module):
    """Three fully connected layers on VGGish embeddings, then pooling over time.

    At 527 classes it has 2,774,799 parameters with AP or MP, 3,314,974 with SA, 4,951,309 with MA. Its published
    figures are the column "vanilla" of the co-learning paper's Table 6.

    Shapes: (batch, time, bands) embeddings, scaled as (x − 128) / 128 -> (batch, num_classes) probabilities.

    Sources: Mi et al. 2020, Table 6; Kong et al. 2018, arXiv 1711.00927; Yu et al. 2018, arXiv 1803.02353.

    Args:
        num_classes: Number of classes.
        pooling: ``ap``, ``mp``, ``sa`` or ``ma``.
        bands: Length of an embedding.
        hidden: Units of each layer.
        dropout: Probability after each layer.

    Raises:
        ConfigurationError: There is no such pooling.
    """

    output_kind: Literal["probabilities"] = "probabilities"

    def __init__(
        self, num_classes: int = 527, pooling: str = "ma", bands: int = 128, hidden: int = 1024, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(bands)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, hidden, kernel_size=1, bias=False),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
            )
            for width in (bands, hidden, hidden)
        )
        self.pooling = build_pooling(pooling, hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2))
        levels = []
        for layer in self.layers:
            x = layer(x)
            levels.append(x.transpose(1, 2))
        return _probabilities(self.pooling, levels)


class GatedConv(nn.Module):
    """A 3×3 convolution whose output is multiplied by a gate.

    The convolution has 2 · ``out_channels`` channels, followed by BatchNorm. One half of them is multiplied by the
    sigmoid of the other half.

    Shapes: (batch, in_channels, time, bands) -> (batch, out_channels, time, bands).

    Source: Xu et al. 2018, arXiv 1710.00343.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 2 * out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.norm(self.conv(x)), dim=1)


@register("audioset_crnn")
class AudioSetCRNN(nn.Module):
    """Gated convolutions and one bidirectional GRU on log-mel, then pooling over time.

    At 527 classes it has 951,311 parameters with AP or MP, 1,086,750 with SA, 1,913,613 with MA. The text of the
    co-learning paper describes the GRU: one of 128 units in each direction, on 240 × 64 log-mel features. Everything
    before the GRU is not in the paper. Here it is the convolutions of Xu et al., pooled in time too. MA attends to the
    output of the convolutions and to that of the GRU.

    Shapes: (batch, frames, bands) log-mel of any scale -> (batch, num_classes) probabilities. Three poolings halve
    frames and bands, so there must be at least 8 of each.

    Sources: Mi et al. 2020; Xu et al. 2018, arXiv 1710.00343.

    Args:
        num_classes: Number of classes.
        pooling: ``ap``, ``mp``, ``sa`` or ``ma``.
        bands: Mel bands.
        hidden: Units of each direction of the GRU.
        dropout: Probability behind the GRU.

    Raises:
        ConfigurationError: There is no such pooling.
    """

    output_kind: Literal["probabilities"] = "probabilities"

    def __init__(
        self, num_classes: int = 527, pooling: str = "ap", bands: int = 64, hidden: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(bands)  # of each band: log-mel comes as it is, around −10
        blocks: list[nn.Module] = []
        channels = 1
        for _ in range(3):
            blocks += [GatedConv(channels, 64), GatedConv(64, 64), nn.MaxPool2d(2)]
            channels = 64
        features = 2 * hidden
        self.convolutions = nn.Sequential(
            *blocks,
            nn.Conv2d(channels, features, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
        )
        self.gru = nn.GRU(features, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.pooling = build_pooling(pooling, features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        steps = self.convolutions(x.unsqueeze(1)).amax(dim=3).transpose(1, 2)  # (batch, time, features)
        states, _ = self.gru(steps)
        return _probabilities(self.pooling, [steps, self.dropout(states)])


def _probabilities(pooling: nn.Module, levels: list[Tensor]) -> Tensor:
    # Half precision has no number between 0.9995 and 1: ranking metrics would see ties, and the loss its clamp.
    with torch.autocast(levels[-1].device.type, enabled=False):
        probabilities: Tensor = pooling(*(level.float() for level in levels))
    return probabilities
