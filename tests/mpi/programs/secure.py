"""Trains the toy with whole numbers, plain and under masks; tells what it ended with.

usage: secure.py OUT CASE KILL_AT

CASE: sums ("fixed32", "fixed64", "examples64": weighted by examples), followed by "-secure" where masks hide them.
KILL_AT: "" or "round:point"; the first data center kills itself there: "exchange" in the middle of a mean, "decision"
when the mean is there and nobody has taken it over. Started again with the same OUT it goes on.
All that leaves a leader in a mean is written to OUT/sent-RANK.bin, with masks; a leader's own numbers to own-RANK.bin.
"""

import toy  # first: makes torchvision importable
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.mpi import pipeline
from colearn_hpc.mpi.pipeline import Pipeline
from colearn_hpc.trainer.sums import WholeSums


class Normed(toy.Toy):
    """With buffers."""

    def __init__(self, net, **settings):
        super().__init__(net, **settings)
        self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(toy.FEATURES), net)


def record(out: Path, rank: int) -> None:
    """Write down what leaves this leader, and what it must not show."""
    send, prepare = Pipeline._send, WholeSums.prepare

    def tapped_send(self, number, message, k, tag):
        with (out / f"sent-{rank}.bin").open("ab") as file:
            file.write(message.numpy().tobytes() if tag == pipeline._TO_OWNER else b"")
        send(self, number, message, k, tag)

    def tapped_prepare(self, mean):
        found = prepare(self, mean)
        with (out / f"own-{rank}.bin").open("ab") as file:
            file.write(found.source.vector.numpy().tobytes() + mean.model.pack().numpy().tobytes())
        return found

    Pipeline._send, WholeSums.prepare = tapped_send, tapped_prepare


class Kill(Callback):
    """In round ROUND, at POINT."""

    def __init__(self, colearning, place: str) -> None:
        round_, _, point = place.partition(":")
        decide, post = CoLearning._decider, Pipeline._post

        def here() -> bool:
            return colearning.round == int(round_)

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def killed_post(self, number):
            post(self, number)
            if here() and number == 1:
                die()

        def killed_decider(self, *given):
            found = decide(self, *given)
            return lambda *told: die() if here() else found(*told)

        if point == "exchange":
            Pipeline._post = killed_post
        else:
            CoLearning._decider = killed_decider


def main(out: Path, case: str, kill_at: str) -> None:
    toy.quiet()
    pipeline.SLICE = 8
    center = DataCenter.join(None)
    sums, _, secure = case.partition("-")
    weighting = "examples" if sums == "examples64" else "uniform"
    exchange = {"sums": "fixed64" if sums == "examples64" else sums}
    privacy = {"secure": True} if secure else None
    colearning = CoLearning(
        rounds=4,
        local_epochs=1,
        epsilon=0,
        learning_rate=0.1,
        weighting=weighting,
        exchange=exchange,
        privacy=privacy,
        run_dir=out,
        centers=center,
    )
    if kill_at and center.index == 0:
        Kill(colearning, kill_at)
    record(out, center.world_rank)
    module = Normed(toy.network(seed=center.world_rank))
    trainer = toy.trainer(center, colearning)
    again = any(out.glob("centers/*/resume-*.ckpt"))
    path = colearning.resume_path() if again else None
    size = toy.EXAMPLES + 8 * center.index if weighting == "examples" else toy.EXAMPLES
    loader = torch.utils.data.DataLoader(toy.data(center.index, size), batch_size=toy.BATCH)
    colearning.fit(trainer, module, ckpt_path=path, train_dataloaders=loader, val_dataloaders=toy.loader(center.index))
    if center.is_first:
        state = torch.cat([t.detach().reshape(-1).double() for t in module.state_dict().values()])
        (out / "model.json").write_text(json.dumps(np.asarray(state).tolist()))


main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
