"""Trainers that do not know which ranks are their data center's, as without the plugin.

usage: one_trainer.py OUT DEVICES SIZE...

DEVICES are the Trainer's, SIZEs the data centers' ranks.
"""

import toy  # first: makes torchvision importable
import sys

import pytorch_lightning as pl

from colearn_hpc import CoLearning, DataCenter

center = DataCenter.join([int(size) for size in sys.argv[3:]])
trainer = pl.Trainer(
    accelerator="cpu",
    devices=int(sys.argv[2]),
    max_epochs=4,
    default_root_dir=sys.argv[1],
    callbacks=[CoLearning(rounds=2, centers=center)],
    enable_progress_bar=False,
    logger=False,
)
trainer.fit(toy.Toy(toy.network(0)), toy.loader(center.index))
