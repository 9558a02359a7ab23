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
