"""Trains two data centers by each rival, whole, and stopped in the middle of an epoch and resumed.

What is saved: models after every round as validation sees them, by rank; of the end, whether both are equal.

usage: rivals.py OUT RANKS_PER_CENTER
"""

import toy  # first: makes torchvision importable
import contextlib
import json
import os
import signal
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI
from pytorch_lightning.callbacks import Callback
from rival_scenarios import ROUNDS, SCENARIOS, SEVERAL_RANKS, network, optimizer
from torch import nn

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.errors import Interrupted

STOP = (1, 1)  # epoch and batch: in the first round, or in the second


class Rival(toy.Toy):
    """The toy with the scenario's own optimizer."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__(net)
        self.name = name

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer(self.name, self.parameters())


class Trajectory(Callback):
    """The model after every round, as validation sees it; signals its process after the epoch and batch ``stop``."""

    def __init__(self, colearning, center, stop):
        self.colearning, self.center, self.stop, self.models = colearning, center, stop, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.stop:
            self.center.world.Barrier()
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking and self.colearning.standing().shows is not None:
            self.models.append(flat(pl_module))


def flat(module) -> np.ndarray:
    values = [v for v in module.state_dict().values() if v.is_floating_point()]
    return torch.cat([v.detach().reshape(-1) for v in values]).numpy().copy()


def train(out: Path, name: str, rounds: int, stop=None) -> tuple[list, str]:
    """The models after every round, and a digest of all that the data center holds at the end."""
    center = DataCenter.join(2)
    colearning = CoLearning(rounds=rounds, run_dir=out, centers=center, **SCENARIOS[name])
    trajectory = Trajectory(colearning, center, stop)
    module = Rival(network(name, seed=center.world_rank), name)
    trainer = toy.trainer(center, colearning, trajectory)
    data = toy.loader(center.index, center.size, center.rank)
    interrupted = pytest.raises(Interrupted) if stop else contextlib.nullcontext()
    with interrupted:
        colearning.fit(
            trainer, module, colearning.resume_path(), train_dataloaders=data, val_dataloaders=toy.loader(99)
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next case makes worlds of its own
    del os.environ["COLEARN_CENTER"]
    state = colearning.state_dict()
    held = [state["averaging"].get(key) for key in ("correction", "fragments")]
    text = repr([flat(module).tolist(), state["run"]["history"], *map(_plain, held)])
    return trajectory.models, sha256(text.encode()).hexdigest()


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def main(out: Path, ranks: int) -> None:
    toy.quiet()
    found = {}
    for name in SCENARIOS if ranks == 1 else SEVERAL_RANKS:
        models, whole = train(out / name, name, ROUNDS)
        np.save(out / name / f"models-{MPI.COMM_WORLD.Get_rank()}.npy", np.array(models))
        train(out / f"{name}-parts", name, ROUNDS, stop=STOP)
        _, parts = train(out / f"{name}-parts", name, ROUNDS)
        equal = MPI.COMM_WORLD.allgather(whole == parts)
        lines = [json.loads(line) for line in (out / name / "rounds.jsonl").read_text().splitlines()]
        losses = [[one["loss"] for one in line["centers"]] for line in lines]
        sent = [sum(one["bytes_sent"] for one in line["centers"]) for line in lines]
        epochs = [line["local_epochs"] for line in lines]
        found[name] = {"equal": equal, "epochs": epochs, "losses": losses, "bytes": sent}
        print(f"{name} done", file=sys.stderr, flush=True)
    if MPI.COMM_WORLD.Get_rank() == 0:
        print(json.dumps(found))


main(Path(sys.argv[1]), int(sys.argv[2]))
