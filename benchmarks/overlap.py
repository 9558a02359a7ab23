"""Time per round with the mean waited for and overlapped, over links of a given bandwidth. Needs root, ip and tc.

Each data center is a network namespace with a link of its own (_namespaces.py) and trains a net whose step takes a
fixed time, asleep: this machine's cores are free for the exchange, as a host's are beside its GPUs, and what is seen is
the link. Runs alternate: overlap off, on, off, on. The first round is left out, and the last: it is always waited for.

    python benchmarks/overlap.py --centers 2 --megabits 200 --parameters 10000000
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from _namespaces import Namespaces
from common import answer, median, parser, ranks, replica, report
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class Slow(LightningModule):
    """A model of many parameters of which a step moves few.

    Args:
        parameters: how many.
        seconds: of a step.
    """

    def __init__(self, parameters: int, seconds: float) -> None:
        super().__init__()
        self.rest = replica(parameters)
        self.moving = torch.nn.Parameter(torch.zeros(1000))
        self.seconds = seconds

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.seconds)
        return ((self.moving - batch[0].mean()) ** 2).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.moving], lr=0.01)


class Ends(Callback):
    """When each local epoch ended, all done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """On every rank; the figures of the first."""
    import logging

    from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    center, seconds = DataCenter.join(), Ends()
    with tempfile.TemporaryDirectory() as folder:
        colearning = CoLearning(
            rounds=options.rounds,
            local_epochs=options.local_epochs,
            local_epochs_rule="fle",
            exchange={"codec": options.codec, "overlap": options.overlap == "on"},
            run_dir=Path(folder),
            resume_points=False,
            centers=center,
        )
        trainer = Trainer(
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            plugins=[DataCenterEnvironment(center)],
            callbacks=[colearning, seconds],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )
        data = TensorDataset(torch.randn(options.batches, 8))
        trainer.fit(Slow(options.parameters, options.step), DataLoader(data, batch_size=1))
        rounds = Path(folder) / "rounds.jsonl"  # of the first rank alone
        lines = [json.loads(line) for line in rounds.read_text().splitlines()] if center.is_first else []
    starts = seconds.times[:: options.local_epochs]
    return {
        "rounds (s)": [b - a for a, b in itertools.pairwise(starts)][1:-1],
        "peak (MB)": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3],
        "waited (s)": [line["centers"][0]["exchange_seconds"] for line in lines][1:-1],
    }


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--centers", type=int, default=2, help="(default: %(default)s)")
    made.add_argument("--megabits", type=int, default=200, help="of each link (default: %(default)s)")
    made.add_argument("--parameters", type=int, default=10_000_000, help="(default: %(default)s)")
    made.add_argument("--codec", default="fp32", help="(default: %(default)s)")
    made.add_argument("--step", type=float, default=0.05, help="seconds of a training step (default: %(default)s)")
    made.add_argument("--batches", type=int, default=120, help="of a local epoch (default: %(default)s)")
    made.add_argument("--local-epochs", type=int, default=1, help="T (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=5, help="of a run (default: %(default)s)")
    made.add_argument("--repeats", type=int, default=2, help="runs of each kind (default: %(default)s)")
    made.add_argument("--overlap", choices=("off", "on"), default="off", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.worker:
        torch.set_num_threads(1)
        answer(measure(options))
        return
    found: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in ("off", "on")}
    names = ("parameters", "codec", "step", "batches", "local_epochs", "rounds")
    shared = [text for name in names for text in (f"--{name.replace('_', '-')}", getattr(options, name))]
    with (
        tempfile.TemporaryDirectory() as folder,
        Namespaces("colov", "10.93.0", options.centers, options.megabits, Path(folder)) as network,
    ):
        for kind in ("off", "on") * options.repeats:
            one = ranks(
                options.centers, __file__, *shared, "--overlap", kind, mpirun=network.mpirun_options(), timeout=400
            )
            for name, values in one.items():
                found[kind][name] += values
    k = options.centers
    rows = [
        {
            "centers": k,
            "Mbit/s": options.megabits,
            "parameters": options.parameters,
            "codec": options.codec,
            "T": options.local_epochs,
            "training (s)": options.step * options.batches * options.local_epochs,
            "link's bound (s)": 2 * (k - 1) / k * 4 * options.parameters * 8 / (options.megabits * 1e6),
            "overlap": kind,
            "round (s)": median(values["rounds (s)"]),
            "smallest": min(values["rounds (s)"]),
            "largest": max(values["rounds (s)"]),
            "waited for the mean (s)": median(values["waited (s)"]),
            "peak memory (MB)": median(values["peak (MB)"]),
        }
        for kind, values in found.items()
    ]
    report(rows, options)


if __name__ == "__main__":
    main()
