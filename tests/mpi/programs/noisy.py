"""A module for the command line that draws from every generator a resume must restore, with loaders of its own."""

import os
import time

import numpy as np
import toy
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler


class Noisy(toy.Toy):
    """Dropout, BatchNorm, Adam, shuffling from the global generator.

    Args:
        batches: per local epoch and data center; later data centers have one more each, so that they are slower.
        pause: seconds per batch, so that a test can meet it in mid-epoch.
        workers: of the data loader; they fetch ahead.
    """

    def __init__(self, batches: int = 6, pause: float = 0.0, workers: int = 0) -> None:
        net = nn.Sequential(
            nn.Linear(toy.FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, toy.CLASSES)
        )
        super().__init__(net)
        self.batches, self.pause, self.workers = batches, pause, workers

    def train_dataloader(self):
        center = int(os.environ["COLEARN_CENTER"].removeprefix("dc"))
        examples = toy.data(center, toy.BATCH * (self.batches + center))
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        if ranks == 1:
            return DataLoader(examples, batch_size=toy.BATCH, shuffle=True, num_workers=self.workers)
        sampler = DistributedSampler(examples, ranks, rank)
        return DataLoader(examples, batch_size=toy.BATCH // ranks, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(toy.data(99), batch_size=toy.BATCH)

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        x = batch[0] + 0.01 * float(np.random.rand()) + 0.01 * torch.rand(1)
        return super().training_step((x, batch[1]), batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)
