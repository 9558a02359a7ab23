"""The coordinator's codecs have the bits of ``algorithm/codec.py``."""

import numpy as np
import pytest
import torch

from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.federation.codecs import CODECS
from colearn_hpc.federation.wire import CHUNK, Hello

SIZES = [1, 255, 256, 257, 5000]


def values_of(size, seed=0):
    """Over many decades, with zeros, whole blocks of zeros, and what is too small for a scale."""
    draw = np.random.default_rng(seed)
    values = (draw.standard_normal(size) * 10.0 ** draw.uniform(-8, 4, size)).astype("<f4")
    values[::7] = 0.0
    values[256:512] = 0.0
    values[512:768] *= np.float32(1e-38)
    return values


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CODECS)
def test_the_same_bits_as_torch(name, size):
    values, codec, ours = values_of(size), codec_of(name), CODECS[name]
    message, decoded = torch.empty(codec.nbytes(size), dtype=torch.uint8), torch.empty(size)
    codec.encode(torch.from_numpy(values), message)
    codec.decode(message, decoded)
    assert ours.nbytes(size) == codec.nbytes(size) and ours.feedback == codec.feedback
    assert ours.encode(values) == message.numpy().tobytes()
    assert ours.decode(message.numpy().tobytes(), size).tobytes() == decoded.numpy().tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CODECS)
def test_what_is_no_number_comes_out_as_none(name, bad):
    """... and is refused with the mean."""
    values = np.ones(600, dtype="<f4")
    values[300] = bad
    with np.errstate(all="ignore"):
        assert not np.isfinite(CODECS[name].decode(CODECS[name].encode(values), 600)).all()


@pytest.mark.parametrize("name", CODECS)
def test_chunks_hold_the_whole_vector(name):
    hello = Hello(1, 3_000_001, "<f4", (1.0, 1.0), (0, 1), codec=name, coded=2_500_003)
    places = [hello.place(chunk) for chunk in range(hello.chunks)]
    assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])] and places[-1][1] == 3_000_001
    assert any(stop == 2_500_003 for _, stop in places)
    assert sum(map(hello.length, range(hello.chunks))) == hello.nbytes
    assert max(map(hello.length, range(hello.chunks))) <= CHUNK
    assert all((stop - start) % 256 == 0 for start, stop in places if stop < 2_500_003)
    assert Hello.from_plain(hello.to_plain(), 2) == hello
