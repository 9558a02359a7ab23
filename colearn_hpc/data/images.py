"""Image bytes to arrays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# What white is, by the type that an image is decoded to: the network gets x · scale.
SCALES = {"uint8": 1 / 255, "uint16": 1 / 65535, "float32": 1.0}
_ORIENTATION = 0x0112  # the EXIF tag
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags


def decode_image(content: bytes, size: int | None = None) -> NDArray[Any]:
    """An image file's bytes as three planes, upright: the orientation that a camera wrote into EXIF is applied.

    Grey images of more than 8 bits (X-rays, microscopes) keep their range: 16 bits as uint16, where 65535 is white
    whatever the values are; 32 bits and floats as float32, as they are stored. All others are uint8: colours of 16 bits
    lose their lower 8, transparency is dropped.

    Args:
        content: a whole JPEG, PNG, TIFF, … file.
        size: resize to size × size (bilinear, aspect ratio not kept); ``None`` leaves it.

    Returns:
        (3, H, W) uint8, uint16 or float32; grey images three times the same plane. See :data:`SCALES`.

    Raises:
        DataError: not an image, cut short, absurdly large, or several images in one file. The message is a phrase; the
            caller names the file.
    """
    with _opened(content) as image:
        deep = _deep_grey(image)
        if deep is None:
            rgb = _upright(image).convert("RGB")
            if size is not None and rgb.size != (size, size):
                rgb = rgb.resize((size, size), _bilinear())
            return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))
        if size is not None and deep.shape != (size, size):
            deep = _resized(deep, size)
        return np.repeat(deep[np.newaxis], 3, axis=0)


@contextmanager
def _opened(content: bytes) -> Iterator[Image]:
    from PIL import Image

    if not content:
        raise DataError("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Pillow warns of a decompression bomb up to twice its limit; here it is an unreadable image.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 2**31):
                raise DataError(f"has {image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
            # A phone's MPO holds a preview behind the image; anything else is a film or a stack of slices.
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise DataError(f"holds {frames} images; write each into a file of its own")
            yield image
    except DataError:
        raise
    # Pillow raises whatever its decoders raise on damaged input, struct.error and SyntaxError included.
    except Exception as error:
        raise DataError(f"is not a readable image: {error or type(error).__name__}") from error


def _orientation(image: Image) -> int:
    """1 is upright, up to 8; from 5 on width and height change places."""
    # Pillow turns TIFF itself. Most JPEGs have no EXIF, and looking for it costs a tenth of decoding a small one.
    if image.format == "TIFF" or (image.format == "JPEG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # Cameras write broken EXIF beside good images; Pillow raises what its parser meets.
    except Exception:
        return 1


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    orientation = _orientation(image)
    if orientation == 1:
        return image
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return image if turn is None else image.transpose(turn)


def _deep_grey(image: Image) -> NDArray[Any] | None:
    """(H, W) uint16 or float32 of a grey image of more than 8 bits, upright; ``None`` for any other."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(_upright(image))
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        deep = values.astype(np.uint16)
        # TIFF may count from white, as films do; Pillow turns only 8 bits round.
        return 65535 - deep if tags.get(_PHOTOMETRIC) == 0 else deep
    if values.dtype == np.int32 and tags.get(_SAMPLE_FORMAT, 1) in (1, (1,)):
        values = values.view(np.uint32)  # Pillow reads unsigned numbers as signed ones
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("holds values that are no finite numbers")
    return values


def _resized(plane: NDArray[Any], size: int) -> NDArray[Any]:
    from PIL import Image

    resized = np.asarray(Image.fromarray(plane.astype(np.float32)).resize((size, size), _bilinear()))
    return np.rint(resized).clip(0, 65535).astype(np.uint16) if plane.dtype == np.uint16 else resized


def _bilinear() -> Any:
    from PIL import Image

    return Image.Resampling.BILINEAR


def verify_image(content: bytes) -> None:
    """Refuse what is no image of 8 bits a colour, or is cut short, without decoding a whole JPEG.

    A JPEG with a readable head and an end mark is taken as good; anything else is decoded.

    Args:
        content: a whole image file.

    Raises:
        DataError: as :func:`decode_image`.
    """
    if content.startswith(b"\xff\xd8\xff") and content.rstrip(b"\0\n").endswith(b"\xff\xd9"):
        with _opened(content):
            return
    _require_eight_bits(decode_image(content))


def _require_eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        raise DataError(f"has more than 8 bits ({image.dtype}); the source imagefolder keeps such images")
    return image


class CropDecoder:
    """JPEG bytes to one size, as ImageNet networks are trained and tested.

    In training: a crop of random area (8–100 %) and aspect ratio (3/4–4/3), resized. In evaluation: the shorter side
    to size / 0.875, then the centre. Reduced decoding (the JPEG's own 1/2, 1/4, 1/8) is used where the result is at
    least as large as needed. EXIF's orientation is applied. Flips and normalisation are batched on the device, not
    here.

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
        with _opened(content) as image:
            if _deep_grey(image) is not None:
                _require_eight_bits(decode_image(content))
            turned = _orientation(image) >= 5
            width, height = image.size[::-1] if turned else image.size
            box = self._random_box(width, height, rng) if self.random else self._centre_box(width, height)
            # draft() picks the smallest reduction that is still as large as asked.
            scale = self.size / min(box[2] - box[0], box[3] - box[1])
            if scale < 0.5:
                image.draft("RGB", (int(image.width * scale) + 1, int(image.height * scale) + 1))
            upright = _upright(image)
            rx, ry = upright.width / width, upright.height / height
            part = (box[0] * rx, box[1] * ry, box[2] * rx, box[3] * ry)
            rgb = upright.convert("RGB").resize((self.size, self.size), _bilinear(), box=part)
            return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))

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
