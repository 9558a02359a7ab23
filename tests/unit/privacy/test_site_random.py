"""The site's random numbers: normal, repeatable by key and step, and different otherwise."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from colearn_hpc.privacy.site_random import Noise, new_key, poisson_batch

KEY = bytes(range(32))


def test_noise_is_standard_normal():
    drawn = Noise(KEY, 0, b"").normal(400_000).astype(np.float64)
    assert kstest(drawn, "norm").pvalue > 1e-3  # for this key
    assert drawn.mean() == pytest.approx(0, abs=5 / math.sqrt(len(drawn)))
    assert drawn.std() == pytest.approx(1, abs=5 / math.sqrt(2 * len(drawn)))
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("count", [0, 1, 2, 3, 70_001])
def test_noise_has_the_length_asked_for(count):
    drawn = Noise(KEY, 0, b"").normal(count)
    assert drawn.shape == (count,)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()


def test_noise_goes_on_from_parameter_to_parameter():
    noise = Noise(KEY, 0, b"")
    assert not np.array_equal(noise.normal(100), noise.normal(100))


def test_noise_depends_on_key_step_and_weights_alone():
    here = Noise(KEY, 3, b"w").normal(1000)
    assert np.array_equal(here, Noise(KEY, 3, b"w").normal(1000))
    for other in (Noise(KEY, 4, b"w"), Noise(KEY, 3, b"v"), Noise(KEY[::-1], 3, b"w")):
        assert abs(np.corrcoef(here, other.normal(1000))[0, 1]) < 0.2


def test_keys_come_from_the_operating_system():
    torch.manual_seed(0)
    first = new_key()
    torch.manual_seed(0)
    assert first != new_key()
    assert len(first) == 32


def test_a_torch_generator_would_not_do():
    """Why there is a generator of our own: on a CPU PyTorch's uses 32 bits of its seed."""
    one, other = (torch.Generator().manual_seed(seed) for seed in (7, 7 + (123 << 32)))
    assert torch.equal(torch.randn(100, generator=one), torch.randn(100, generator=other))


def test_every_record_is_drawn_with_the_same_probability():
    rate, steps, examples = 0.3, 2000, 50
    counts = np.zeros(examples)
    for step in range(steps):
        counts[poisson_batch(KEY, step, examples, rate)] += 1
    error = math.sqrt(rate * (1 - rate) / steps)
    assert np.abs(counts / steps - rate).max() < 5 * error


def test_batches_are_repeatable_sorted_and_different():
    batch = poisson_batch(KEY, 5, 1000, 0.1)
    assert batch == sorted(set(batch)) == poisson_batch(KEY, 5, 1000, 0.1)
    assert batch != poisson_batch(KEY, 6, 1000, 0.1)
    assert poisson_batch(KEY, 5, 1000, 1.0) == list(range(1000))
