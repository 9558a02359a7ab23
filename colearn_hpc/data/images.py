"""Image bytes to arrays."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError


def decode_image(content: bytes, size: int | None = None) -> NDArray[np.uint8]:
    """An image file's bytes as RGB planes.

    Args:
        content: a whole JPEG, PNG, … file.
        size: resize to size × size (bilinear, aspect ratio not kept); ``None`` leaves it.

    Returns:
        (3, H, W) uint8.

    Raises:
        DataError: not an image, cut short, or absurdly large. The message is a phrase; the caller names the file.
    """
    from PIL import Image

    if not content:
        raise DataError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # A decompression bomb is a warning up to twice the limit; here it is an unreadable image.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                rgb = image.convert("RGB")
                if size is not None and rgb.size != (size, size):
                    rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
                return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))
    # Pillow raises whatever its decoders raise on damaged input, struct.error and SyntaxError included.
    except Exception as error:
        raise DataError(f"is not a readable image: {error or type(error).__name__}") from error


def verify_image(content: bytes) -> None:
    """Refuse what is no image or is cut short, without decoding a whole JPEG.

    A JPEG with a readable head and an end mark is taken as good; anything else is decoded.

    Args:
        content: a whole image file.

    Raises:
        DataError: as :func:`decode_image`.
    """
    from PIL import Image

    if content.startswith(b"\xff\xd8\xff") and content.rstrip(b"\0\n").endswith(b"\xff\xd9"):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height <= (Image.MAX_IMAGE_PIXELS or 2**31):
                    return
        except Exception as error:
            raise DataError(f"is not a readable image: {error or type(error).__name__}") from error
    decode_image(content)


class CropDecoder:
    """JPEG bytes to one size, as ImageNet networks are trained and tested.

    In training: a crop of random area (8–100 %) and aspect ratio (3/4–4/3), resized. In evaluation: the shorter side
    to size / 0.875, then the centre. Reduced decoding (the JPEG's own 1/2, 1/4, 1/8) is used where the result is at
    least as large as needed. Flips and normalisation are batched on the device, not here.

    Source: Szegedy et al. 2014 (arXiv:1409.4842) for the crops.

    Args:
        size: of the result, in pixels.
        random: training or evaluation.
        centre: size / shorter side in evaluation.
    """

    def __init__(self, size: int, random: bool, centre: float = 0.875) -> None:
        if size < 1:
            raise DataError(f"image_size: {size} was set; choose 1 or more pixels.")
        self.size, self.random, self.centre = size, random, centre

    def __call__(self, content: bytes, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(3, size, size) uint8.

        Args:
            content: a whole image file.
            rng: for the crop.

        Raises:
            DataError: as :func:`decode_image`.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
                box = self._random_box(width, height, rng) if self.random else self._centre_box(width, height)
                # draft() picks the smallest reduction that is still as large as asked.
                scale = self.size / min(box[2] - box[0], box[3] - box[1])
                if scale < 0.5:
                    image.draft("RGB", (int(width * scale) + 1, int(height * scale) + 1))
                rx, ry = image.size[0] / width, image.size[1] / height
                part = (box[0] * rx, box[1] * ry, box[2] * rx, box[3] * ry)
                rgb = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR, box=part)
                return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))
        except Exception as error:
            raise DataError(f"is not a readable image: {error or type(error).__name__}") from error

    def _centre_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        side = min(width, height) * self.centre
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    @staticmethod
    def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
        for _ in range(10):
            area = width * height * rng.uniform(0.08, 1.0)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
                return left, top, left + w, top + h
        # A strip so narrow that no crop fits: its middle, at the nearest allowed aspect ratio.
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2
