"""Every image network of timm under ``timm/NAME``: how this package has the large nets of Tables 1–3.

=====================  ==========================  ==========  ============
in the paper           ``network:``                10 classes  1000 classes
=====================  ==========================  ==========  ============
VGG-19                 ``timm/vgg19``              139,611,210   143,667,240
ResNet-152             ``timm/resnet152``           58,164,298    60,192,808
ResNet-V2-101          ``timm/resnetv2_101``        42,512,970    44,541,480
Inception-V4           ``timm/inception_v4``        41,158,186    42,679,816
Inception-ResNet-V2    ``timm/inception_resnet_v2``  54,321,834    55,843,464
=====================  ==========================  ==========  ============

timm's Inception nets have no auxiliary heads, and these counts are without them. The volumes in the paper's Table 1 are
those of TF-slim's nets, which have such heads; the paper does not say how much their loss weighed. The Inception nets
need images of 75 pixels or more: ``input_size: 299`` enlarges those of CIFAR.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from colearn_hpc._torchvision import make_torchvision_importable
from colearn_hpc.errors import ConfigurationError

PREFIX = "timm/"


class Resize(nn.Module):
    """Resizes a batch of images to squares, bilinearly. The ratio of the sides is not kept.

    Shrinking is antialiased, so no pixel is skipped. Images of the right size pass as they are.

    Shapes: (batch, channels, h, w) float -> (batch, channels, size, size).

    Args:
        size: Pixels of a side.

    Raises:
        ConfigurationError: ``size`` is below 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigurationError(f"input_size={size}: must be 1 pixel or more")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (self.size, self.size):
            return x
        shrinks = min(x.shape[-2:]) > self.size
        return interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=shrinks)

    def extra_repr(self) -> str:
        return f"size={self.size}"


def build_timm(name: str, num_classes: int, input_size: int | None = None, **args: Any) -> nn.Module:
    """A network of timm. It has random initial weights, unless ``pretrained: true`` is among its arguments.

    Shapes: (batch, 3, h, w) -> (batch, num_classes) logits. ``in_chans: 1`` for grey images.

    Args:
        name: ``timm/NAME`` with a name of ``timm.list_models()``.
        num_classes: Length of the output row.
        input_size: Resize every batch to this many pixels a side first; ``None`` takes images as they come.
        **args: For ``timm.create_model``, as ``drop_rate: 0.5`` or ``in_chans: 1``.

    Raises:
        ConfigurationError: timm is not installed or cannot be imported, does not know the name (the nearest are
            listed), or its network refuses an argument.
    """
    timm = _import_timm(name)
    wanted = name.removeprefix(PREFIX)
    # list_models would hide "resnet50.a1_in1k": a name may carry timm's tag of its pretrained weights.
    if not timm.is_model(wanted):
        raise ConfigurationError(
            f"network {name!r}: timm {timm.__version__} has no {wanted!r}; nearest: {', '.join(_nearest(timm, wanted))}"
        )
    try:
        network = timm.create_model(wanted, num_classes=num_classes, **args)
    except TypeError as error:
        raise ConfigurationError(f"network {name!r} was given {sorted(args)}, but timm says: {error}") from error
    return network if input_size is None else nn.Sequential(Resize(input_size), network)


def _import_timm(name: str) -> Any:
    make_torchvision_importable()
    try:
        import timm
    except Exception as error:  # a torchvision of another torch raises whatever it likes, not only ImportError
        raise ConfigurationError(
            f"network {name!r} needs timm, and importing it failed: {type(error).__name__}: {error}. "
            "Install the extra, pip install 'colearn_hpc[timm]', with the torchvision that matches the installed torch"
        ) from error
    return timm


def _nearest(timm: Any, wanted: str) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(wanted, timm.list_models(), n=3, cutoff=0.4) or ["see timm.list_models()"]
