"""Trains data centers with BatchNorm and shuffling: all in one MPI world, or this world as one site of a federation.

usage: federated.py CASES

CASES is a JSON list, whose runs come one after the other. A case has ``run`` (the run folder), ``rounds``, and further
arguments of CoLearning, objects by their names in ``MADE``. With ``federation`` and ``site`` this world is that site,
otherwise there are ``centers`` data centers in it. A site's data are those of its number in the order of the mean, so
both ways train the same. ``plain``: without BatchNorm and shuffling, from w⁰ of that seed, as ``oracle.py`` trains.
"""

import toy  # first: makes torchvision importable
import json
import os
import sys
import time

import pytorch_lightning as pl
import torch
from torch import nn

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.algorithm import FedProx, LatestMean, OuterSGD, Scaffold
from colearn_hpc.trainer.inject import FaultInjector

MADE = {"momentum": OuterSGD(), "fedprox": FedProx(0.5), "scaffold": Scaffold(), "latest": LatestMean(4)}


class Slow(pl.Callback):
    """Sleeps at every batch, for something to happen meanwhile."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(self.seconds)


def train(run, rounds, centers=None, federation=None, site=None, pause=0.0, faults="", plain=None, **settings):
    center = DataCenter.join(1 if federation else centers)
    index = center.index
    if federation:
        from colearn_hpc.federation.agreement import Federation

        index = Federation.read(federation).names.index(site)
        settings |= {"federation": federation, "site": site}
    pl.seed_everything(5 + 100 * index + center.rank, verbose=False)
    net = nn.Sequential(nn.Linear(toy.FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, toy.CLASSES))
    module = toy.Toy(net if plain is None else toy.network(plain))
    settings |= {name: MADE[value] for name, value in settings.items() if isinstance(value, str) and value in MADE}
    unit = {} if "local_steps" in settings else {"local_epochs": 1}
    settings = unit | {"epsilon": 0.3, "weighting": "examples"} | settings
    colearning = CoLearning(rounds=rounds, run_dir=run, centers=center, **settings)
    callbacks = [Slow(pause)] if pause else []
    if faults:
        callbacks.append(FaultInjector(faults.split(), colearning.standing))
    trainer = toy.trainer(center, colearning, *callbacks)
    loader = toy.loader(index, center.size, center.rank, shuffle=plain is None)
    data = {"train_dataloaders": loader, "val_dataloaders": toy.loader(index)}
    colearning.fit(trainer, module, ckpt_path=colearning.resume_path(), **data)


if __name__ == "__main__":
    toy.quiet()
    for case in json.loads(sys.argv[1]):
        os.environ.pop("COLEARN_CENTER", None)
        train(**case)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # the next case makes worlds of its own
