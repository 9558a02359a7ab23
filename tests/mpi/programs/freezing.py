"""Two data centers freeze and unfreeze a layer while they train. Prints a line of JSON: {CASE: problems, or how it was
refused}.

A round's shared model must hold the mean of whatever was trained in the round, whether or not it is still trainable;
and the relative change (eq. 4) must be taken over just these parameters.

usage: freezing.py OUT
"""

import toy  # first: makes torchvision importable
import json
import math
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from mpi4py import MPI

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.errors import ColearnError

# Per case: what is done with the first layer at the beginning of which epoch, and CoLearning's settings.
CASES = {
    "frozen in mid-round": ({3: False}, {}),
    "frozen at a round's start": ({2: False}, {}),
    "unfrozen in mid-round": ({0: False, 3: True}, {}),
    "unfrozen at a round's start": ({0: False, 2: True}, {}),
    "to and fro": ({1: False, 2: True, 3: False, 5: True}, {}),
    "int8": ({2: False, 4: True}, {"exchange": {"codec": "int8"}}),
    "in one data center only": ({2: False}, {}),
    "in the middle of an epoch": ({2.5: False}, {}),
}


class Freezes(pl.Callback):
    """Freezes and unfreezes, and keeps the local models of rounds' ends."""

    def __init__(self, plan):
        self.plan, self.local, self.trained = plan, [], set()

    def set(self, module, moment):
        if moment in self.plan:
            module.net[0].requires_grad_(self.plan[moment])

    def on_train_epoch_start(self, trainer, pl_module):
        self.set(pl_module, trainer.current_epoch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained |= {name for name, p in pl_module.named_parameters() if p.requires_grad}
        if batch_idx == 1:
            self.set(pl_module, trainer.current_epoch + 0.5)
        if trainer.is_last_batch and trainer.current_epoch % 2:  # before the mean is taken
            self.local.append((copies(pl_module), self.trained))
            self.trained = set()


class Keeps(pl.Callback):
    """Keeps the shared models, as validation sees them."""

    def __init__(self):
        self.shared = []

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch % 2:
            self.shared.append(copies(pl_module))


def copies(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def problems(case, run):
    plan, settings = CASES[case]
    if case == "in one data center only" and center.index:
        plan = {}
    module = toy.Toy(toy.network(seed=3), momentum=0.0)
    start, freezes, keeps = copies(module), Freezes(plan), Keeps()
    colearning = CoLearning(rounds=3, local_epochs=2, local_epochs_rule="fle", run_dir=run, centers=center, **settings)
    trainer = toy.trainer(center, freezes, colearning, keeps, num_sanity_val_steps=0)
    try:
        trainer.fit(module, toy.loader(center.index), toy.loader(99))
    except ColearnError as error:
        return f"refused: {error}"
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    found, before = [], start
    near = 1e-6 if "exchange" not in settings else 2e-2
    for (local, trained), shared, line in zip(freezes.local, keeps.shared, lines, strict=True):
        change = norm = 0.0
        for name, value in shared.items():
            mean = sum(MPI.COMM_WORLD.allgather(local[name])) / 2 if name in trained else before[name]
            if not torch.allclose(value, mean, atol=near):
                found.append(f"round {line['round']}: {name} is off by {float((value - mean).abs().max()):.3g}")
            if name in trained:
                change += float((value - before[name]).double().square().sum())
                norm += float(before[name].double().square().sum())
        if not math.isclose(line["relative_change"], math.sqrt(change / norm), rel_tol=1e-5):
            found.append(f"round {line['round']}: change {line['relative_change']}, not {math.sqrt(change / norm)}")
        before = shared
    same = all(torch.equal(a, b) for a, b in zip(*MPI.COMM_WORLD.allgather(list(before.values())), strict=True))
    return found + ([] if same else ["the data centers end with different models"])


toy.quiet()
center = DataCenter.join(2)
results = {}
for case in CASES:
    folder = Path(sys.argv[1]) / case.replace(" ", "-")
    said = MPI.COMM_WORLD.allgather(problems(case, folder))
    MPI.COMM_WORLD.Barrier()
    results[case] = said[0]
if center.is_first:
    print(json.dumps(results), flush=True)
