"""Trains the toy with whole numbers, plain and under masks; tells what it ended with.

usage: secure.py OUT KILL_AT CASE [CASE …]

CASE: K:SUMS, as 3:fixed32 or 5:fixed64-secure; the first K ranks train in OUT/CASE, one case after the other. SUMS:
"fixed32", "fixed64", "examples64" (weighted by examples), followed by "-secure" where masks hide them.
KILL_AT: "-" or ROUND:POINT; the first data center kills itself there: "exchange" in the middle of a mean, "decision"
when the mean is there and nobody has taken it over. Started again with the same OUT it goes on.
What leaves a leader for the owners of slices is written to sent-RANK.bin, its own numbers and weights to own-RANK.bin.
"""

import toy  # first: makes torchvision importable
import json
import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from mpi4py import MPI
from torch.utils.data import DataLoader

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.algorithm import slices
from colearn_hpc.mpi import pipeline
from colearn_hpc.mpi.pipeline import Pipeline
from colearn_hpc.mpi.tensor_wire import MpiWire
from colearn_hpc.trainer.sums import WholeSums


class Normed(toy.Toy):
    """With buffers."""

    def __init__(self, net, **settings):
        super().__init__(net, **settings)
        self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(toy.FEATURES), net)


EXCHANGE, PREPARE = MpiWire.exchange, WholeSums.prepare


def record(out: Path, rank: int) -> None:
    """Write down what leaves this leader, and what it must not show."""

    def tapped(sends):
        with (out / f"sent-{rank}.bin").open("ab") as file:
            for k, message in sends:
                file.write(message.numpy().tobytes())
                yield k, message

    def tapped_exchange(self, tag, receives, sends):
        return EXCHANGE(self, tag, receives, tapped(sends) if tag == pipeline._TO_OWNER else sends)

    def tapped_prepare(self, mean):
        found = PREPARE(self, mean)
        with (out / f"own-{rank}.bin").open("ab") as file:
            file.write(found.source.vector.numpy().tobytes() + mean.model.pack().numpy().tobytes())
        return found

    MpiWire.exchange, WholeSums.prepare = tapped_exchange, tapped_prepare


def kill(colearning: CoLearning, place: str) -> None:
    """Let this process die in a round, at a point."""
    round_, _, point = place.partition(":")
    decider, post = CoLearning._decider, Pipeline._post

    def here() -> bool:
        return colearning.round == int(round_)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_post(self, number):
        post(self, number)
        if here() and number == 1:
            die()

    def killed_decider(self, *given):
        found = decider(self, *given)
        return lambda *told: die() if here() else found(*told)

    if point == "exchange":
        Pipeline._post = killed_post
    else:
        CoLearning._decider = killed_decider


def train(out: Path, centers: int, sums: str, kill_at: str, comm: MPI.Comm) -> None:
    out.mkdir(parents=True, exist_ok=True)
    center = DataCenter.join(centers, comm)
    sums, _, secure = sums.partition("-")
    weighting = "examples" if sums == "examples64" else "uniform"
    exchange = {"sums": "fixed64" if sums == "examples64" else sums}
    colearning = CoLearning(
        rounds=4,
        local_epochs=1,
        epsilon=0,
        learning_rate=0.1,
        weighting=weighting,
        exchange=exchange,
        privacy={"secure": True} if secure else None,
        run_dir=out,
        centers=center,
    )
    if kill_at != "-" and center.index == 0:
        kill(colearning, kill_at)
    record(out, center.world_rank)
    pl.seed_everything(0, verbose=False)
    module = Normed(toy.network(seed=center.world_rank))
    trainer = toy.trainer(center, colearning)
    path = colearning.resume_path() if any(out.glob("centers/*/resume-*.ckpt")) else None
    size = toy.EXAMPLES + 8 * center.index
    loader = DataLoader(toy.data(center.index, size), batch_size=toy.BATCH)
    colearning.fit(trainer, module, ckpt_path=path, train_dataloaders=loader, val_dataloaders=toy.loader(center.index))
    state = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
    (out / f"model-{center.world_rank}.json").write_text(json.dumps(state))
    del os.environ["COLEARN_CENTER"]


def main(out: Path, kill_at: str, cases: list[str]) -> None:
    toy.quiet()
    slices.SLICE = 8
    for case in cases:
        centers, _, sums = case.partition(":")
        takes_part = MPI.COMM_WORLD.Get_rank() < int(centers)
        comm = MPI.COMM_WORLD.Split(0 if takes_part else MPI.UNDEFINED)
        if takes_part:
            train(out / case.replace(":", "-"), int(centers), sums, kill_at, comm)
        MPI.COMM_WORLD.Barrier()


main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
