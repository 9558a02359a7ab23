"""A small model on small data, shared by the programs here: deterministic, in float32, no Lightning in the oracle."""

from __future__ import annotations

import logging
import os
import warnings
from importlib import import_module
from typing import Any

from colearn_hpc._quick_imports import import_quickly

import_quickly()  # before Lightning

# By either of its names: what a user's program imports.
LIGHTNING = os.environ.get("COLEARN_TEST_LIGHTNING", "pytorch_lightning")
pl: Any = import_module(LIGHTNING)
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

FEATURES, CLASSES, EXAMPLES, BATCH = 6, 3, 32, 8


def quiet() -> None:
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


class LowRank(nn.Module):
    """A layer that stays as it is, and an adapter of rank 2 that is trained (LoRA)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.5 * torch.randn(2, base.in_features))
        self.up = nn.Parameter(0.1 * torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def adapted_network(seed: int) -> nn.Sequential:
    """The network with frozen layers, the same whatever the seed, and an adapter beside each."""
    net = network(seed=7)
    torch.manual_seed(seed)
    return nn.Sequential(LowRank(net[0]), nn.Tanh(), LowRank(net[2]))


def data(center: int, examples: int = EXAMPLES) -> TensorDataset:
    """Data center ``center``'s private examples: each has a cluster layout of its own."""
    generator = torch.Generator().manual_seed(100 + center)
    y = torch.randint(0, CLASSES, (examples,), generator=generator)
    x = torch.randn(examples, FEATURES, generator=generator) + y.unsqueeze(1) * 0.7 + 0.1 * center
    return TensorDataset(x, y)


def loader(center: int, ranks: int = 1, rank: int = 0, shuffle: bool = False) -> DataLoader:
    """Batches of BATCH examples per data center, whatever its ranks: rank r of R takes r, r + R, r + 2R, …"""
    examples = data(center)
    if ranks == 1:
        return DataLoader(examples, batch_size=BATCH, shuffle=shuffle)
    sampler = DistributedSampler(examples, ranks, rank, shuffle=shuffle)
    return DataLoader(examples, batch_size=BATCH // ranks, sampler=sampler)


class Toy(pl.LightningModule):
    """Cross-entropy by momentum SGD."""

    def __init__(self, net: nn.Module, rate: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__()
        self.net, self.rate, self.momentum = net, rate, momentum

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=self.momentum)


def trainer(center, *callbacks, **settings) -> pl.Trainer:
    """A Trainer for this rank's data center, silent and without files of its own."""
    from colearn_hpc import DataCenterEnvironment

    defaults = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": center.local_size,
        "num_nodes": center.nodes,
        "strategy": "ddp" if center.size > 1 else "auto",
        "plugins": [DataCenterEnvironment(center)],
        "callbacks": list(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    return pl.Trainer(**defaults | settings)
