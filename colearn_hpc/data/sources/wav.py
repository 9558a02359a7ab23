"""WAV files to 16-bit clips of one rate and length.

libsndfile (through ``soundfile``) decodes. Around it stand limits of our own: it takes a cut file for a whole one, and
it would decode an hour of which a second is kept.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

MAX_RATE = 768_000
MOST_SAMPLES = 2**27  # of a recording that is kept whole: 2 hours at 16 kHz
_PCM, _FLOAT = 1, 3
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<"}
# A program that writes into a pipe does not know the length: ffmpeg announces 2³² − 1 bytes, sox 0x7FFFF000. No file
# that is read here is as long.
_STREAMED = 0x7FFFF000
# What has 16 bits or fewer is read as it is stored; the rest as numbers in −1 … 1.
_SIXTEEN_BITS = ("PCM_16", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")
_FILTER_REACH = 10  # samples of the slower rate that SciPy's resample_poly looks to either side


def read_wav(content: bytes, clip: tuple[int, int] | None = None) -> tuple[int, NDArray[Any]]:
    """Decode a WAV file (RIFF, RIFX or RF64): PCM, floats, and what else libsndfile knows, any number of channels.

    Args:
        content: the whole file.
        clip: rate and number of samples of the clip that will be made of it; only what that needs is decoded.

    Returns:
        Samples per second, and (frames, channels): int16 as stored for files of 16 bits, else float64 in −1 … 1.

    Raises:
        DataError: no WAV file, damaged, cut short, or without samples. The message is a phrase; the caller names
            the file.
    """
    content = _checked(content)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            frames = MOST_SAMPLES // file.channels + 1 if clip is None else _frames_needed(file.samplerate, *clip)
            sixteen = file.subtype in _SIXTEEN_BITS
            samples = file.read(frames, dtype="int16" if sixteen else "float64", always_2d=True)
            rate = file.samplerate
    # libsndfile's errors, and its Python's on numbers that make no sense.
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        reason = getattr(error, "error_string", None) or error
        raise DataError(f"cannot be decoded: {reason}") from error
    if not len(samples):
        raise DataError("has no samples (length zero)")
    return rate, samples


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
        DataError: a float file holds NaN or infinity, or the result would be absurdly long.
    """
    if clip_samples is None and samples.size > MOST_SAMPLES:
        raise DataError(f"has more than {MOST_SAMPLES} samples; cut it")
    if samples.dtype == np.int16 and samples.shape[1] == 1 and rate == clip_rate:
        clip = samples[:, 0]
    else:
        mono = samples.astype(np.float64).mean(axis=1) / (32768.0 if samples.dtype == np.int16 else 1.0)
        if not np.isfinite(mono).all():
            raise DataError("holds samples that are no finite numbers")
        if rate != clip_rate:
            from scipy.signal import resample_poly

            common = math.gcd(rate, clip_rate)
            if clip_samples is not None:
                mono = mono[: _frames_needed(rate, clip_rate, clip_samples)]
            if len(mono) * clip_rate / rate > MOST_SAMPLES + clip_rate:
                raise DataError(
                    f"would become {len(mono) * clip_rate // rate} samples at {clip_rate} a second; the rate it names, "
                    f"{rate}, must be wrong"
                )
            mono = resample_poly(mono, clip_rate // common, rate // common)
        clip = np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
    if clip_samples is None:
        return clip
    result = np.zeros(clip_samples, dtype=np.int16)
    result[: min(len(clip), clip_samples)] = clip[:clip_samples]
    return result


def _frames_needed(rate: int, clip_rate: int, clip_samples: int) -> int:
    """Frames of which a clip is made; beyond them lies nothing that the resampling filter sees."""
    if rate == clip_rate:
        return clip_samples
    return math.ceil(clip_samples * rate / clip_rate) + math.ceil(_FILTER_REACH * max(1.0, rate / clip_rate)) + 1


def _checked(content: bytes) -> bytes:
    """The file, if its chunks are what they announce; a length that was never filled in is."""
    order = _ORDERS.get(content[:4])
    if order is None or content[8:12] != b"WAVE":
        raise DataError(f"is no WAV file ({len(content)} bytes)")
    long = 0  # of the samples, in RF64
    form = None
    position = 12
    while position + 8 <= len(content):
        tag, size = (
            content[position : position + 4],
            struct.unpack(f"{order}I", content[position + 4 : position + 8])[0],
        )
        body = content[position + 8 : position + 8 + min(size, 64)]
        if tag == b"ds64" and len(body) >= 16:
            long = struct.unpack("<Q", body[8:16])[0]
        elif tag == b"fmt ":
            form = _format(body, order)
        elif tag == b"data":
            if form is None:
                raise DataError("has no format chunk before its samples")
            there = len(content) - position - 8
            if size == 0 and struct.unpack(f"{order}I", content[4:8])[0] == 0:  # a recorder that was switched off
                return content[: position + 4] + struct.pack(f"{order}I", there) + content[position + 8 :]
            size = long if content[:4] == b"RF64" and size == 2**32 - 1 and long else size
            if size >= _STREAMED:
                return content
            if there < size:
                raise DataError(f"is cut short: {size} bytes of samples announced, {there} there")
            if size % form:
                raise DataError(f"has {size} bytes of samples, not a multiple of {form}, the bytes of a frame")
            return content
        position += 8 + size + size % 2  # chunks are padded to an even length
    raise DataError(
        "has no format chunk before its samples" if form is None else "has no samples chunk; it is cut short"
    )


def _format(body: bytes, order: str) -> int:
    """Bytes of a frame, if the format is one that can be."""
    if len(body) < 16:
        raise DataError(f"has a format chunk of {len(body)} bytes, at least 16 expected")
    code, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", body[:16])
    if code in _BITS:
        if bits not in _BITS[code]:
            raise DataError(f"has {bits} bits per sample; {', '.join(map(str, _BITS[code]))} can be read")
        block = bits // 8 * channels
    if not 1 <= channels <= 64 or not block:
        raise DataError(f"has {channels} channels and frames of {block} bytes")
    if not 1 <= rate <= MAX_RATE:
        raise DataError(f"has {rate} samples per second")
    return int(block)
