"""FedProx, SCAFFOLD and FedBN against loops written from their papers."""

import pytest
import torch
from torch import nn

from colearn_hpc.algorithm.local_correction import FedProx, Scaffold, Variates
from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    batch_norm_names,
    float_buffers,
    trainable_parameters,
    weighted_mean,
)

RATES = [0.05, 0.05, 0.02, 0.01]  # of a round's steps


def quadratics(centers=3, size=4):
    """Losses ½·(w - target)ᵀ·diag(curvature)·(w - target), one for each data center, all of them different."""
    generator = torch.Generator().manual_seed(5)
    curvatures = 0.5 + 3 * torch.rand((centers, size), generator=generator, dtype=torch.float64)
    return curvatures, torch.randn((centers, size), generator=generator, dtype=torch.float64)


def test_fedprox_adds_the_proximal_terms_gradient():
    parameter = torch.randn(6, dtype=torch.float64, requires_grad=True)
    shared, target = torch.randn(2, 6, dtype=torch.float64)
    loss = (parameter - target).pow(2).sum()
    (loss + 0.3 / 2 * (parameter - shared).pow(2).sum()).backward()
    gradient = 2 * (parameter.detach() - target)
    FedProx(0.3).correct(gradient, parameter, shared, None)
    torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12)


def train(correction, rounds):
    """Rounds of ours, with the correction; shared models and variates after each."""
    curvatures, targets = quadratics()
    shared = torch.zeros(4, dtype=torch.float64)
    variates = [Variates(shared.clone(), shared.clone()) for _ in curvatures]
    seen = []
    for _ in range(rounds):
        models, own = [], []
        for curvature, target, held in zip(curvatures, targets, variates, strict=True):
            model = shared.clone()
            for rate in RATES:
                gradient = curvature * (model - target)
                correction.correct(gradient, model, shared, held)
                model -= rate * gradient
            models.append(model)
            own.append(correction.renewed(model, shared, held, sum(RATES)))
        common = weighted_mean(own, [1.0] * len(own))
        variates = [Variates(vector, common) for vector in own]
        shared = weighted_mean(models, [1.0] * len(models))
        seen.append((shared, own, common))
    return seen


def test_scaffold_against_algorithm_1():
    """One parameter at a time, in plain floats; the server adds up the changes of the c_i, as in the paper."""
    curvatures, targets = (table.tolist() for table in quadratics())
    seen = train(Scaffold(), rounds=5)
    for place in range(4):
        x, c, c_i = 0.0, 0.0, [0.0] * 3
        for shared, own, common in seen:
            moves, changes = [], []
            for i in range(3):
                y = x
                for rate in RATES:
                    y -= rate * (curvatures[i][place] * (y - targets[i][place]) - c_i[i] + c)
                renewed = c_i[i] - c + (x - y) / sum(RATES)
                moves.append(y - x)
                changes.append(renewed - c_i[i])
                c_i[i] = renewed
            x += sum(moves) / 3
            c += sum(changes) / 3
            assert float(shared[place]) == pytest.approx(x, rel=1e-12)
            assert [float(vector[place]) for vector in own] == pytest.approx(c_i, rel=1e-10)
            assert float(common[place]) == pytest.approx(c, rel=1e-10, abs=1e-12)


class Nothing(Scaffold):
    """Plain local SGD."""

    def correct(self, gradient, parameter, shared, variates):
        pass


def test_scaffold_reaches_the_common_optimum_where_local_sgd_stays_away():
    curvatures, targets = quadratics()
    optimum = (curvatures * targets).sum(0) / curvatures.sum(0)
    errors = [float((train(rule, 300)[-1][0] - optimum).norm()) for rule in (Nothing(), Scaffold())]
    assert errors[0] > 1e-3 and errors[1] < 1e-9


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: FedProx(0), "mu of the proximal term must be above 0, found 0; without it drop FedProx"),
        (lambda: Scaffold().renewed(*[torch.ones(2)] * 2, Variates(*[torch.ones(2)] * 2), 0.0), "found 0.0"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_variates_stay_as_they_are():
    held = Variates(torch.ones(3), torch.full((3,), 2.0))
    gradient = torch.zeros(3)
    Scaffold().correct(gradient, torch.ones(3), torch.ones(3), held)
    Scaffold().renewed(torch.ones(3), torch.ones(3), held, 1.0)
    assert gradient.tolist() == [1.0] * 3 and held.own.tolist() == [1.0] * 3 and held.common.tolist() == [2.0] * 3


def test_fedbn_keeps_batch_norm_and_shares_the_rest():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Sequential(nn.BatchNorm1d(2)))
    own = batch_norm_names(module)
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert own == {f"{layer}.{part}" for layer in ("1", "3.0") for part in parts}
    shared = FlatModel(
        [(name, tensor) for name, tensor in trainable_parameters(module) if name not in own],
        [(name, tensor) for name, tensor in float_buffers(module) if name not in own],
    )
    assert [entry.name for entry in shared.entries] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with torch.no_grad():
        module[1].running_mean.fill_(7)
    shared.unpack(torch.full((shared.size,), 3.0))
    assert (module[0].weight == 3).all() and (module[1].running_mean == 7).all()


def test_fedbn_of_a_shared_layer_is_found_under_its_first_name():
    layer = nn.BatchNorm1d(2, affine=False)
    module = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    assert batch_norm_names(module) == {"a.running_mean", "a.running_var", "a.num_batches_tracked"}
    assert batch_norm_names(nn.Linear(2, 2)) == frozenset()
