"""Speech CNN, AudioSet nets and poolings: counts of the paper's table, and poolings against hand-made values."""

import pytest
import torch
from torch import nn

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.pooling import build_pooling
from colearn_hpc.models.registry import build_network


@pytest.mark.parametrize(
    ("name", "classes", "args", "parameters"),
    [
        ("speech_cnn", 30, {}, 2_226_206),
        ("audioset_fc", 527, {"pooling": "ap"}, 2_774_799),
        ("audioset_fc", 527, {"pooling": "mp"}, 2_774_799),
        ("audioset_fc", 527, {"pooling": "sa"}, 3_314_974),
        ("audioset_fc", 527, {"pooling": "ma"}, 4_951_309),
        ("audioset_crnn", 527, {"pooling": "ap"}, 951_311),
        ("audioset_crnn", 527, {"pooling": "mp"}, 951_311),
        ("audioset_crnn", 527, {"pooling": "sa"}, 1_086_750),
        ("audioset_crnn", 527, {"pooling": "ma"}, 1_913_613),
    ],
)
def test_parameter_counts(name, classes, args, parameters):
    assert sum(p.numel() for p in build_network(name, classes, **args).parameters()) == parameters


@pytest.mark.parametrize("shape", [(2, 98, 40), (2, 1, 98, 40)])
def test_speech_cnn_shapes(shape):
    assert build_network("speech_cnn", 10)(torch.randn(shape)).shape == (2, 10)


def test_crnn_takes_the_papers_clip():
    assert build_network("audioset_crnn", 5, pooling="ma").eval()(torch.randn(1, 240, 64)).shape == (1, 5)


def test_speech_cnn_of_another_clip():
    assert build_network("speech_cnn", 10, frames=61, bands=30, hidden=8)(torch.randn(2, 61, 30)).shape == (2, 10)


def test_speech_convolutions_keep_the_size():
    """ "SAME" padding, the odd pixel behind, as the reference does it."""
    features = build_network("speech_cnn", 30).features
    x = torch.randn(1, 1, 98, 40)
    padded = features[2](features[1](x))
    assert padded.shape == (1, 64, 98, 40)
    same = nn.functional.conv2d(x, features[2].weight, features[2].bias, padding="same")
    assert torch.allclose(padded, same, atol=1e-5)


def test_speech_cnn_hears_no_difference_in_loudness():
    """A factor on the waveform is a summand of its logarithm."""
    network = build_network("speech_cnn", 10).eval()
    x = torch.randn(2, 98, 40)
    assert torch.allclose(network(x), network(x * 3 - 12), atol=1e-3)


@pytest.mark.parametrize("pooling", ["ap", "mp", "sa", "MA"])
@pytest.mark.parametrize(("name", "clip"), [("audioset_fc", (10, 128)), ("audioset_crnn", (24, 64))])
def test_audioset_nets_give_probabilities_and_every_parameter_learns(name, clip, pooling):
    torch.manual_seed(0)
    args = {"hidden": 16} if name == "audioset_fc" else {}
    network = build_network(name, 5, pooling=pooling, **args)
    scores = network(torch.randn(3, *clip) - 5)
    assert network.output_kind == "probabilities"
    assert scores.shape == (3, 5) and (scores > 0).all() and (scores < 1).all()
    scores.log().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_probabilities_stay_float32_under_autocast():
    network = build_network("audioset_fc", 5, hidden=16).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(2, 10, 128)).dtype == torch.float32


# One clip, three steps, one feature; the classifier passes the feature on, so that step probabilities are known.
STEPS = torch.tensor([[[-1.0], [0.0], [2.0]]])
P = torch.sigmoid(STEPS).flatten()


def pooling_of(name):
    pooling = build_pooling(name, 1, 1)
    for layer in pooling.modules():
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    return pooling


def test_average_and_maximum():
    assert pooling_of("ap")(STEPS).item() == pytest.approx(P.mean().item())
    assert pooling_of("mp")(STEPS).item() == pytest.approx(P.max().item())


def test_single_attention_is_the_weighted_mean():
    assert pooling_of("sa")(STEPS).item() == pytest.approx(((P * P).sum() / P.sum()).item())


def test_attention_that_died_is_the_plain_mean():
    pooling = pooling_of("sa")
    nn.init.constant_(pooling.attention.bias, -1e4)
    assert pooling(STEPS).item() == pytest.approx(P.mean().item())


def test_multi_attention_takes_the_last_two_levels():
    levels = [torch.full((1, 3, 1), 100.0), STEPS, -STEPS]
    q = 1 - P
    wanted = torch.sigmoid((P * P).sum() / P.sum() + (q * q).sum() / q.sum())
    assert pooling_of("ma")(*levels).item() == pytest.approx(wanted.item())


def test_unknown_pooling():
    with pytest.raises(ConfigurationError, match=r"pooling='xy'.*ap, ma, mp, sa"):
        build_network("audioset_fc", 5, pooling="xy")
