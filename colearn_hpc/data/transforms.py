"""Augmentation of whole batches: every example has a random draw of its own.

Each class is a plain callable from a batch to a batch. The data module takes one as ``augment:`` or ``transform:``. It
works on the device where the batch is. All examples of a batch have one size.

Random numbers are drawn on the CPU, by torch's global generator. Lightning's checkpoints hold the state of that
generator. So a resumed run goes on with the draws of an uninterrupted one, also on a GPU.

Two transforms are elsewhere. :mod:`colearn_hpc.data.audio_features` makes log-mel features of waveforms.
:class:`colearn_hpc.data.images.CropDecoder` makes ImageNet's crops when it decodes an image, because there the images
have many sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from colearn_hpc.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Compose:
    """Several transforms, one after the other.

    Args:
        transforms: Each (batch, …) -> (batch, …); the first is applied first.
    """

    # Callable without [[Tensor], Tensor]: with it, jsonargparse wants a subclass of Tensor in the YAML file.
    def __init__(self, transforms: Sequence[Callable]) -> None:
        self.transforms = list(transforms)

    def __call__(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x


class RandomCropFlip:
    """The usual augmentation for CIFAR: a random crop of the padded image, mirrored in half of the cases.

    Each image is padded with zeros. Then a piece of the old size is cut out at a random place.

    Shapes: (batch, channels, h, w) of any type -> the same.

    Args:
        padding: Pixels that are added on each side; 4 is usual for images of 32 pixels. 0: images are only mirrored.
        flip: Probability that an image is mirrored left to right.

    Raises:
        ConfigurationError: A setting is out of its range.
    """

    def __init__(self, padding: int = 4, flip: float = 0.5) -> None:
        if padding < 0:
            raise ConfigurationError(f"padding={padding}: must be 0 or more")
        self.padding = padding
        self.flip = _probability("flip", flip)

    def __call__(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        offsets = torch.randint(0, 2 * self.padding + 1, (2, batch, 1))
        rows = offsets[0] + torch.arange(height)
        columns = offsets[1] + torch.arange(width)
        flipped = torch.rand(batch, 1) < self.flip
        columns = torch.where(flipped, columns.flip(1), columns)
        rows, columns = rows.to(x.device), columns.to(x.device)
        padded = pad(x, [self.padding] * 4)
        # One gather of all pixels: the four index tensors broadcast to (batch, channels, h, w).
        examples = torch.arange(batch, device=x.device)[:, None, None, None]
        planes = torch.arange(channels, device=x.device)[None, :, None, None]
        return padded[examples, planes, rows[:, None, :, None], columns[:, None, None, :]]


class TimeShift:
    """Shift each clip earlier or later by a random time.

    Samples that are shifted out of the clip are lost. Zeros take the free places.

    Shapes: (batch, samples) -> the same.

    Args:
        max_shift: The largest shift in samples, either way; 1,600 samples are 100 ms at 16 kHz, which is usual for
            speech commands.

    Raises:
        ConfigurationError: ``max_shift`` is negative.
    """

    def __init__(self, max_shift: int = 1600) -> None:
        if max_shift < 0:
            raise ConfigurationError(f"max_shift={max_shift}: must be 0 samples or more")
        self.max_shift = max_shift

    def __call__(self, x: Tensor) -> Tensor:
        starts = torch.randint(0, 2 * self.max_shift + 1, (len(x),)).to(x.device)
        # unfold is a view of all shifted clips; indexing copies one of each example.
        shifted = pad(x, (self.max_shift, self.max_shift)).unfold(1, x.shape[1], 1)
        return shifted[torch.arange(len(x), device=x.device), starts]


class BackgroundNoise:
    """Add recorded noise to some of the clips: each gets a random piece of it, at a random volume.

    The defaults are those of TensorFlow's speech-commands example: 80 % of the clips get noise, and its volume is drawn
    from [0, 0.1].

    Shapes: (batch, samples) float in [−1, 1] -> the same. A sum outside of [−1, 1] is clipped to it.

    Args:
        noise: The recordings, one behind the other, of shape (n,), float in [−1, 1] or int16. A tensor, an ``.npy``
            file, or an HDF5 file with a data set ``noise``.
        volume: The largest factor by which the noise is multiplied.
        probability: Share of the clips that get noise.

    Raises:
        ConfigurationError: A setting is out of its range, or the noise cannot be read. A call raises it if the clips
            are longer than the noise.
    """

    def __init__(self, noise: str | Path | Tensor, volume: float = 0.1, probability: float = 0.8) -> None:
        if not volume >= 0:
            raise ConfigurationError(f"volume={volume}: must be 0 or more")
        self.volume = volume
        self.probability = _probability("probability", probability)
        samples = noise if isinstance(noise, Tensor) else torch.from_numpy(_read_noise(Path(noise)))
        if samples.dtype == torch.int16:
            samples = samples.float() / 2**15
        if samples.dim() != 1 or not samples.is_floating_point():
            raise ConfigurationError(
                f"noise: found {samples.dtype} of shape {tuple(samples.shape)}, wanted (n,) float or int16"
            )
        self.noise = samples.float()

    def __call__(self, x: Tensor) -> Tensor:
        batch, length = x.shape
        starts = len(self.noise) - length + 1
        if starts < 1:
            raise ConfigurationError(
                f"noise has {len(self.noise)} samples, clips have {length}; record more of it, or leave the noise out"
            )
        if self.noise.device != x.device:
            self.noise = self.noise.to(x.device)
        places = torch.randint(0, starts, (batch,)).to(x.device)
        chosen = torch.rand(batch, 1) < self.probability
        volumes = (torch.rand(batch, 1) * self.volume * chosen).to(x.device, x.dtype)
        # unfold is a view of all pieces; indexing copies the chosen ones.
        return (x + self.noise.unfold(0, length, 1)[places].to(x.dtype) * volumes).clamp(-1, 1)


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name}={value}: must be a probability, in [0, 1]")
    return value


def _read_noise(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise ConfigurationError(f"noise={path}: there is no such file")
    try:
        if path.suffix in (".h5", ".hdf5"):
            import h5py

            with h5py.File(path, "r", locking=False) as file:
                return np.asarray(file["noise"][...])
        return np.asarray(np.load(path))
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ConfigurationError(
            f"noise={path}: cannot be read as .npy, or as HDF5 with a data set noise: {error}"
        ) from error
