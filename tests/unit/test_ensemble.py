"""What ensemble-learning does in one process: order, and what averaged probabilities are worth."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models import Classifier, MultilabelTask
from colearn_hpc.trainer.ensemble import evaluated_indices, in_order, metrics_of


def shares(ranks: int, examples: int, batch: int):
    """What each rank evaluates of examples 0 … n-1; its probability and target are the example's number."""
    data = TensorDataset(torch.arange(examples))
    found = []
    for rank in range(ranks):
        sampler = DistributedSampler(data, ranks, rank, shuffle=False)
        loader = DataLoader(data, batch_size=batch, sampler=sampler)
        seen = torch.cat([x for (x,) in loader])
        found.append((evaluated_indices(loader, len(seen)), seen[:, None].float(), seen))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_gives_every_example_once_in_order(ranks):
    probabilities, targets = in_order(shares(ranks, examples=10, batch=3))  # 3 ranks repeat two examples
    assert targets.tolist() == list(range(10)) and probabilities.squeeze(1).tolist() == list(range(10))


def test_a_limited_validation_is_taken_as_far_as_it_went():
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=4)
    assert evaluated_indices(loader, 8).tolist() == list(range(8))
    assert evaluated_indices(None, 3).tolist() == [0, 1, 2]


def test_one_label_uses_the_modules_own_metrics():
    module = Classifier("digits_cnn", num_classes=10)
    probabilities = torch.softmax(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)), -1)
    targets = torch.arange(50) % 10
    found = metrics_of(module, probabilities, targets)
    assert found["val_acc"] == pytest.approx(float((probabilities.argmax(1) == targets).float().mean()))
    top5 = probabilities.topk(5).indices.eq(targets[:, None]).any(1)
    assert found["val_acc_top5"] == pytest.approx(float(top5.float().mean()))
    picked = probabilities[torch.arange(50), targets].double()
    assert found["val_loss"] == pytest.approx(float(-picked.log().mean()))
    assert module.val_metrics["acc"].update_count == 0  # the module's own counters are left alone


def test_several_labels_use_the_modules_own_metrics():
    module = MultilabelTask("audioset_fc", num_classes=3)
    probabilities = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.8, 0.3], [0.7, 0.6, 0.2], [0.2, 0.1, 0.9]])
    targets = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    found = metrics_of(module, probabilities, targets)
    assert found["val_auc"] == pytest.approx(1.0) and "val_loss" not in found


def test_a_module_without_metrics_gets_accuracy_or_a_hint():
    probabilities, targets = torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1])
    assert metrics_of(nn.Linear(1, 1), probabilities, targets)["val_acc"] == 0.5
    with pytest.raises(ConfigurationError, match="has no `val_metrics`"):
        metrics_of(nn.Linear(1, 1), probabilities, torch.ones(2, 2))


def test_positions_are_what_orders():
    shuffled = (np.array([2, 0]), torch.tensor([[0.2], [0.0]]), torch.tensor([2, 0]))
    other = (np.array([1]), torch.tensor([[0.1]]), torch.tensor([1]))
    assert in_order([shuffled, other])[1].tolist() == [0, 1, 2]
