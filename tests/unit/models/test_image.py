"""Parameter counts against the paper's table, shapes, and that the nets learn."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.image import DenseNet
from colearn_hpc.models.registry import build_network


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_densenet40_is_the_papers():
    assert count(build_network("densenet40", 10)) == 1_019_722


@pytest.mark.parametrize(("batch_norm", "parameters"), [(False, 20_029_514), (True, 20_029_514 + 11_008)])
def test_cifar_vgg19_is_the_papers(batch_norm, parameters):
    assert count(build_network("vgg19_cifar", 10, batch_norm=batch_norm)) == parameters


def test_digits_cnn_is_small_and_its_docstring_true():
    assert count(build_network("digits_cnn", 10)) == 33_658


@pytest.mark.parametrize(
    ("name", "args", "image", "classes"),
    [
        ("digits_cnn", {}, (1, 8, 8), 10),
        ("digits_cnn", {"in_channels": 3}, (3, 8, 8), 2),
        ("densenet40", {}, (3, 8, 8), 100),
        ("densenet40", {"in_channels": 1, "dropout": 0.2}, (1, 12, 14), 10),
        ("vgg19_cifar", {}, (3, 32, 32), 10),
        ("vgg19_cifar", {"in_channels": 1, "batch_norm": True, "dropout": 0.5}, (1, 70, 64), 7),
    ],
)
def test_shapes(name, args, image, classes):
    assert build_network(name, classes, **args)(torch.randn(2, *image)).shape == (2, classes)


def test_every_dense_layer_keeps_its_input():
    layer = DenseNet(depth=7).features[1]
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(layer(x)[:, :16], x)


@pytest.mark.parametrize("depth", [4, 41, 1, -2])
def test_impossible_depth(depth):
    with pytest.raises(ConfigurationError, match=f"depth={depth}"):
        DenseNet(depth=depth)


def test_every_parameter_gets_a_gradient():
    for name, image in (("digits_cnn", (1, 8, 8)), ("densenet40", (3, 8, 8))):
        network = build_network(name, 10)
        network(torch.randn(4, *image)).logsumexp(1).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_digits_are_learned_by_plain_sgd():
    """Real handwritten digits, 6 epochs, no momentum: what the quickstart rests on."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(y), generator=generator)
    x = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
    y = torch.tensor(y)[order]
    torch.manual_seed(0)
    network = build_network("digits_cnn", 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(6):
        for batch in torch.randperm(1400, generator=generator).split(32):
            optimizer.zero_grad()
            cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        accuracy = (network(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    assert accuracy >= 0.97
