"""timm's networks by name; counts are those of the paper's table of models."""

import sys
from importlib.util import find_spec

import pytest
import torch

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.registry import build_network
from colearn_hpc.models.timm_networks import Resize

needs_timm = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("torchvision") is None, reason="extra 'timm' is not installed"
)

COUNTS = {
    "inception_resnet_v2": (54_321_834, 55_843_464),
    "inception_v4": (41_158_186, 42_679_816),
    "resnet152": (58_164_298, 60_192_808),
    "resnetv2_101": (42_512_970, 44_541_480),
    "vgg19": (139_611_210, 143_667_240),
}


@needs_timm
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_papers(name):
    counted = []
    for classes in (10, 1000):
        with torch.device("meta"):  # shapes only: no memory, no time for initial weights
            network = build_network(f"timm/{name}", classes)
        counted.append(sum(p.numel() for p in network.parameters()))
    assert tuple(counted) == COUNTS[name]


@needs_timm
def test_small_images_are_resized_for_a_net_that_needs_large_ones():
    network = build_network("timm/inception_v4", 7, input_size=75).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


@needs_timm
def test_arguments_reach_timm():
    network = build_network("timm/resnet18", 4, in_chans=1, drop_rate=0.3)
    assert network.drop_rate == 0.3
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@needs_timm
def test_a_name_with_a_tag_is_not_taken_for_a_class_path():
    with torch.device("meta"):
        assert build_network("timm/resnet18.a1_in1k", 4).num_classes == 4


@needs_timm
def test_unknown_name_tells_the_nearest():
    with pytest.raises(ConfigurationError, match=r"has no 'resnet1522'; nearest: .*resnet152"):
        build_network("timm/resnet1522", 10)


@needs_timm
def test_a_refused_argument_is_told():
    with pytest.raises(ConfigurationError, match=r"\['droprate'\].*unexpected keyword argument"):
        build_network("timm/resnet18", 10, droprate=0.5)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"colearn_hpc\[timm\]"):
        build_network("timm/resnet18", 10)


def test_resize_enlarges_bilinearly():
    ramp = torch.arange(4.0).repeat(1, 1, 4, 1)
    out = Resize(8)(ramp)
    assert out.shape == (1, 1, 8, 8)
    assert torch.allclose(out[0, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))


def test_resize_does_not_skip_pixels_when_it_shrinks():
    """Plain bilinear sampling of 8 pixels at 2 places never looks at the first one."""
    x = torch.zeros(1, 1, 8, 8)
    x[..., 0, 0] = 64.0
    assert Resize(2)(x)[0, 0, 0, 0] > 1


def test_resize_passes_the_right_size_untouched():
    x = torch.randn(1, 3, 8, 8)
    assert Resize(8)(x) is x


def test_resize_to_nothing():
    with pytest.raises(ConfigurationError, match="input_size=0"):
        Resize(0)
