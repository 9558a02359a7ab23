"""What one rank of two does, for test_task and test_ranking.

A module of its own, because a spawned process imports the module of the function that it runs.
"""

import torch
from torch.nn.functional import cross_entropy

from colearn_hpc._torchvision import make_torchvision_importable

make_torchvision_importable()  # as conftest.py does in the process that spawns these

from colearn_hpc.models import Classifier, MultilabelTask  # noqa: E402


def measure(rank, address, shares, results):
    """Puts (rank, loss, top-5 accuracy) over all ranks into ``results``; ``shares[rank]`` is (logits, labels)."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=len(shares))
    model = Classifier("torch.nn.Identity", num_classes=7)
    x, y = shares[rank]
    model.val_loss.update(cross_entropy(x, y), weight=len(y))
    model.val_metrics.update(x, y)
    results.put((rank, model.val_loss.compute().item(), model.val_metrics.compute()["val_acc_top5"].item()))
    torch.distributed.destroy_process_group()


def rank_scores(rank, address, shares, results):
    """Puts the ranking metrics over all ranks into ``results``; ``shares[rank]`` is (probabilities, labels)."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=len(shares))
    model = MultilabelTask("torch.nn.Identity", num_classes=5)
    p, y = shares[rank]
    if len(p):
        model.val_metrics.update(p, y)
    logged = {}
    model.log = lambda name, value, **settings: logged.update({name.removeprefix("val_"): value.item()})
    model.on_validation_epoch_end()
    results.put(logged)
    torch.distributed.destroy_process_group()
