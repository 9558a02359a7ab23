"""Trains the toy by co-learning with several numbers of data centers, one after the other, on the first ranks of the
world. Every rank writes the shared model after every round; the first also prints {CASE: [(T_i, relative change)]}.

usage: rounds.py OUT RANKS_PER_CENTER ROUNDS CASE [CASE ...]      a CASE is K, or K:adapters
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

from colearn_hpc import CoLearning, DataCenter

SETTINGS = {"local_epochs": 2, "epsilon": 0.21, "decay": 0.25}


class Trajectory(Callback):
    """The shared model after every round, as validation sees it."""

    def __init__(self, colearning):
        self.colearning, self.models = colearning, []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking and self.colearning.standing().shows is not None:
            trained = [p.detach().reshape(-1) for p in pl_module.parameters() if p.requires_grad]
            self.models.append(torch.cat(trained).numpy().copy())


def train(out: Path, centers: int, adapters: bool, rounds: int, comm: MPI.Comm) -> list:
    center = DataCenter.join(centers, comm)
    lanes = {"lanes": center.size}  # as with each rank on a node of its own
    colearning = CoLearning(rounds=rounds, run_dir=out, centers=center, exchange=lanes, **SETTINGS)
    trajectory = Trajectory(colearning)
    network = toy.adapted_network if adapters else toy.network
    module = toy.Toy(network(seed=center.world_rank))  # w⁰ is world rank 0's: all others start elsewhere
    trainer = toy.trainer(center, colearning, trajectory)
    train_data = toy.loader(center.index, center.size, center.rank)
    trainer.fit(module, train_data, toy.loader(center.index))
    np.save(out / f"models-{center.world_rank}.npy", np.array(trajectory.models))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next K makes worlds of its own
    del os.environ["COLEARN_CENTER"]
    if not center.is_first:
        return []
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return [(line["local_epochs"], line["relative_change"]) for line in lines]


def main(out: Path, ranks_per_center: int, rounds: int, cases: list[str]) -> None:
    toy.quiet()
    history = {}
    for case in cases:
        centers = int(case.partition(":")[0])
        takes_part = MPI.COMM_WORLD.Get_rank() < centers * ranks_per_center
        comm = MPI.COMM_WORLD.Split(0 if takes_part else MPI.UNDEFINED)
        if takes_part:
            history[case] = train(out / case, centers, case.endswith(":adapters"), rounds, comm)
    if MPI.COMM_WORLD.Get_rank() == 0:
        print(json.dumps(history))


main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
