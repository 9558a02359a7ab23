"""Trains two data centers with dropout, shuffling and BatchNorm for ROUNDS rounds, continuing where the run folder
stands, and prints each rank's digest of everything that must be equal after an interruption.

usage: resume.py RUN ROUNDS OPTIMIZER_STATE [SECONDS_PER_BATCH]

Faults to rehearse stand in TEST_FAULTS, one a line, further arguments of CoLearning as JSON in TEST_SETTINGS. In
TEST_LEAVES stand a data center, an epoch, and a batch of it or "validation", after which its Trainer is told to stop.
"""

import toy  # first: makes torchvision importable
import json
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
from colearn_hpc.trainer.inject import FaultInjector

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


class Leaves(pl.Callback):
    """Ends one data center's Trainer, as max_time or early stopping would."""

    def __init__(self, center, epoch, moment):
        self.center, self.epoch, self.moment = center, int(epoch), moment

    def stop(self, trainer, moment):
        if (os.environ["COLEARN_CENTER"], trainer.current_epoch, moment) == (self.center, self.epoch, self.moment):
            trainer.should_stop = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.stop(trainer, str(batch_idx))

    def on_validation_end(self, trainer, pl_module):
        self.stop(trainer, "validation")


toy.quiet()
center = DataCenter.join(2)
pl.seed_everything(5 + center.world_rank, verbose=False)
net = nn.Sequential(
    nn.Linear(toy.FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, toy.CLASSES)
)
module = Noisy(net)
settings = {"local_epochs": 2, "epsilon": 0.3, "weighting": "examples"}
settings |= {"exchange": {"lanes": 2}}  # as with each rank on a node of its own
settings |= json.loads(os.environ.get("TEST_SETTINGS", "{}"))
colearning = CoLearning(rounds=rounds, run_dir=run, optimizer_state=state, centers=center, **settings)
injector = FaultInjector(os.environ.get("TEST_FAULTS", "").split(), colearning)
leaves = [Leaves(*os.environ["TEST_LEAVES"].split())] if "TEST_LEAVES" in os.environ else []
trainer = toy.trainer(center, colearning, injector, *leaves)
data = {
    "train_dataloaders": toy.loader(center.index, center.size, center.rank, shuffle=True),
    "val_dataloaders": toy.loader(center.index),
}
colearning.fit(trainer, module, ckpt_path=colearning.resume_path(), **data)


def say(what, *values):
    digest = sha256(b"".join(np.asarray(value).tobytes() for value in values)).hexdigest()
    print(f"rank {center.world_rank} {what} {digest}", flush=True)


say("weights", *module.state_dict().values())
say("shared", *(value for value in module.state_dict().values() if value.is_floating_point()))
say("generators", torch.get_rng_state(), np.random.get_state()[1])
say("momenta", *(value for entry in trainer.optimizers[0].state.values() for value in entry.values()))
say("place", colearning.round, colearning.epochs_done, colearning.rule_epochs)
