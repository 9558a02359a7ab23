"""Augmentation: what may come out, each example by its own draw, torch's seed decides. Log-mel against librosa."""

import pickle
from collections.abc import Callable
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc.data.audio_features import AudioSetLogMel, LogMel, SpeechLogMel, mel_matrix
from colearn_hpc.data.transforms import (
    BackgroundNoise,
    Compose,
    RandomCropFlip,
    TimeShift,
)
from colearn_hpc.errors import ConfigurationError

needs_librosa = pytest.mark.skipif(
    find_spec("librosa") is None, reason="librosa, the oracle of log-mel, is not installed"
)
NOISE = torch.linspace(-0.5, 0.5, 50)


@pytest.mark.parametrize(
    ("transform", "batch"),
    [
        (RandomCropFlip(), torch.rand(8, 3, 32, 32)),
        (TimeShift(5), torch.rand(8, 40)),
        (BackgroundNoise(NOISE), torch.rand(8, 40)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_torchs_seed_decides_and_examples_draw_on_their_own(transform, batch):
    same = batch[:1].expand_as(batch)
    torch.manual_seed(1)
    first = transform(same)
    second = transform(same)
    torch.manual_seed(1)
    again = transform(same)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert len({example.numpy().tobytes() for example in first}) > 1
    assert first.shape[0] == len(batch)
    pickle.loads(pickle.dumps(transform))  # it goes to the data loader's workers
    torch.manual_seed(1)
    before = same.clone()
    transform(same)
    assert torch.equal(same, before)


def crops_of(image, padding):
    """Every crop of the zero-padded image, and its mirror image: what RandomCropFlip may return."""
    padded = np.pad(image, [(0, 0), (padding, padding), (padding, padding)])
    height, width = image.shape[1:]
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield crop.tobytes()
            yield crop[:, :, ::-1].tobytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(0, 2))
def test_crop_flip_gives_a_crop_of_each_image(batch, channels, height, width, padding):
    x = torch.arange(batch * channels * height * width, dtype=torch.int32).reshape(batch, channels, height, width) + 1
    out = RandomCropFlip(padding)(x)
    assert out.dtype == x.dtype and out.shape == x.shape
    for image, result in zip(x.numpy(), out.numpy(), strict=True):
        assert result.tobytes() in set(crops_of(image, padding))


def test_crop_flip_reaches_every_place_and_both_sides():
    torch.manual_seed(0)
    image = np.arange(1, 13, dtype=np.int32).reshape(1, 3, 4)
    out = RandomCropFlip(1)(torch.from_numpy(image).expand(2000, 1, 3, 4))
    assert {result.tobytes() for result in out.numpy()} == set(crops_of(image, 1))


@pytest.mark.parametrize(("flip", "mirrored"), [(0.0, False), (1.0, True)])
def test_flip_never_and_always(flip, mirrored):
    x = torch.rand(5, 3, 4, 6)
    assert torch.equal(RandomCropFlip(0, flip)(x), x.flip(3) if mirrored else x)


def test_time_shift_moves_and_fills_with_silence():
    torch.manual_seed(0)
    clip = torch.arange(1.0, 11.0)
    padded = torch.nn.functional.pad(clip, (3, 3))
    allowed = {tuple(padded[start : start + 10].tolist()) for start in range(7)}
    seen = {tuple(row) for row in TimeShift(3)(clip.expand(300, 10)).tolist()}
    assert seen == allowed


def test_time_shift_beyond_the_clip_leaves_silence():
    torch.manual_seed(0)
    out = TimeShift(50)(torch.ones(200, 10))
    assert (out.sum(1) == 0).any() and (out.sum(1) > 0).any()


def test_noise_is_a_piece_of_the_recording_at_its_volume():
    torch.manual_seed(0)
    noise = torch.linspace(-1, 1, 101)
    out = BackgroundNoise(noise, volume=0.5, probability=1.0)(torch.zeros(100, 11))
    volume = (out[:, 1] - out[:, 0]) / 0.02  # the recording rises by 0.02 a sample
    assert volume.min() >= 0 and volume.max() <= 0.5 + 1e-4 and volume.std() > 0.05
    start = out[:, 0] / volume
    assert start.min() >= -1.001 and start.max() <= 0.801
    assert torch.allclose(out, volume[:, None] * (start[:, None] + 0.02 * torch.arange(11)), atol=1e-4)


def test_noise_comes_with_its_probability_and_is_cut_off():
    torch.manual_seed(0)
    noise = BackgroundNoise(torch.ones(20), volume=1.0, probability=0.3)
    changed = (noise(torch.zeros(2000, 10)) != 0).any(1).float().mean().item()
    assert 0.25 < changed < 0.35
    assert noise(torch.full((50, 10), 0.9)).max() == 1.0
    assert torch.equal(BackgroundNoise(torch.ones(20), probability=0.0)(torch.zeros(5, 10)), torch.zeros(5, 10))


@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_noise_from_a_file(tmp_path, suffix):
    samples = np.array([0, 2**14, -(2**15)], np.int16)
    path = tmp_path / f"noise.{suffix}"
    if suffix == "npy":
        np.save(path, samples)
    else:
        with h5py.File(path, "w") as file:
            file["noise"] = samples
    assert BackgroundNoise(path).noise.tolist() == [0, 0.5, -1]


def test_unusable_noise(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"RIFF")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1.0]
    for noise, message in [
        (tmp_path / "gone.npy", "no such file"),
        (tmp_path / "bad.npy", "cannot be read"),
        (tmp_path / "other.h5", "cannot be read"),
        (torch.zeros(3, 3), r"wanted \(n,\)"),
        (torch.zeros(3, dtype=torch.int64), r"wanted \(n,\)"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            BackgroundNoise(noise)
    with pytest.raises(ConfigurationError, match="noise has 50 samples, clips have 51"):
        BackgroundNoise(NOISE)(torch.zeros(1, 51))


def test_compose_goes_from_left_to_right():
    assert Compose([lambda x: x + 1, lambda x: x * 2])(torch.tensor(3)).item() == 8


def test_transforms_can_be_written_in_yaml():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--augment", type=Callable)
    shift = {"class_path": "colearn_hpc.data.transforms.TimeShift", "init_args": {"max_shift": 7}}
    log_mel = {"class_path": "colearn_hpc.data.audio_features.SpeechLogMel"}
    both = {"class_path": "colearn_hpc.data.transforms.Compose", "init_args": {"transforms": [shift, log_mel]}}
    augment = parser.instantiate_classes(parser.parse_object({"augment": both})).augment
    assert augment.transforms[0].max_shift == 7
    assert augment(torch.zeros(2, 16_000)).shape == (2, 98, 40)


def clips(sample_rate, seconds, dtype):
    """A tone, noise, a chirp, and a click in silence: loud, flat, wide, and nearly empty spectra."""
    t = torch.arange(int(sample_rate * seconds), dtype=torch.float64) / sample_rate
    generator = torch.Generator().manual_seed(0)
    click = torch.zeros_like(t)
    click[len(t) // 2] = 1
    noise = 0.1 * torch.randn(len(t), generator=generator, dtype=torch.float64)
    return torch.stack([0.5 * torch.sin(2765 * t), noise, 0.8 * torch.sin(2000 * t * t), click]).to(dtype)


@needs_librosa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_mel", "seconds", "shape", "window"),
    [(SpeechLogMel(), 1, (98, 40), "hann"), (AudioSetLogMel(), 10, (240, 64), "hamming")],
    ids=["speech", "audioset"],
)
def test_log_mel_is_librosas(log_mel, seconds, shape, window, dtype):
    import librosa

    x = clips(16_000, seconds, dtype)
    got = log_mel(x)
    assert got.shape == (4, *shape) and got.dtype == dtype
    beside = (log_mel.n_fft - log_mel.window_length) // 2
    mel = librosa.feature.melspectrogram(
        y=np.pad(x.numpy(), [(0, 0), (beside, beside)]),
        sr=16_000,
        n_fft=log_mel.n_fft,
        hop_length=log_mel.hop,
        win_length=log_mel.window_length,
        window=window,
        center=False,
        power=1.0,
        n_mels=shape[1],
        fmin=20.0 if window == "hann" else 0.0,
    )
    wanted = np.log(mel + log_mel.floor).transpose(0, 2, 1)
    assert np.abs(got.numpy() - wanted).max() < 1e-5


@needs_librosa
@pytest.mark.parametrize(
    ("rate", "n_fft", "bands", "low", "high"),
    [
        (16_000, 512, 40, 20, None),
        (16_000, 1024, 64, 0, None),
        (8_000, 256, 20, 300, 3400),
        (44_100, 2048, 128, 0, 9e3),
    ],
)
def test_mel_matrix_is_librosas(rate, n_fft, bands, low, high):
    import librosa

    wanted = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bands, fmin=low, fmax=high, dtype=np.float64)
    assert np.allclose(mel_matrix(rate, n_fft, bands, low, high).numpy(), wanted.T, atol=1e-12)


def test_mel_filters_have_area_one():
    """Without librosa: the sum over a filter times the bins' distance is its area, up to sampling of wide ones."""
    areas = mel_matrix(16_000, 8192, 40, 20).sum(dim=0) * 16_000 / 8192
    assert torch.allclose(areas, torch.ones(40, dtype=torch.float64), atol=0.01)


def test_a_tone_lands_in_its_band():
    t = torch.arange(16_000) / 16_000
    frames = SpeechLogMel()(torch.sin(2 * torch.pi * 1000 * t)[None])
    middle = mel_matrix(16_000, 512, 40, 20.0)[32]  # the filters at 32 · 31.25 = 1000 Hz
    assert (frames[0].argmax(dim=1) == middle.argmax()).all()


def test_silence_is_the_logarithm_of_the_floor():
    assert torch.allclose(AudioSetLogMel()(torch.zeros(1, 160_000)), torch.tensor(1e-8).log())


def test_power_is_the_square():
    """Of one band that holds one Fourier frequency, with a weight that the mel matrix tells."""
    settings = {"sample_rate": 8000, "window_length": 16, "hop": 16, "n_fft": 16, "bands": 1, "floor": 1e-30}
    band = {"f_min": 600.0, "f_max": 1400.0}  # frequencies are 500 Hz apart
    weight = mel_matrix(8000, 16, 1, **band).max().log().item()
    x = torch.randn(3, 64)
    magnitude = LogMel(**settings, **band)(x) - weight
    power = LogMel(**settings, **band, power=2.0)(x) - weight
    assert torch.allclose(power, 2 * magnitude, atol=1e-4)


def test_single_precision_is_close_on_noise():
    x = clips(16_000, 1, torch.float32)[1:2]
    single = SpeechLogMel(double=False)(x)
    assert single.dtype == torch.float32
    assert torch.allclose(single, SpeechLogMel()(x), atol=1e-5)


def test_speech_log_mel_at_half_the_rate():
    assert SpeechLogMel(8000)(torch.zeros(2, 8000)).shape == (2, 98, 40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCropFlip(-1), "padding=-1"),
        (lambda: RandomCropFlip(flip=1.5), "flip=1.5"),
        (lambda: TimeShift(-1), "max_shift=-1"),
        (lambda: BackgroundNoise(NOISE, volume=-1), "volume=-1"),
        (lambda: BackgroundNoise(NOISE, probability=2), "probability=2"),
        (lambda: LogMel(8000, 300, 100, 256, 10), "window_length=300"),
        (lambda: LogMel(8000, 200, 0, 256, 10), "hop=0"),
        (lambda: LogMel(8000, 200, 100, 256, 10, window="box"), "window='box'"),
        (lambda: LogMel(8000, 200, 100, 256, 10, floor=0), "floor=0"),
        (lambda: mel_matrix(8000, 256, 0), "bands=0"),
        (lambda: mel_matrix(8000, 256, 10, 0, 5000), "f_max=5000"),
        (lambda: mel_matrix(8000, 64, 100), "hold no Fourier frequency"),
        (lambda: SpeechLogMel()(torch.zeros(1, 100)), "clips have 100 samples"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
