"""BiGRU and capsules: counts of the paper's table, padding, and routing against a slow loop."""

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.registry import build_network
from colearn_hpc.models.text import RoutedCapsules, squash

SMALL = {"vocabulary_size": 20, "embedding_dim": 12}


def trained(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "args", "parameters"),
    [
        ("bigru", {"hidden": 80}, 185_286),
        ("bigru", {"hidden": 128}, 333_318),
        ("text_capsule", {"length": 100, "kernel_size": 9}, 2_952_448),
    ],
)
def test_counts_beside_the_vectors_are_the_papers(tmp_path, name, args, parameters):
    np.save(tmp_path / "vectors.npy", np.zeros((5, 300), np.float32))
    assert trained(build_network(name, 6, embedding=str(tmp_path / "vectors.npy"), **args)) == parameters


@pytest.mark.parametrize(("name", "args"), [("bigru", {}), ("text_capsule", {"length": 30})])
def test_frozen_vectors_get_no_gradient_and_all_else_does(name, args):
    torch.manual_seed(0)
    network = build_network(name, 6, train_embedding=False, **SMALL, **args)
    network(torch.randint(1, 20, (4, 30))).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        if parameter_name == "embedding.weight":
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().sum() > 0, parameter_name


def test_bigru_does_not_see_padding():
    torch.manual_seed(0)
    network = build_network("bigru", 6, **SMALL).eval()
    tokens = torch.randint(1, 20, (3, 7))
    tokens[1, 4:] = 0
    alone = network(tokens[1:2, :4])
    assert torch.allclose(network(tokens)[1:2], alone, atol=1e-6)
    assert torch.allclose(network(pad(tokens, (0, 50)))[1:2], alone, atol=1e-6)


def test_bigru_pools_mean_and_maximum():
    """A comment of one word: both are the state itself."""
    network = build_network("bigru", 2, hidden=3, **SMALL).eval()
    pooled = []
    network.classifier.register_forward_hook(lambda module, args, output: pooled.append(args[0]))
    network(torch.tensor([[7]]))
    assert torch.equal(pooled[0][:, :6], pooled[0][:, 6:])
    pooled.clear()
    network(torch.tensor([[7, 8, 9, 10]]))
    assert (pooled[0][:, 6:] > pooled[0][:, :6]).all()


def test_bigru_takes_an_empty_comment():
    network = build_network("bigru", 6, **SMALL)
    assert network(torch.zeros(2, 5, dtype=torch.int32)).isfinite().all()


def test_spatial_dropout_drops_a_dimension_of_the_whole_comment():
    network = build_network("bigru", 6, dropout=0.5, **SMALL)
    seen = network.dropout(torch.ones(4, 12, 9))
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen.amin(dim=2), seen.amax(dim=2))


@pytest.mark.parametrize("time", [5, 30, 77])
def test_capsule_scores_are_probabilities_at_any_length(time):
    network = build_network("text_capsule", 6, length=30, **SMALL)
    scores = network(torch.randint(0, 20, (2, time)))
    assert scores.shape == (2, 6) and (scores >= 0).all() and (scores < 1).all()
    assert network.output_kind == "probabilities"


def test_capsule_pads_to_its_length():
    network = build_network("text_capsule", 6, length=30, **SMALL).eval()
    tokens = torch.randint(1, 20, (2, 12))
    assert torch.equal(network(tokens), network(pad(tokens, (0, 18))))


def test_squash():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(
        squash(x), torch.tensor([[3 / 5, 4 / 5], [0, 0], [0, 1.0]]) * torch.tensor([[25 / 26], [0], [0.5]])
    )


def test_squash_of_nothing_has_a_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    squash(x).sum().backward()
    assert x.grad.isfinite().all()


def test_routing_is_procedure_1_of_the_capsule_paper():
    """The same in plain loops over capsules, in NumPy."""
    torch.manual_seed(0)
    layer = RoutedCapsules(inputs=5, in_dim=3, outputs=4, out_dim=2, routings=3).double()
    layer.weight.data *= 20  # so that the couplings move
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    weight = layer.weight.detach().numpy()
    for example, got in zip(x.numpy(), layer(x).detach().numpy(), strict=True):
        votes = [[example[i] @ weight[i, j] for j in range(4)] for i in range(5)]
        b = np.zeros((5, 4))
        for _ in range(3):
            c = np.exp(b) / np.exp(b).sum(1, keepdims=True)
            v = []
            for j in range(4):
                s = sum(c[i, j] * votes[i][j] for i in range(5))
                square = s @ s
                v.append(s / np.sqrt(square) * square / (1 + square))
            b += [[votes[i][j] @ v[j] for j in range(4)] for i in range(5)]
        assert np.abs(b).max() > 0.1  # otherwise the loop above routed nothing
        assert np.allclose(got, v, atol=1e-6)


@pytest.mark.parametrize(("args", "message"), [({"length": 8}, "length=8"), ({"routings": 0}, "routings=0")])
def test_impossible_capsules(args, message):
    with pytest.raises(ConfigurationError, match=message):
        build_network("text_capsule", 6, **SMALL, **args)
