"""What stays in its data center, and what may not be corrected."""

import pytest
import torch
from torch import nn

from colearn_hpc.algorithm import FedProx, Scaffold
from colearn_hpc.errors import ConfigurationError, ParticipantError
from colearn_hpc.trainer.correcting import Corrector
from colearn_hpc.trainer.last_shared import staying_names


def net():
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 2)})


def test_batch_norm_and_layers_by_name():
    counter = "body.1.num_batches_tracked"
    norm = {"body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var", counter}
    assert staying_names(net(), None) == frozenset()
    assert staying_names(net(), "batch_norm") == norm
    assert staying_names(net(), ("head",)) == {"head.weight", "head.bias"}
    assert staying_names(net(), ("head.bias", "body.1")) == {"head.bias"} | norm


@pytest.mark.parametrize("layers", [("hea",), ("head", "tail")])
def test_a_layer_that_is_not_there_is_refused(layers):
    with pytest.raises(ConfigurationError, match=r"has nothing to keep in (hea|tail); its layers are body, body.0"):
        staying_names(net(), layers)


def test_batch_norm_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="nothing to keep in BatchNorm"):
        staying_names(nn.Linear(2, 2), "batch_norm")


def test_a_sparse_gradient_is_refused():
    module = nn.Embedding(4, 2, sparse=True)
    module(torch.tensor([1])).sum().backward()
    corrector = Corrector(FedProx())
    with pytest.raises(ConfigurationError, match="that of weight is sparse"):
        corrector.correct(module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_a_variate_without_a_step_is_refused():
    module = nn.Linear(2, 2)
    corrector = Corrector(Scaffold())
    corrector.begin_epoch(module)
    with pytest.raises(ParticipantError, match="parameter weight: SCAFFOLD divides"):
        corrector.offer(list(module.named_parameters()), absent=False)
    assert len(corrector.offer(list(module.named_parameters()), absent=True)) == 2, "who is absent gives its old one"


@pytest.mark.parametrize("resumed", [False, True])
def test_scaffold_over_two_rounds_is_its_literal_loop(resumed):
    """Two data centers in one process, averaged here; the second one's corrector is made anew in mid-round."""
    x, y = torch.randn(2, 12, 3, dtype=torch.float64), torch.randn(2, 12, 1, dtype=torch.float64)
    nets = [nn.Linear(3, 1, bias=False, dtype=torch.float64) for _ in range(2)]
    shared = nets[0].weight.detach().clone()
    correctors = [Corrector(Scaffold()) for _ in nets]
    w, own, common = shared.clone(), [torch.zeros_like(shared) for _ in nets], torch.zeros_like(shared)
    for _ in range(2):
        offers = []
        for k, net in enumerate(nets):
            net.load_state_dict({"weight": shared})
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            correctors[k].begin_epoch(net)
            for step in range(4):
                if resumed and k and step == 2:
                    state, correctors[k] = correctors[k].state_dict(), Corrector(Scaffold())
                    averaging = {"layout": [("weight", 3)], "previous": shared.reshape(-1).clone(), "joined": {}}
                    correctors[k].load_state_dict(state, averaging)
                optimizer.zero_grad()
                (net(x[k]) - y[k]).square().mean().backward()
                correctors[k].correct(net, optimizer)
                optimizer.step()
            offers.append(correctors[k].offer(list(net.named_parameters()), absent=False))
        mean = (offers[0][0][1] + offers[1][0][1]) / 2
        for k, offered in enumerate(offers):
            offered[0][1].copy_(mean)
            correctors[k].commit()
        shared = (nets[0].weight.detach() + nets[1].weight.detach()) / 2

        local = []
        for k in range(2):
            mine = w.clone()
            for _ in range(4):
                gradient = 2 * (x[k] @ mine.T - y[k]).T @ x[k] / 12
                mine = mine - 0.1 * (gradient - own[k] + common)
            local.append(mine)
        own = [own[k] - common + (w - local[k]) / 0.4 for k in range(2)]
        common, w = (own[0] + own[1]) / 2, (local[0] + local[1]) / 2
    torch.testing.assert_close(shared, w)
    torch.testing.assert_close(correctors[0].state_dict()["common"]["weight"], common)
