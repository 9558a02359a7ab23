"""Sums of whole numbers: the same bits in any order, close to eq. 2, and never wrapped around."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc.algorithm.fixed_point import Scales, decode, encode, public_scales
from colearn_hpc.algorithm.shared_model import FlatEntry, weighted_mean

ENTRIES = [FlatEntry("a", 0, 40), FlatEntry("empty", 40, 0), FlatEntry("b", 40, 1), FlatEntry("c", 41, 59)]


def model_and_steps(centers, seed=0, size=100, step=0.01):
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(size, generator=generator)
    rows = previous + step * torch.randn((centers, size), generator=generator)
    return previous, list(rows)


def whole_numbers(rows, previous, scales, factors):
    """The rows' numbers, and the scales with which all of them fit: who does not fit says so, and all make room."""
    while True:
        numbers = [torch.empty(len(row), dtype=scales.dtype) for row in rows]
        if all(encode(row, previous, scales, f, q) for row, f, q in zip(rows, factors, numbers, strict=True)):
            return numbers, scales
        scales = scales.with_more_room()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.sampled_from([32, 64]), st.integers(0, 1000), st.data())
def test_any_order_gives_the_same_bits_and_masks_vanish(centers, bits, seed, data):
    previous, rows = model_and_steps(centers, seed)
    scales = public_scales(ENTRIES, rows[0] - previous, bits, centers)
    numbers, scales = whole_numbers(rows, previous, scales, [1.0] * centers)
    low, high = torch.iinfo(scales.dtype).min, torch.iinfo(scales.dtype).max
    mask = torch.randint(low, high, (100,), dtype=scales.dtype, generator=torch.Generator().manual_seed(seed))
    hidden = [numbers[0] + mask, *numbers[1:], -mask]
    expected = decode(sum(numbers), previous, scales, centers, torch.empty(100))
    for parts in (data.draw(st.permutations(numbers)), data.draw(st.permutations(hidden))):
        total = torch.zeros(100, dtype=scales.dtype)
        for part in parts:
            total += part
        assert torch.equal(decode(total, previous, scales, centers, torch.empty(100)), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.sampled_from([32, 64]), st.integers(0, 1000), st.floats(1e-20, 1e20))
def test_the_mean_is_eq_2_to_half_a_unit_of_the_scale(centers, bits, seed, step):
    previous, rows = model_and_steps(centers, seed, step=step)
    last = torch.stack(rows).double().mean(0) - previous
    scales = public_scales(ENTRIES, last.float(), bits, centers)
    numbers, scales = whole_numbers(rows, previous, scales, [1.0] * centers)
    found = decode(sum(numbers), previous, scales, centers, torch.empty(100)).double()
    exact = torch.stack(rows).double().mean(0)
    allowed = 0.5 / scales.of(0, 100) + exact.abs() * 2.0**-24 + previous.abs() * 2.0**-52 + 2.0**-149
    assert ((found - exact).abs() <= allowed).all()


def test_64_bits_have_the_bits_of_float64():
    previous, rows = model_and_steps(5)
    scales = public_scales(ENTRIES, rows[0] - previous, 64, 5)
    numbers, scales = whole_numbers(rows, previous, scales, [1.0] * 5)
    assert torch.equal(decode(sum(numbers), previous, scales, 5, torch.empty(100)), weighted_mean(rows, [1.0] * 5))


@pytest.mark.parametrize("bits", [32, 64])
def test_means_by_examples(bits):
    previous, rows = model_and_steps(4)
    examples = [1437, 22, 90001, 3]
    total = sum(examples)
    exact = weighted_mean(rows, [float(n) for n in examples])
    scales = public_scales(ENTRIES, rows[2] - previous, bits, 4, headroom=8)
    numbers, scales = whole_numbers(rows, previous, scales, [4 * n / total for n in examples])
    torch.testing.assert_close(decode(sum(numbers), previous, scales, 4, torch.empty(100)), exact, rtol=1e-6, atol=1e-7)


def test_secret_examples_are_summed_like_the_steps():
    previous, rows = model_and_steps(3)
    examples = [1437, 22, 90001]
    scales = public_scales(ENTRIES, rows[0] - previous, 64, 3, headroom=24)
    numbers, scales = whole_numbers(rows, previous, scales, [float(n) for n in examples])
    found = decode(sum(numbers), previous, scales, sum(examples), torch.empty(100))
    torch.testing.assert_close(found, weighted_mean(rows, [float(n) for n in examples]), rtol=1e-6, atol=1e-7)


def test_equal_models_have_that_model_as_their_mean():
    previous, rows = model_and_steps(1)
    scales = public_scales(ENTRIES, rows[0] - previous, 64, 7)
    numbers, scales = whole_numbers(rows * 7, previous, scales, [1.0] * 7)
    assert torch.equal(decode(sum(numbers), previous, scales, 7, torch.empty(100)), rows[0])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("centers", [1, 3, 5, 16])
def test_what_does_not_fit_is_said_and_more_room_helps(bits, centers):
    """The largest sum that is let through is below 2^(bits - 1), and the next is not let through."""
    entries = [FlatEntry("w", 0, 1)]
    scales = Scales(bits, centers, (0,), (0,))
    zero, out = torch.zeros(1, dtype=torch.float64), torch.empty(1, dtype=scales.dtype)
    limit = (2 ** (bits - 1) - 1) // centers
    fits = float(limit) if int(float(limit)) <= limit else math.nextafter(float(limit), 0)
    too_large = math.ceil(math.nextafter(fits, math.inf))
    for sign in (1, -1):
        assert encode(torch.full_like(zero, sign * fits), zero, scales, 1.0, out)
        total = sum([out.clone()] * centers)
        assert int(total) == centers * int(sign * fits), "wrapped around"
        assert not encode(torch.full_like(zero, sign * float(too_large)), zero, scales, 1.0, out)
        roomy = scales.with_more_room()
        assert roomy.exponents == (-4,) and encode(torch.full_like(zero, sign * 2 * fits), zero, roomy, 1.0, out)
    assert public_scales(entries, torch.full((1,), 0.75), bits, centers).exponents == (
        bits - 7 - math.frexp(0.75 * centers)[1],
    )


def test_headroom_is_what_it_says():
    previous, last = torch.zeros(100), torch.linspace(-1, 1, 100)
    scales = public_scales(ENTRIES, last, 32, 5, headroom=6)
    out = torch.empty(100, dtype=torch.int32)
    assert encode(63.9 * last, previous, scales, 1.0, out)
    assert not encode(1000 * last, previous, scales, 1.0, out)


def test_a_tensor_of_zeros_has_the_scale_of_the_largest_number():
    last = torch.zeros(100)
    last[40] = 0.3
    assert len(set(public_scales(ENTRIES, last, 32, 3).exponents)) == 1
    assert public_scales(ENTRIES, torch.zeros(100), 32, 4).exponents == (32 - 1 - 6 - 3,) * 3


def test_scales_by_tensor_and_slice():
    scales = Scales(32, 2, (0, 40, 41), (1, 2, 3))
    whole = torch.tensor([2.0] * 40 + [4.0] + [8.0] * 59, dtype=torch.float64)
    for start, stop in ((0, 100), (0, 40), (39, 42), (40, 41), (50, 50), (60, 100)):
        assert torch.equal(scales.of(start, stop), whole[start:stop])


def test_slices_change_no_bit():
    size = (1 << 16) + 100
    previous, (row,) = model_and_steps(1, size=size)
    scales = public_scales([FlatEntry("a", 0, 70), FlatEntry("b", 70, size - 70)], row - previous, 32, 1)
    (whole,), scales = whole_numbers([row], previous, scales, [1.0])
    mean = decode(whole, previous, scales, 1, torch.empty(size))
    for start, stop in ((0, 50), (50, 65_600), (65_600, size)):
        part = torch.empty(stop - start, dtype=torch.int32)
        assert encode(row[start:stop], previous[start:stop], scales, 1.0, part, start)
        assert torch.equal(part, whole[start:stop])
        found = decode(part, previous[start:stop], scales, 1, torch.empty(stop - start), start)
        assert torch.equal(found, mean[start:stop])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_and_named_by_its_place(value):
    previous, (row,) = model_and_steps(1)
    scales = public_scales(ENTRIES, row, 32, 1)
    row[77] = value
    with pytest.raises(ValueError, match=f"element 1077 is {value}"):
        encode(row, previous, Scales(32, 1, (0,), (20,)), 1.0, torch.empty(100, dtype=torch.int32), start=1000)
    with pytest.raises(ValueError, match="NaN or Inf"):
        public_scales(ENTRIES, row, 32, 1)
    assert not encode(torch.full((100,), 3e38), previous, scales, 1e300, torch.empty(100, dtype=torch.int32))


@pytest.mark.parametrize(("bits", "centers", "message"), [(16, 3, "bits=16"), (32, 0, "centers=0")])
def test_impossible_sums(bits, centers, message):
    with pytest.raises(ValueError, match=message):
        public_scales(ENTRIES, torch.ones(100), bits, centers)
