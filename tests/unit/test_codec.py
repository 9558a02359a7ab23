"""Codecs: lengths, round trips over all of float32's range, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colearn_hpc import CoLearning
from colearn_hpc.algorithm import compiled
from colearn_hpc.algorithm.codec import BLOCK, NAMES, codec_of
from colearn_hpc.algorithm.coded_steps import Coded, CodedSlices, CompiledSlices
from colearn_hpc.algorithm.combine import TrimmedMean
from colearn_hpc.algorithm.encoding import Ground
from colearn_hpc.errors import ConfigurationError

CODECS = [name for name in NAMES if name != "fp32"]
RATIOS = {"bf16": 0.51, "fp16": 0.51, "int8": 0.27, "int4": 0.13, "topk": 0.016}
NOTHING = np.empty(0, np.float32)
BIGGEST_BF16 = float(np.float32(3.389e38))


@pytest.fixture(scope="module", params=["compiled", "torch"], autouse=True)
def way(request):
    """All of this holds with numba and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_made", {})
        for name in ("int8", "int4") if request.param == "compiled" else ():
            compiled.prepare(name)
        yield request.param


def round_trip(name, values):
    codec = codec_of(name)
    message = torch.full((codec.nbytes(len(values)),), 255, dtype=torch.uint8)
    found = torch.empty(len(values))
    if loops := compiled.kernels(name):
        loops.encode(values.numpy(), NOTHING, NOTHING, NOTHING, 0, message.numpy())
        loops.decode(message.numpy(), NOTHING, found.numpy(), 0, len(values))
    else:
        codec.encode(values, message)
        codec.decode(message, found)
    return found


def bound(name, values):
    """The largest error that is allowed, by element."""
    table = torch.nn.functional.pad(values.double().abs(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = table.amax(1, keepdim=True).expand_as(table).reshape(-1)[: len(values)]
    size = values.double().abs()
    chunks = torch.nn.functional.pad(values.double().abs(), (0, -len(values) % 4096)).view(-1, 4096)
    kept = [-(-min(4096, len(values) - 4096 * i) // 32) for i in range(len(chunks))]
    least = torch.tensor([float(chunk.topk(k).values[-1]) for chunk, k in zip(chunks, kept, strict=True)])
    left = torch.maximum(least, chunks.amax(1) / 13.9)[:, None].expand_as(chunks).reshape(-1)[: len(values)]
    # 2⁻¹⁴⁹ is float32's smallest number; a scale that small is itself rounded.
    return {
        "bf16": size * 2.0**-8 + 2.0**-133,
        "fp16": size * 2.0**-11 + largest * 2.0**-38 + 2.0**-149,
        "int8": largest / 253 + 127 * 2.0**-149,
        "int4": largest / 13.9 + 7 * 2.0**-149,
        "topk": left + 7 * 2.0**-149,
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
@pytest.mark.parametrize("count", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7, 33 * 4096 + 45])
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


def test_topk_sends_the_largest_and_nothing_else():
    values = torch.randn(4096 + 64, generator=torch.Generator().manual_seed(0))
    found = round_trip("topk", values)
    for part, kept in ((slice(4096), 128), (slice(4096, None), 2)):
        places = values[part].abs().topk(kept).indices.sort().values
        assert torch.equal(found[part].nonzero()[:, 0], places)


@pytest.mark.parametrize(("name", "count", "size"), [("int4", 513, 257 + 12), ("topk", 4096 + 33, 2 * 130 + 8)])
def test_length_of_a_message_to_the_byte(name, count, size):
    """Half a byte a value and 4 a block; 2 bytes for one value of 32 and 4 a chunk."""
    assert codec_of(name).nbytes(count) == size


def test_a_message_is_the_same_wherever_it_is_decoded_from():
    """A message is bytes: what a leader receives lies at another address than what was sent."""
    for name in CODECS:
        codec, values = codec_of(name), torch.randn(5000, generator=torch.Generator().manual_seed(1))
        message = torch.empty(codec.nbytes(5000), dtype=torch.uint8)
        codec.encode(values, message)
        there, here = torch.empty(5000), torch.empty(5000)
        codec.decode(torch.from_numpy(np.frombuffer(message.numpy().tobytes(), np.uint8).copy()), there)
        codec.decode(message, here)
        assert torch.equal(here, there)


# What a mean does with a codec, once with torch and once with compiled loops: weights, number of the own row, combiner.
MEANS = {
    "uniform": ([1.0, 1.0, 1.0], 1, None),
    "by examples": ([9001.0, 8999.0, 7.0], 0, None),
    "no float32's weights": ([0.1, 1 / 3, 0.7], 2, None),
    "whoever gives nothing": ([1.0, 3.0], -1, None),
    "one alone": ([2.0], 0, None),
    "trimmed": ([1.0] * 4, 3, TrimmedMean(1)),
}


SUMMED_BY_LOOPS = ("uniform", "by examples", "whoever gives nothing")


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-3, 1e38, math.nan])
@pytest.mark.parametrize("which", MEANS)
def test_compiled_loops_write_the_same_bits(name, size, which, monkeypatch):
    """Messages, what they lack, and what is made of them: data centers with numba and without may be mixed."""
    pytest.importorskip("numba")
    monkeypatch.setattr(compiled, "_made", {})
    monkeypatch.setattr(compiled, "_coded_sums", {})
    counts = [1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 513, 40001]
    by_torch = [everything(name, size, count, which, CodedSlices) for count in counts]
    compiled.prepare(name)
    by_loops = [everything(name, size, count, which, CompiledSlices) for count in counts]
    assert (compiled.coded_sums(name, len(MEANS[which][0])) is not None) == (which in SUMMED_BY_LOOPS)
    for one, other in zip(by_torch, by_loops, strict=True):
        *bits, distances = zip(one, other, strict=True)
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in bits)
        assert torch.allclose(*distances, rtol=1e-5, equal_nan=True)


def everything(name, size, count, which, kind):
    """What a mean of ``count`` values in the middle of a vector makes: messages, residuals, the mean, distances."""
    weights, mine, combiner = MEANS[which]
    place, length = slice(600, 600 + count), count + 600
    generator = torch.Generator().manual_seed(count)
    models = torch.randn((len(weights) + 1, length), generator=generator)
    residual = torch.randn(length, generator=generator)
    models[:-1, 600:].mul_(1 if math.isnan(size) else size).clamp_(-3e38, 3e38)
    models[0, 600 + count // 2] = size  # NaN in the middle of a block
    coded = Coded(codec_of(name), combiner, residual, torch.zeros(length))
    ground = Ground(torch.zeros(length), models[-1], weights, count)
    slices = coded.begin(ground)[0]
    assert type(slices) is kind
    room = torch.full((2, len(weights), codec_of(name).nbytes(count) // 64 * 64 + 64), 255, dtype=torch.uint8)
    rows = [slices.write(model[place], place, at) for model, at in zip(models[:-1], room[0], strict=True)]
    lacking = coded.pending.clone()
    rows = [models[k, place] if k == mine else row for k, row in enumerate(rows)]
    message = slices.mean(rows, mine, place, room[1, 0])
    mean = ground.result.clone()
    ground.result.zero_()
    slices.read(message, place)
    return room, lacking, coded.pending, mean, ground.result, torch.tensor(ground.apart)


def test_where_numba_does_not_work_one_line_says_so(monkeypatch, caplog):
    pytest.importorskip("numba")
    monkeypatch.setattr(compiled, "_made", {})
    monkeypatch.setattr(compiled, "_compile", lambda codec: 1 / 0)
    for _ in range(2):
        compiled.prepare("int8")
        compiled.prepare_coded_sums("int8", 2)
    assert compiled.kernels("int8") is None and caplog.text.count("codec int8 goes without numba") == 1


@pytest.mark.parametrize(("parameters", "prepared"), [(1000, []), (compiled.WORTH, ["int8"])])
def test_a_small_model_does_not_wait_for_numba(monkeypatch, parameters, prepared):
    found = []
    monkeypatch.setattr(compiled, "prepare", found.append)
    Coded(codec_of("int8")).prepare(parameters)
    assert found == prepared


def distance_left(name, feedback, size, rounds, rate, spread):
    """From the common minimum of three quadratics, relative; each round is a step of gradient descent and its mean.

    So only the codec keeps the mean from the minimum. The rate falls a hundredfold over the rounds.
    """
    generator = torch.Generator().manual_seed(2)
    targets = torch.randn((3, size), generator=generator)
    targets = targets[:1] + spread * (targets - targets[:1])
    curvatures = 0.5 + torch.rand((3, size), generator=generator)
    optimum = (curvatures * targets).sum(0) / curvatures.sum(0)
    shared, owed, owed_mean = torch.zeros(size), torch.zeros(3, size), torch.zeros(size)
    for i in range(rounds):
        steps = -rate * 0.01 ** (i / rounds) * curvatures * (shared - targets) + feedback * owed
        sent = torch.stack([round_trip(name, step) if name != "fp32" else step for step in steps])
        mean = sent.mean(0) + feedback * owed_mean
        applied = round_trip(name, mean) if name != "fp32" else mean
        owed, owed_mean, shared = steps - sent, mean - applied, shared + applied
    return float((shared - optimum).norm() / optimum.norm())


@pytest.mark.parametrize(
    ("name", "size", "rounds", "rate", "spread"),
    [("int8", 1500, 150, 0.3, 1), ("int4", 1500, 400, 0.1, 1), ("topk", 4200, 1000, 0.05, 0)],
)
def test_feedback_reaches_what_float32_reaches(name, size, rounds, rate, spread):
    exact, found, without = (
        distance_left(*arm, size, rounds, rate, spread) for arm in (("fp32", True), (name, True), (name, False))
    )
    assert exact < 1e-3 and found < 1.1 * exact and without > 5 * exact


def test_topk_lags_where_data_centers_disagree():
    """What they disagree on at the minimum is owed for about 32 rounds: its error goes only as the rate goes."""
    settled, unfed = (distance_left("topk", feedback, 4200, 1000, 0.05, 1) for feedback in (True, False))
    assert 0.005 < settled < 0.05 < unfed


def test_unknown_codec():
    with pytest.raises(ValueError, match="codec must be one of fp32, bf16, fp16, int8, int4, topk; found 'zip'"):
        codec_of("zip")


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        ({"codec": "zip"}, "exchange: codec must be one of fp32, bf16, fp16, int8, int4, topk; found 'zip'"),
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
