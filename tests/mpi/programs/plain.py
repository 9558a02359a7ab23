"""One data center of two ranks on two (pretended) hosts: co-learning must be plain Lightning DDP, to the bit.

Trains twice, without and with the callback, and prints a digest of weights, buffers and optimizer state of each.

usage: plain.py OUT
"""

import toy  # first: makes torchvision importable
import platform
import socket
import sys
from hashlib import sha256
from pathlib import Path

import pytorch_lightning as pl
import torch
from mpi4py import MPI
from torch import nn

from colearn_hpc import CoLearning, DataCenter

# Two hosts that are one: node and local ranks, and Lightning's num_nodes, come from the hosts' names.
platform.node = lambda: f"host{MPI.COMM_WORLD.Get_rank()}"
socket.gethostname = lambda: "localhost"


class Scheduled(toy.Toy):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]


def digest(center, *callbacks) -> str:
    pl.seed_everything(3, verbose=False)
    net = nn.Sequential(nn.Linear(toy.FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, toy.CLASSES))
    module = Scheduled(net)
    trainer = toy.trainer(center, *callbacks, max_epochs=6)
    assert (trainer.world_size, trainer.num_nodes, trainer.node_rank) == (2, 2, center.rank)
    trainer.fit(module, toy.loader(0, 2, center.rank, shuffle=True), toy.loader(0))
    momenta = [v for entry in trainer.optimizers[0].state.values() for v in entry.values()]
    tensors = [*module.state_dict().values(), *momenta]
    return sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


toy.quiet()
center = DataCenter.join(1)
assert (center.nodes, center.node_rank, center.local_rank, center.local_size) == (2, center.rank, 0, 1)
alone = digest(center)
settings = {"local_epochs": 2, "schedule": "none", "epsilon": 1.0, "validation": "lightning"}
with_callback = digest(center, CoLearning(run_dir=sys.argv[1], **settings))
rounds = len((Path(sys.argv[1]) / "rounds.jsonl").read_text().splitlines())
print(f"rank {center.world_rank}: {rounds} rounds, {'equal' if alone == with_callback else 'different'}", flush=True)
