"""Data centers of 2 and 1 ranks; the first one's Trainers do not know of each other, as without the plugin.

usage: one_trainer.py OUT
"""

import toy  # first: makes torchvision importable
import sys

import pytorch_lightning as pl

from colearn_hpc import CoLearning, DataCenter

center = DataCenter.join([2, 1])
trainer = pl.Trainer(
    accelerator="cpu",
    devices=1,
    max_epochs=4,
    default_root_dir=sys.argv[1],
    callbacks=[CoLearning(rounds=2, centers=center)],
    enable_progress_bar=False,
    logger=False,
)
trainer.fit(toy.Toy(toy.network(0)), toy.loader(center.index))
