"""Trains two data centers with dropout, shuffling and BatchNorm, case after case in the same processes, each continuing
where its run folder stands. Of each case every rank prints a digest of everything that must be equal after an
interruption.

usage: resume.py CASES

CASES is a JSON list of arguments of :func:`train`. A case with ``into`` leaves what a rank prints and says in that
folder, RANK.out and RANK.err; RANK.out comes when the rank has finished.
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

import like_nccl  # registers a backend

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.trainer.inject import FaultInjector


class Noisy(toy.Toy):
    """Draws from every generator that a resume must restore. Its network is made late, as where data say its size."""

    def __init__(self, net, pause):
        super().__init__(None)
        self.pause, self.late = pause, [net]  # in a list: no part of the module yet

    def configure_model(self):
        self.net = self.late[0]

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
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


class Breaks(pl.Callback):
    """The link inside a data center fails while gradients are reduced: nobody's code raises."""

    def __init__(self, center, epoch, batch):
        self.place, self.pending = (center, int(epoch), int(batch)), True

    def on_before_backward(self, trainer, pl_module, loss):  # buffers have been sent, gradients are next
        now = os.environ["COLEARN_CENTER"], trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        if self.pending and now == self.place:
            self.pending = False
            like_nccl.BREAKS.append(True)


def train(run, rounds, state="keep", pause=0.0, faults="", leaves="", breaks="", backend=None, **settings):
    """Returns the digests, a line each.

    Args:
        run: the run folder.
        rounds: of the whole run.
        state: ``optimizer_state``.
        pause: seconds for every batch.
        faults: to be rehearsed.
        leaves: a data center, an epoch, and a batch of it or "validation", after which its Trainer is told to stop.
        breaks: a data center, an epoch and a batch of it, in whose backward its link fails; of ``like_nccl``.
        backend: of torch.distributed inside a data center; None: gloo.
        settings: further arguments of CoLearning.
    """
    center = DataCenter.join(2)
    pl.seed_everything(5 + center.world_rank, verbose=False)
    net = nn.Sequential(
        nn.Linear(toy.FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, toy.CLASSES)
    )
    module = Noisy(net, pause)
    settings = {"local_epochs": 2, "epsilon": 0.3, "weighting": "examples"} | settings
    settings = {"validation": "lightning"} | settings  # faults are at validations of local models, too
    settings = {"exchange": {"lanes": 2}} | settings  # as with each rank on a node of its own
    colearning = CoLearning(rounds=rounds, run_dir=run, optimizer_state=state, centers=center, **settings)
    injector = FaultInjector(faults.split(), colearning.standing)
    strategy = {} if backend is None else {"strategy": pl.strategies.DDPStrategy(process_group_backend=backend)}
    more = [kind(*text.split()) for kind, text in ((Leaves, leaves), (Breaks, breaks)) if text]
    trainer = toy.trainer(center, colearning, injector, *more, **strategy)
    data = {
        "train_dataloaders": toy.loader(center.index, center.size, center.rank, shuffle=True),
        "val_dataloaders": toy.loader(center.index),
    }
    colearning.fit(trainer, module, ckpt_path=colearning.resume_path(), **data)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next case makes worlds of its own
    del os.environ["COLEARN_CENTER"]
    next_epochs = colearning.state_dict()["run"]["round"]["chosen"]  # by the rule
    found = {
        "weights": module.state_dict().values(),
        "shared": (value for value in module.state_dict().values() if value.is_floating_point()),
        "generators": (torch.get_rng_state(), np.random.get_state()[1]),
        "momenta": (value for entry in trainer.optimizers[0].state.values() for value in entry.values()),
        "place": (colearning.standing().round, colearning.standing().epochs_done, next_epochs),
    }
    digests = {name: sha256(b"".join(np.asarray(v).tobytes() for v in values)) for name, values in found.items()}
    return "".join(f"rank {center.world_rank} {name} {digest.hexdigest()}\n" for name, digest in digests.items())


def apart(into, **case):
    """Train with what is said in a file of its own."""
    into, rank = Path(into), os.environ["OMPI_COMM_WORLD_RANK"]
    into.mkdir(parents=True, exist_ok=True)
    if rank == "0":
        print(f"{into.name} is {case}", file=sys.stderr, flush=True)  # the last one is where it hangs, if it does
    terminal = os.dup(2)
    with (into / f"{rank}.err").open("w") as file:
        os.dup2(file.fileno(), 2)
        said = train(**case)
        sys.stderr.flush()
    os.dup2(terminal, 2)
    os.close(terminal)
    (into / f"{rank}.out").write_text(said)


toy.quiet()
for case in json.loads(sys.argv[1]):
    if "into" in case:
        apart(**case)
    else:
        print(train(**case), end="", flush=True)
