"""VGG-19 for CIFAR. The ImageNet form is timm's, ``timm/vgg19``."""

from torch import Tensor, nn

from colearn_hpc.models.registry import register

_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; a pooling ends each


@register("vgg19_cifar")
class CifarVGG19(nn.Module):
    """The sixteen convolutions of VGG-19, and one linear layer; 20,029,514 parameters at 10 classes.

    This is the VGG-19 of Table 2, for images of 32 pixels. Five poolings leave one pixel with 512 channels of such an
    image. So the two fully connected layers of 4096 units are left out, as is usual on CIFAR. The co-learning paper
    does not say which head it used. Weights are initialised as by He et al. There is no BatchNorm, as published.

    Shapes: (batch, channels, h, w) float -> (batch, num_classes) logits; h and w at least 32. Of a larger image more
    than one pixel is left, and their mean is taken.

    Source: Simonyan and Zisserman 2015, arXiv 1409.1556, column E.

    Args:
        num_classes: Length of the output row.
        batch_norm: Put BatchNorm after every convolution (11,008 more parameters, biases kept).
        dropout: Probability before the linear layer.
        in_channels: Channels of the image.
    """

    def __init__(
        self, num_classes: int = 10, batch_norm: bool = False, dropout: float = 0.0, in_channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width, convolutions in _STAGES:
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                # Sixteen layers without BatchNorm do not train from torch's default initialisation.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
