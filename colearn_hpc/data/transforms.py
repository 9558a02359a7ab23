"""Augmentation, of whole batches where examples have one size: each example its own draw, no loop in Python.

All are plain callables for ``augment:`` and ``transform:`` of the data module (waveform to log-mel is in
:mod:`colearn_hpc.data.audio_features`; ImageNet's crops, of images of many sizes, are made where they are decoded:
:class:`colearn_hpc.data.images.CropDecoder`). They work on the device where the batch is.
Draws are made on the CPU by torch's global generator, which Lightning's checkpoints carry: a resumed run goes on with
the draws of an uninterrupted one, on a GPU as well.
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
    """CIFAR's augmentation: pad with zeros, cut the size out again at a random place, mirror half of them.

    Shapes: (batch, channels, h, w) of any type -> the same.

    Args:
        padding: Pixels on each side; 4 is usual for 32-pixel images, 0 mirrors only.
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
    """Shift each clip by its own random time; what leaves is lost, silence comes in.

    Shapes: (batch, samples) -> the same.

    Args:
        max_shift: Largest shift, either way, in samples; 1,600 are 100 ms at 16 kHz, the habit for speech commands.

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
    """Add to each clip, with some probability, its own piece of recorded noise at its own volume.

    As in TensorFlow's speech-commands example: 80 % of the clips, at a volume drawn from [0, 0.1].

    Shapes: (batch, samples) float in [−1, 1] -> the same; sums beyond are cut off, as a sound card would.

    Args:
        noise: Recordings, one behind the other, (n,) float in [−1, 1] or int16: a tensor, an ``.npy`` file, or an
            HDF5 file with a data set ``noise``.
        volume: Largest factor on the noise.
        probability: Share of the clips that get noise.

    Raises:
        ConfigurationError: A setting is out of its range, or the noise cannot be read; at the call, clips are longer
            than the noise.
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
