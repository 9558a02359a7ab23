"""WAV files to 16-bit clips of one rate and length.

Python's ``wave`` reads neither floats nor, before 3.12, the extensible header that 24-bit recorders write, and takes
a cut file for a whole one.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
MAX_RATE = 768_000


def read_wav(content: bytes) -> tuple[int, NDArray[Any]]:
    """Decode a WAV file: PCM of 8, 16, 24 or 32 bits or floats of 32 or 64, any number of channels.

    Args:
        content: the whole file.

    Returns:
        Samples per second, and (frames, channels): int16 as stored for 16-bit files, else float64 in −1 … 1.

    Raises:
        DataError: no WAV file, damaged, compressed, or without samples. The message is a phrase; the caller names
            the file.
    """
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise DataError(f"is no WAV file ({len(content)} bytes)")
    form, data = None, None
    position = 12
    while position + 8 <= len(content) and data is None:
        tag, size = content[position : position + 4], struct.unpack("<I", content[position + 4 : position + 8])[0]
        body = content[position + 8 : position + 8 + size]
        if tag == b"fmt ":
            form = _format(body)
        elif tag == b"data":
            if len(body) < size:
                raise DataError(f"is cut short: {size} bytes of samples announced, {len(body)} there")
            data = body
        position += 8 + size + size % 2  # chunks are padded to an even length
    if form is None:
        raise DataError("has no format chunk before its samples")
    if data is None:
        raise DataError("has no samples chunk; it is cut short")
    code, channels, rate, bits = form
    width = bits // 8 * channels
    if len(data) == 0:
        raise DataError("has no samples (length zero)")
    if len(data) % width:
        raise DataError(
            f"has {len(data)} bytes of samples, not a multiple of {width} ({channels} channels, {bits} bits)"
        )
    return rate, _samples(data, code, bits).reshape(-1, channels)


def to_clip(rate: int, samples: NDArray[Any], clip_rate: int, clip_samples: int | None) -> NDArray[np.int16]:
    """One channel, one rate, one length.

    Channels are averaged; the rate is changed by a polyphase filter (SciPy's ``resample_poly``); longer clips are cut
    at the end, shorter ones filled with zeros there. A 16-bit mono clip of the right rate keeps its bits.

    Args:
        rate: samples per second of ``samples``.
        samples: (frames, channels), int16, or floats in −1 … 1.
        clip_rate: samples per second wanted.
        clip_samples: length wanted; ``None`` keeps it.

    Returns:
        (clip_samples,) int16.

    Raises:
        DataError: a float file holds NaN or infinity.
    """
    if samples.dtype == np.int16 and samples.shape[1] == 1 and rate == clip_rate:
        clip = samples[:, 0]
    else:
        mono = samples.astype(np.float64).mean(axis=1) / (32768.0 if samples.dtype == np.int16 else 1.0)
        if not np.isfinite(mono).all():
            raise DataError("holds samples that are no finite numbers")
        if rate != clip_rate:
            from scipy.signal import resample_poly

            common = math.gcd(rate, clip_rate)
            mono = resample_poly(mono, clip_rate // common, rate // common)
        clip = np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
    if clip_samples is None:
        return clip
    result = np.zeros(clip_samples, dtype=np.int16)
    result[: min(len(clip), clip_samples)] = clip[:clip_samples]
    return result


def _format(body: bytes) -> tuple[int, int, int, int]:
    if len(body) < 16:
        raise DataError(f"has a format chunk of {len(body)} bytes, at least 16 expected")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if code == _EXTENSIBLE:
        if len(body) < 26:
            raise DataError("has an extensible format chunk that is cut short")
        code = struct.unpack("<H", body[24:26])[0]
    allowed = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
    if code not in allowed:
        raise DataError(f"is compressed (format {code}); convert it to PCM")
    if bits not in allowed[code]:
        raise DataError(f"has {bits} bits per sample; {', '.join(map(str, allowed[code]))} can be read")
    if not 1 <= channels <= 64:
        raise DataError(f"has {channels} channels")
    if not 1 <= rate <= MAX_RATE:
        raise DataError(f"has {rate} samples per second")
    return code, channels, rate, bits


def _samples(data: bytes, code: int, bits: int) -> NDArray[Any]:
    if code == _FLOAT:
        return np.frombuffer(data, dtype=f"<f{bits // 8}").astype(np.float64)
    if bits == 8:  # the one unsigned format
        return (np.frombuffer(data, dtype=np.uint8).astype(np.float64) - 128.0) / 128.0
    if bits == 16:
        return np.frombuffer(data, dtype="<i2").astype(np.int16)
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float64) / 2.0**31
    return np.frombuffer(data, dtype="<i4").astype(np.float64) / 2.0**31
