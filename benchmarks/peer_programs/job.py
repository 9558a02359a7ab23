"""The same work for all peers; needs torch and numpy only, because it runs in every peer's environment.

usage of every program here: PROGRAM FOLDER ROUNDS EPOCHS
FOLDER holds job.json and, for training, digits.npz. EPOCHS local epochs a round; 0: a large model, and no training.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER, ROUNDS, EPOCHS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
SETTINGS = json.loads((FOLDER / "job.json").read_text())
PARTICIPANTS = SETTINGS["participants"]
torch.set_num_threads(1)


def network() -> nn.Module:
    """A module with the tensors that job.json lists, or a small net for digits; the same weights everywhere."""
    torch.manual_seed(0)
    if EPOCHS:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )
    module = nn.Module()
    module.weights = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.05) for shape in SETTINGS["shapes"]])
    return module


def shard(participant: int) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(FOLDER / "digits.npz") as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    return x[participant::PARTICIPANTS], y[participant::PARTICIPANTS]


def train(net: nn.Module, participant: int, round_index: int) -> None:
    """One round's local epochs of SGD. Without epochs: a step in the first round, which is not counted."""
    if not EPOCHS:
        if round_index == 0:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(0.01 * participant)
        return
    x, y = shard(participant)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1000 * participant + round_index)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()


def check_mean(net: nn.Module) -> None:
    """Whether a peer did the work: the mean of the first round's steps is in every tensor."""
    step = 0.01 * (PARTICIPANTS - 1) / 2
    for parameter, before in zip(net.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(parameter, before + step, atol=1e-4, rtol=0)


def accuracy(net: nn.Module) -> float:
    if not EPOCHS:
        return 0.0
    with np.load(FOLDER / "digits.npz") as file:
        x, y = torch.from_numpy(file["test_x"]), torch.from_numpy(file["test_y"])
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def finished(seconds: list[float], net: nn.Module, version: str, started: float) -> None:
    """For the benchmark to read."""
    if not EPOCHS:
        check_mean(net)
    found = {"seconds": seconds, "accuracy": accuracy(net), "version": version, "wall": time.time() - started}
    print("FOUND " + json.dumps(found | {"torch": torch.__version__}), flush=True)
