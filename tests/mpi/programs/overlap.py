"""Trains the toy with overlap, by several numbers of data centers and T_0, one after the other, on the first ranks of
the world. Every rank writes the model as every validation saw it (and which it was), and at the start of every local
epoch; the first also the shared ones as shared.ckpt held them then, and prints {case: [(T_i, relative change)]}.

usage: overlap.py OUT RANKS_PER_CENTER ROUNDS K:T_0:EPSILON [K:T_0:EPSILON ...]
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


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy().copy()


class Trajectory(Callback):
    """Models as they are trained, and as they are validated."""

    def __init__(self, colearning):
        self.colearning, self.starts, self.validated, self.kept = colearning, [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(flat(pl_module.parameters()))

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            now = self.colearning.standing()
            kind = 0 if now.shows is None else 2 if now.shows == now.round else 1
            self.validated.append(np.append(flat(pl_module.parameters()), np.float32(kind)))
            if kind and now.presides:  # who has written it
                state = torch.load(now.folder / "shared.ckpt")["state_dict"]
                self.kept.append(flat(state[name] for name, _ in pl_module.named_parameters()))


def train(out: Path, case: str, rounds: int, comm: MPI.Comm) -> list:
    centers, local_epochs, epsilon = case.split(":")
    center = DataCenter.join(int(centers), comm)
    settings = {"local_epochs": int(local_epochs), "epsilon": float(epsilon), "decay": 0.25}
    settings["validation"] = "lightning"  # every epoch shows its model
    exchange = {"overlap": True, "lanes": center.size}  # as with each rank on a node of its own
    colearning = CoLearning(rounds=rounds, run_dir=out, centers=center, exchange=exchange, **settings)
    trajectory = Trajectory(colearning)
    module = toy.Toy(toy.network(seed=center.world_rank))  # w⁰ is world rank 0's: all others start elsewhere
    trainer = toy.trainer(center, colearning, trajectory)
    trainer.fit(module, toy.loader(center.index, center.size, center.rank), toy.loader(center.index))
    for name in ("starts", "validated", "kept"):
        np.save(out / f"{name}-{center.world_rank}.npy", np.array(getattr(trajectory, name)))
    np.save(out / f"end-{center.world_rank}.npy", flat(module.parameters()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next case makes worlds of its own
    del os.environ["COLEARN_CENTER"]
    if not center.is_first:
        return []
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(rounds))
    assert [line["next_local_epochs"] for line in lines[:-1]] == [line["local_epochs"] for line in lines[1:]]
    assert [line["epochs_done"] for line in lines] == list(np.cumsum([line["local_epochs"] for line in lines]))
    assert all(len(line["learning_rates"]) == line["local_epochs"] for line in lines)
    assert all(c["examples"] == toy.EXAMPLES * line["local_epochs"] for line in lines for c in line["centers"])
    return [(line["local_epochs"], line["relative_change"]) for line in lines]


def main(out: Path, ranks_per_center: int, rounds: int, cases: list[str]) -> None:
    toy.quiet()
    history = {}
    for case in cases:
        takes_part = MPI.COMM_WORLD.Get_rank() < int(case.split(":")[0]) * ranks_per_center
        comm = MPI.COMM_WORLD.Split(0 if takes_part else MPI.UNDEFINED)
        if takes_part:
            history[case] = train(out / case, case, rounds, comm)
    if MPI.COMM_WORLD.Get_rank() == 0:
        print(json.dumps(history))


main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
