"""Trains the toy in rounds of steps, on streams without a length, case after case on the first ranks of the world.
Every rank writes the shared model as each validation saw it; the first also prints {case: [(T_i, relative change)]}.

usage: steps.py OUT ROUNDS RANKS_PER_CENTER:EXCHANGE:EPSILON [...]
"""

import toy  # first: makes torchvision importable
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset

from colearn_hpc import CoLearning, DataCenter

CENTERS = 2
SETTINGS = {"local_steps": 3, "decay": 0.25}


class Stream(IterableDataset):
    """A data center's batches, and of each this rank's part. The later data center has more of them."""

    def __init__(self, center):
        self.center = center

    def __iter__(self):
        center = self.center
        x, y = toy.data(center.index, toy.EXAMPLES + toy.BATCH * center.index).tensors
        for start in range(0, len(x), toy.BATCH):
            mine = slice(start + center.rank, start + toy.BATCH, center.size)
            yield x[mine], y[mine]


class Trajectory(Callback):
    """The shared model, as validation sees it."""

    def __init__(self, colearning):
        self.colearning, self.models = colearning, []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            assert self.colearning.standing().shows is not None, "validated at rounds' ends alone"
            self.models.append(torch.cat([p.detach().reshape(-1) for p in pl_module.parameters()]).numpy().copy())


def train(out: Path, case: str, rounds: int, comm: MPI.Comm) -> list:
    _, exchange, epsilon = case.split(":")
    center = DataCenter.join(CENTERS, comm)
    how = {"lanes": center.size, "overlap": exchange == "overlap"}
    colearning = CoLearning(rounds, run_dir=out, centers=center, exchange=how, epsilon=float(epsilon), **SETTINGS)
    trajectory = Trajectory(colearning)
    module = toy.Toy(toy.network(seed=center.world_rank))  # w⁰ is world rank 0's: all others start elsewhere
    trainer = toy.trainer(center, colearning, trajectory)
    trainer.fit(module, DataLoader(Stream(center), batch_size=None), toy.loader(center.index))
    np.save(out / f"models-{center.world_rank}.npy", np.array(trajectory.models))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next case makes worlds of its own
    del os.environ["COLEARN_CENTER"]
    if not center.is_first:
        return []
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["epochs_done"] for line in lines] == list(np.cumsum([line["local_epochs"] for line in lines]))
    assert all(c["steps"] == line["local_epochs"] for line in lines for c in line["centers"])
    assert all(c["examples"] == toy.BATCH * line["local_epochs"] for line in lines for c in line["centers"])
    return [(line["local_epochs"], line["relative_change"]) for line in lines]


def main(out: Path, rounds: int, cases: list[str]) -> None:
    toy.quiet()
    history = {}
    for case in cases:
        takes_part = MPI.COMM_WORLD.Get_rank() < CENTERS * int(case.split(":")[0])
        comm = MPI.COMM_WORLD.Split(0 if takes_part else MPI.UNDEFINED)
        if takes_part:
            history[case] = train(out / case, case, rounds, comm)
    if MPI.COMM_WORLD.Get_rank() == 0:
        print(json.dumps(history))


main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
