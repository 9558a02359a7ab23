"""Codecs: lengths, round trips over all of float32's range, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc import CoLearning
from colearn_hpc.algorithm.codec import BLOCK, NAMES, codec_of
from colearn_hpc.errors import ConfigurationError

CODECS = [name for name in NAMES if name != "fp32"]
RATIOS = {"bf16": 0.51, "fp16": 0.51, "int8": 0.27}
BIGGEST_BF16 = float(np.float32(3.389e38))


def round_trip(name, values):
    codec = codec_of(name)
    message = torch.full((codec.nbytes(len(values)),), 255, dtype=torch.uint8)
    found = torch.empty(len(values))
    codec.encode(values, message)
    codec.decode(message, found)
    return found


def bound(name, values):
    """The largest error that is allowed, by element."""
    table = torch.nn.functional.pad(values.double().abs(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = table.amax(1, keepdim=True).expand_as(table).reshape(-1)[: len(values)]
    size = values.double().abs()
    # 2⁻¹⁴⁹ is float32's smallest number; a scale that small is itself rounded.
    return {
        "bf16": size * 2.0**-8 + 2.0**-133,
        "fp16": size * 2.0**-11 + largest * 2.0**-38 + 2.0**-149,
        "int8": largest / 253 + 127 * 2.0**-149,
    }[name]


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-BIGGEST_BF16, BIGGEST_BF16, width=32), min_size=0, max_size=2 * BLOCK + 3))
def test_any_finite_numbers(name, values):
    """Zeros, denormals and both ends of the range, side by side."""
    values = torch.tensor(values, dtype=torch.float32)
    found = round_trip(name, values)
    assert torch.isfinite(found).all()
    assert ((found.double() - values.double()).abs() <= bound(name, values)).all()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -100, -20, 0, 20, 100, 126])
@pytest.mark.parametrize("count", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_scales_and_shapes(name, exponent, count):
    values = torch.from_numpy(np.random.default_rng(count).uniform(-1, 1, count) * 2.0**exponent).float()
    assert ((round_trip(name, values).double() - values.double()).abs() <= bound(name, values)).all()


@pytest.mark.parametrize("name", CODECS)
def test_zeros_stay_zeros(name):
    assert (round_trip(name, torch.zeros(1000)) == 0).all()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_stays_not_finite(name, value):
    """What a codec cannot say must be seen after it: then the mean is refused."""
    values = torch.linspace(-1, 1, 3 * BLOCK)
    values[BLOCK + 5] = value
    assert not math.isfinite(round_trip(name, values)[BLOCK + 5])


@pytest.mark.parametrize("name", CODECS)
def test_bytes(name):
    codec = codec_of(name)
    assert codec.nbytes(0) == 0
    for count in (10_000, 58_164_298):
        assert codec.nbytes(count) / (4 * count) <= RATIOS[name]


@pytest.mark.parametrize("name", CODECS)
def test_encoding_again_changes_nothing(name):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = round_trip(name, values)
    assert torch.allclose(round_trip(name, once), once, rtol=1e-6)


def test_unknown_codec():
    with pytest.raises(ValueError, match="codec must be one of fp32, bf16, fp16, int8; found 'zip'"):
        codec_of("zip")


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        ({"codec": "zip"}, "exchange: codec must be one of fp32, bf16, fp16, int8; found 'zip'"),
        ({"codecs": "int8"}, "exchange must be a mapping"),
        ({"lanes": 0}, "exchange: lanes must be a whole number, at least 1, or null; found 0"),
        ({"lanes": True}, "exchange: lanes must be a whole number"),
        ({"lanes": 2, "codec": "int8"}, 'exchange: lanes=2 cannot be combined with codec="int8"'),
        ("int8", "exchange must be a mapping"),
    ],
)
def test_impossible_settings(exchange, message):
    with pytest.raises(ConfigurationError, match=message):
        CoLearning(exchange=exchange)


def test_codec_of_predictions():
    with pytest.raises(ConfigurationError, match="none travel"):
        CoLearning(exchange={"codec": "int8"}, combine="predictions")
