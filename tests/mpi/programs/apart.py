"""Trains the toy with a run folder for each data center that the others do not see, as where file systems are apart.

usage: apart.py OUT
"""

import toy  # first: makes torchvision importable
import sys
from pathlib import Path

from pytorch_lightning.callbacks import Callback

from colearn_hpc import CoLearning, DataCenter


class Promise(Callback):
    """What a data center says of itself alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def terms(self) -> dict[str, str]:
        return {"promise": f"of {self.name}"}


toy.quiet()
center = DataCenter.join(None)
colearning = CoLearning(rounds=3, local_epochs=1, run_dir=Path(sys.argv[1]) / center.name, centers=center)
trainer = toy.trainer(center, colearning, Promise(center.name))
trainer.fit(toy.Toy(toy.network(seed=center.world_rank)), toy.loader(center.index), toy.loader(center.index))
