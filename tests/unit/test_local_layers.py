"""What stays in its data center, and what may not be corrected."""

import pytest
import torch
from torch import nn

from colearn_hpc.algorithm import FedProx, Scaffold
from colearn_hpc.errors import ConfigurationError, ParticipantError
from colearn_hpc.trainer.averaging import staying_names
from colearn_hpc.trainer.correcting import Corrector


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
