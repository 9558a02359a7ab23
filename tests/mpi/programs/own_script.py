"""A user's own script on two data centers of one rank each, in which something is done that not every script does.

usage: own_script.py KIND FOLDER
"""

import sys
import time
from pathlib import Path

import toy
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder

from colearn_hpc import CoLearning, DataCenter

kind, folder = sys.argv[1], Path(sys.argv[2])


class Data(pl.LightningDataModule):
    """Makes its file as a download does: not at once."""

    def __init__(self):
        super().__init__()
        self.batch_size = 2

    def prepare_data(self):
        with (folder / "calls").open("a") as calls:
            calls.write("prepared\n")
        if kind == "prepare fails" and (folder / "calls").read_text() == "prepared\n":
            raise OSError("the server is down")
        with (folder / "data.txt").open("w") as file:
            for number in range(5):
                file.write(f"{number}\n")
                file.flush()
                time.sleep(0.05)

    def setup(self, stage):
        self.lines = (folder / "data.txt").read_text().split()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(toy.loader(0).dataset, self.batch_size)

    def val_dataloader(self):
        return toy.loader(1)


class Tuned(toy.Toy):
    def __init__(self):
        super().__init__(toy.network(0))
        self.lr = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def fit(*callbacks, model=None):
    model = model or toy.Toy(toy.network(0))
    colearning = CoLearning(rounds=2, local_epochs=1, run_dir=folder / "run")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[colearning, *callbacks], enable_checkpointing=False, **options)
    if kind == "validate first":
        trainer.validate(model, datamodule=Data(), verbose=False)
    data = Data()
    trainer.fit(model, datamodule=data)
    return trainer, data


if kind == "fails before it joins":  # the others are on their way into a collective; nobody knows of anybody
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == 1:
        Data.setup = lambda self, stage: 1 // 0
        CoLearning._before_data = lambda self, trainer: None
    fit()
center = DataCenter.join()
if kind == "joined and ended" and center.index == 1:
    sys.exit(0)
if kind == "asked and ended":  # for the place to resume from, and no more
    CoLearning(rounds=1, run_dir=folder / "run").resume_path()
    if center.index == 1:
        sys.exit(0)
if kind == "tuners":
    found = LearningRateFinder(num_training_steps=30, min_lr=0.01 * (1 + center.index), max_lr=0.5 + center.index)
    trainer, data = fit(BatchSizeFinder(steps_per_trial=1, max_trials=2 + center.index), found, model=Tuned())
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    print(f"{center.name}: batches of {data.batch_size}, lr {trainer.lightning_module.lr}, {rates}", flush=True)
else:
    trainer, data = fit()
    print(f"{center.name}: {len(data.lines)} lines, {trainer.global_step > 0}", flush=True)
