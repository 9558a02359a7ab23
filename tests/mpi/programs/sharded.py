"""A model in shards (FSDP2) in every data center, and the same one whole.

Arguments: number of data centers or their sizes as JSON, folder, JSON of {name: settings}. Each scenario is one run;
rank 0 of the world prints {name: {"weights": [...], "changes": [...], "rounds": n, "held": [...]}}.
"""

from __future__ import annotations

import toy  # makes torchvision importable before Lightning

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler

from colearn_hpc import CoLearning, DataCenter, OuterSGD
from colearn_hpc.errors import Interrupted


class Sharded(toy.Toy):
    """FSDP2: every layer's parameters over the data-parallel mesh."""

    only: tuple[int, ...] = ()

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for at, layer in enumerate(self.net):
            if list(layer.parameters()) and at not in self.only:
                fully_shard(layer, mesh=mesh)
        if not self.only:
            fully_shard(self.net, mesh=mesh)


class Cut(toy.Toy):
    """Tensor parallelism: the first layer's outputs and the last one's inputs over the mesh, the last bias whole."""

    def configure_model(self) -> None:
        mesh = self.device_mesh["tensor_parallel"]
        parallelize_module(self.net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


class StopAt(Callback):
    """Asks the run to stop, as a Slurm that warns before the time limit does."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == self.at and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        if (trainer.current_epoch, batch_idx) >= self.at:
            time.sleep(0.2)  # until all have heard, no epoch should pass


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Linear(toy.FEATURES, 8), nn.Linear(8, toy.CLASSES)
    return nn.Sequential(first, nn.BatchNorm1d(8), nn.Tanh(), last) if norm else nn.Sequential(first, nn.Tanh(), last)


def run(
    center: DataCenter, folder: Path, shards: bool, stop: list[int] | None = None, resume: bool = False, **settings
):
    if settings.pop("outer", False):
        settings["outer_optimizer"] = OuterSGD(0.7, 0.9)
    tensor = settings.pop("tensor", False)
    net = network(norm=not tensor and not settings.pop("plain", False))
    model = Cut(net) if tensor else Sharded(net) if shards else toy.Toy(net)
    model.only = tuple(settings.pop("leave_whole", ()))
    rounds = {
        "rounds": 3,
        "local_epochs": 2,
        "epsilon": 0.0,
        "learning_rate": 0.05,
        "validation": "lightning",
    } | settings
    colearning = CoLearning(centers=center, run_dir=folder, **rounds)
    cut = center.size if tensor else 1
    mesh = {"data_parallel_size": center.size // cut, "tensor_parallel_size": cut}
    extra = {"strategy": ModelParallelStrategy(**mesh)} if shards else {}
    callbacks = [colearning]
    if stop is not None:
        callbacks.append(StopAt(*stop))
    trainer = toy.trainer(center, *callbacks, **extra)
    readers, reader = center.size // cut, center.rank // cut
    sampler = DistributedSampler(toy.data(center.index), readers, reader, shuffle=True, seed=1)
    loader = DataLoader(toy.data(center.index), batch_size=toy.BATCH // readers, sampler=sampler)
    path = colearning.resume_path() if resume else None
    try:
        trainer.fit(model, loader, ckpt_path=path)
    except Interrupted:
        return {"interrupted": sorted(p.name for p in (folder / "centers" / center.name).glob("resume-*"))}
    weights = torch.cat([whole(p).reshape(-1) for p in model.net.parameters()])
    buffers = torch.cat([torch.empty(0), *(b.detach().float().reshape(-1) for b in model.net.buffers())])
    held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.net.parameters())
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    bits = hashlib.sha256(torch.cat([weights, buffers]).numpy().tobytes()).hexdigest()
    return {
        "weights": weights.tolist(),
        "buffers": buffers.tolist(),
        "bits": center.world.allgather(bits),
        "held": center.world.allgather(held),
        "size": len(weights),
        "changes": [line["relative_change"] for line in lines],
        "divergences": [[one["divergence"] for one in line["centers"]] for line in lines],
        "resumed": str(path.name) if path else "",
    }


if __name__ == "__main__":
    toy.quiet()
    center = DataCenter.join(json.loads(sys.argv[1]))
    found = {}
    for name, settings in json.loads(sys.argv[3]).items():
        folder = Path(sys.argv[2]) / settings.pop("folder", name)
        try:
            found[name] = run(center, folder, **settings)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    if center.world_rank == 0:
        print(json.dumps(found))
