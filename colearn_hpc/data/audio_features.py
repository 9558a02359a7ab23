"""Waveform to log-mel, on the fly and on the device of the batch: ``torch.stft`` and a mel matrix.

torchaudio has no CPU build beside current torch, and librosa is too slow for training; a test holds these equal to
librosa's.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from colearn_hpc.errors import ConfigurationError

_CLIPS_AT_ONCE = 4
_WINDOWS = {"hamming": torch.hamming_window, "hann": torch.hann_window}


class LogMel:
    """ln(mel spectrogram + ``floor``) without padding at the ends: every frame holds real samples alone.

    Shapes: (batch, samples) float -> (batch, frames, bands), frames = (samples − window_length) // hop + 1.

    Args:
        sample_rate: Hz.
        window_length: Samples of a frame.
        hop: Samples between frames.
        n_fft: Length of the Fourier transform; the window stands in its middle, zeros around it.
        bands: Mel bands, of Slaney's scale and area (librosa's default).
        f_min: Lowest frequency, Hz.
        f_max: Highest frequency, Hz; ``None`` is half the sample rate.
        window: ``hann`` or ``hamming``, periodic.
        power: 1 for magnitude, 2 for power.
        floor: Added before the logarithm.
        double: Compute in float64 and give the type of the clips. In float32 rounding inside the Fourier transform
            fills bands that are 100 dB below the loudest: 0.02 off on a pure tone, 0.0001 on speech. Costs 1.3 times
            the time on a CPU; ``False`` is for devices without float64.

    Raises:
        ConfigurationError: Settings that give no spectrogram; at the call, clips are shorter than a window.
    """

    def __init__(
        self,
        sample_rate: int,
        window_length: int,
        hop: int,
        n_fft: int,
        bands: int,
        f_min: float = 0.0,
        f_max: float | None = None,
        window: Literal["hann", "hamming"] = "hann",
        power: float = 1.0,
        floor: float = 1e-6,
        double: bool = True,
    ) -> None:
        if window not in _WINDOWS:
            raise ConfigurationError(f"window={window!r} is not known; choose one of {', '.join(_WINDOWS)}")
        if not 0 < window_length <= n_fft or hop < 1:
            raise ConfigurationError(
                f"window_length={window_length}, hop={hop}, n_fft={n_fft}: need 0 < window_length ≤ n_fft and hop ≥ 1"
            )
        if floor <= 0 or power <= 0:
            raise ConfigurationError(f"floor={floor}, power={power}: must be above 0")
        self.sample_rate = sample_rate
        self.window_length = window_length
        self.hop = hop
        self.n_fft = n_fft
        self.power = power
        self.floor = floor
        self.double = double
        self._mel = mel_matrix(sample_rate, n_fft, bands, f_min, f_max)
        self._window = _WINDOWS[window](window_length, periodic=True, dtype=torch.float64)
        self._ready: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] < self.window_length:
            raise ConfigurationError(
                f"clips have {x.shape[-1]} samples, log-mel needs a window of {self.window_length}; "
                "pad the clips, or check that they are waveforms"
            )
        # Spectra of a whole batch outgrow a CPU's caches, and their memory is mapped anew each time: by a few clips it
        # is twice as fast. A GPU wants the batch whole.
        pieces = x.split(_CLIPS_AT_ONCE) if x.device.type == "cpu" else (x,)
        return torch.cat([self._log_mel(piece) for piece in pieces])

    def _log_mel(self, x: Tensor) -> Tensor:
        wanted = x.dtype
        x = x.double() if self.double else x
        window, mel = self._tensors(x)
        # torch.stft frames by n_fft; with the zeros beside the window it then frames by the window.
        beside = self.n_fft - self.window_length
        x = pad(x, (beside // 2, beside - beside // 2))
        spectrum = torch.stft(x, self.n_fft, self.hop, self.window_length, window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # abs() guards against overflow, at twice the time
        spectrogram = power if self.power == 2.0 else power.pow(self.power / 2)
        return torch.log(spectrogram.transpose(1, 2) @ mel + self.floor).to(wanted)

    def _tensors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Kept per device: a copy at every step would make the GPU wait for the host.
        key = (x.device, x.dtype)
        if key not in self._ready:
            self._ready[key] = (self._window.to(x), self._mel.to(x))
        return self._ready[key]


class SpeechLogMel(LogMel):
    """A second at 16 kHz -> 98 × 40, for the speech CNN (Mi et al. 2020, Table 5).

    Hann windows of 30 ms every 10 ms, as in TensorFlow's speech-commands example; 40 bands from 20 Hz, magnitude,
    ln(x + 1e-6). (The paper says "log-mel" and no more; 98 × 40 is what its framework's example gives.)
    """

    def __init__(self, sample_rate: int = 16_000, bands: int = 40, double: bool = True) -> None:
        window_length, hop = sample_rate * 30 // 1000, sample_rate // 100
        n_fft = 1 << (window_length - 1).bit_length()
        super().__init__(sample_rate, window_length, hop, n_fft, bands, f_min=20.0, double=double)


class AudioSetLogMel(LogMel):
    """Ten seconds at 16 kHz -> 240 × 64, for the CRNN (Mi et al. 2020, Table 6; features of Xu et al. 2018).

    Hamming windows of 1024 every 664 samples, 64 bands, magnitude, ln(x + 1e-8).
    """

    def __init__(self, double: bool = True) -> None:
        super().__init__(16_000, 1024, 664, 1024, 64, window="hamming", floor=1e-8, double=double)


def mel_matrix(sample_rate: int, n_fft: int, bands: int, f_min: float = 0.0, f_max: float | None = None) -> Tensor:
    """Triangular filters on Slaney's mel scale, each of area 1 (Slaney, Auditory Toolbox, 1998; librosa's default).

    Args:
        sample_rate: Hz.
        n_fft: Length of the Fourier transform.
        bands: Number of filters.
        f_min: Lower end of the first filter, Hz.
        f_max: Upper end of the last one, Hz; ``None`` is half the sample rate.

    Returns:
        (n_fft // 2 + 1, bands) float64.

    Raises:
        ConfigurationError: The frequencies are no range below half the sample rate, or filters fall between two
            Fourier frequencies and would always be zero.
    """
    top = sample_rate / 2 if f_max is None else f_max
    if bands < 1 or not 0 <= f_min < top <= sample_rate / 2:
        raise ConfigurationError(
            f"bands={bands}, f_min={f_min}, f_max={f_max} at {sample_rate} Hz: need 1 band or more, and "
            "0 ≤ f_min < f_max ≤ half the sample rate"
        )
    ends = _to_mel(torch.tensor([f_min, top], dtype=torch.float64))
    corners = _to_hertz(torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64))
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    filters = torch.minimum(rising, falling).clamp(min=0) * (2 / (high - low))
    if bool((filters.sum(dim=0) == 0).any()):
        raise ConfigurationError(
            f"bands={bands} with n_fft={n_fft} at {sample_rate} Hz: some bands hold no Fourier frequency; "
            "use fewer bands or a larger n_fft"
        )
    return filters


# Slaney's scale: linear up to 1 kHz (15 mel), logarithmic above, 27 steps for a factor of 6.4.
_KNEE_HERTZ, _KNEE_MEL = 1000.0, 15.0
_STEP = math.log(6.4) / 27


def _to_mel(hertz: Tensor) -> Tensor:
    linear = hertz * _KNEE_MEL / _KNEE_HERTZ
    return torch.where(hertz < _KNEE_HERTZ, linear, _KNEE_MEL + torch.log(hertz.clamp(min=1) / _KNEE_HERTZ) / _STEP)


def _to_hertz(mel: Tensor) -> Tensor:
    linear = mel * _KNEE_HERTZ / _KNEE_MEL
    return torch.where(mel < _KNEE_MEL, linear, _KNEE_HERTZ * torch.exp(_STEP * (mel - _KNEE_MEL)))
