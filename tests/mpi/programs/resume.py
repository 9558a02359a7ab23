"""Trains two data centers with dropout, shuffling and BatchNorm for ROUNDS rounds, continuing where the run folder
stands, and prints each rank's digest of everything that must be equal after an interruption.

usage: [CODEC=...] resume.py RUN ROUNDS OPTIMIZER_STATE [SECONDS_PER_BATCH]
"""

import toy  # first: makes torchvision importable
import os
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from colearn_hpc import CoLearning, DataCenter

run, rounds, state = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0


class Noisy(toy.Toy):
    """Draws from every generator that a resume must restore."""

    def training_step(self, batch, batch_idx):
        time.sleep(pause)
        x = batch[0] + 0.01 * float(np.random.rand()) + 0.01 * torch.rand(1)
        return super().training_step((x, batch[1]), batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


toy.quiet()
center = DataCenter.join(2)
pl.seed_everything(5 + center.world_rank, verbose=False)
net = nn.Sequential(
    nn.Linear(toy.FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, toy.CLASSES)
)
module = Noisy(net)
colearning = CoLearning(
    rounds=rounds,
    local_epochs=2,
    epsilon=0.3,
    run_dir=run,
    optimizer_state=state,
    weighting="examples",
    exchange={"codec": os.environ.get("CODEC", "fp32")},
    centers=center,
)
trainer = toy.trainer(center, colearning)
loaders = toy.loader(center.index, center.size, center.rank, shuffle=True), toy.loader(center.index)
trainer.fit(module, *loaders, ckpt_path=colearning.resume_path())


def say(what, *values):
    digest = sha256(b"".join(np.asarray(value).tobytes() for value in values)).hexdigest()
    print(f"rank {center.world_rank} {what} {digest}", flush=True)


say("weights", *module.state_dict().values())
say("generators", torch.get_rng_state(), np.random.get_state()[1])
say("momenta", *(value for entry in trainer.optimizers[0].state.values() for value in entry.values()))
say("place", colearning.round, colearning.epochs_done, colearning.rule_epochs)
