"""What the callback costs between averagings: steps per second with CoLearning and without, in one run.

In turn in two ways: whole fits, which differ by 0.02 among themselves, and blocks of 20 steps of one fit, where
CoLearning's callbacks are taken out of the Trainer for every other block. And, least moved by a noisy machine, the time
between stamps around Lightning's calls of all callbacks' hooks, in such blocks of another fit.

And what it costs at the start: seconds from the launch of two processes to the end of the first step, against plain
Lightning DDP on the same two processes.

    python benchmarks/overhead.py --layouts 1x1 2x1 1x2
"""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import answer, environment, median, parser, ranks, report
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer import call
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.cli.launch import find_mpirun

SKIPPED = 30  # steps
BLOCK = 20  # steps, with and without
BARE: dict[str, Any] = {  # a Trainer with nothing else in it that takes time
    "max_epochs": 1,
    "accelerator": "cpu",
    "use_distributed_sampler": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


class Net(LightningModule):
    """A small convolutional net on digits of 8 x 8: steps of milliseconds, where a callback's cost would show."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 64, 10),
        )

    def training_step(self, batch: Any, index: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(Callback):
    """Seconds of the steps after the first few."""

    seconds, start = 0.0, 0.0

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == SKIPPED:
            self.start = time.perf_counter()
        elif index == SKIPPED + self.steps:
            self.seconds = time.perf_counter() - self.start


class Switch(Callback):
    """Takes all other callbacks out of the Trainer for every other block of steps, and clocks blocks."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self._all: list[Callback] = []
        self._last = -1

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index % BLOCK == 0 and index != self._last:  # Lightning walks over the list while it changes: may come twice
            self._last = index
            self.stamps.append(time.perf_counter())
            self._all = self._all or list(trainer.callbacks)
            trainer.callbacks[:] = [self] if len(self.stamps) % 2 else self._all

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.callbacks[:] = self._all

    def pairs(self) -> list[tuple[float, float]]:
        """Seconds of a block without and of the next one with, after the first few."""
        blocks = [end - start for start, end in itertools.pairwise(self.stamps)][4:]
        return list(zip(blocks[::2], blocks[1::2], strict=False))


class Stamps(Switch):
    """Sums what Lightning's calls of all callbacks' hooks take in a step, with the others and without."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._sum = 0.0
        self._call = call._call_callback_hooks

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        self._call(*args, **kwargs)
        self._sum += time.perf_counter() - start

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index > SKIPPED and index % BLOCK > 2:  # of the step before; a block's first ones are not counted
            self.seconds[len(trainer.callbacks) > 1].append(self._sum)
        self._sum = 0.0
        super().on_train_batch_start(trainer, module, batch, index)


def trained(center: Any, callbacks: list[Any], batches: int, size: int = 32) -> None:
    from colearn_hpc import DataCenterEnvironment

    x, y = torch.randn(size * batches, 1, 8, 8), torch.zeros(size * batches, dtype=torch.int64)
    trainer = Trainer(
        devices=center.local_size,
        num_nodes=center.nodes,
        strategy="ddp" if center.size > 1 else "auto",
        plugins=[DataCenterEnvironment(center)],
        callbacks=callbacks,
        **BARE,
    )
    trainer.fit(Net(), DataLoader(TensorDataset(x, y), batch_size=size))


def measure(layout: str, steps: int, rounds: int, size: int) -> dict[str, Any]:
    """On every rank; the figures of the first."""
    from mpi4py import MPI

    from colearn_hpc import CoLearning, DataCenter

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    centers = int(layout.split("x")[0])
    center = DataCenter.join(centers)
    rates: dict[str, list[float]] = {"with": [], "without": []}
    pairs: list[tuple[float, float]] = []
    hooks: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        run = MPI.COMM_WORLD.bcast(folder)
        for number in range(rounds + 1):
            for name in rates:
                clock = Clock(steps)
                callbacks: list[Any] = [clock]
                if name == "with":
                    place = Path(run) / str(number)
                    callbacks.append(CoLearning(local_epochs=1000, run_dir=place, centers=center))
                MPI.COMM_WORLD.Barrier()
                trained(center, callbacks, steps + SKIPPED + 2, size)
                if number:
                    rates[name].append(steps / clock.seconds)
            switch = Switch()
            colearning = CoLearning(local_epochs=1000, run_dir=Path(run) / f"{number} blocks", centers=center)
            MPI.COMM_WORLD.Barrier()
            trained(center, [switch, colearning], max(2 * steps, 8 * BLOCK), size)
            pairs += switch.pairs() if number else []
            stamps = Stamps()
            colearning = CoLearning(local_epochs=1000, run_dir=Path(run) / f"{number} hooks", centers=center)
            MPI.COMM_WORLD.Barrier()
            with patch.object(call, "_call_callback_hooks", stamps):
                trained(center, [stamps, colearning], max(2 * steps, 8 * BLOCK), size)
            for others, seconds in stamps.seconds.items():
                hooks[others] += seconds if number else []
        MPI.COMM_WORLD.Barrier()
    return {
        "data centers x ranks": layout,
        "with (steps/s)": median(rates["with"]),
        "without (steps/s)": median(rates["without"]),
        "with / without, fits in turn": median(rates["with"]) / median(rates["without"]),
        "blocks in turn": median([without / having for without, having in pairs]),
        "more per step (us)": 1e6 / BLOCK * median([having - without for without, having in pairs]),
        "more in hooks (us)": 1e6 * (median(hooks[True]) - median(hooks[False])),
    }


def start_up(rounds: int) -> dict[str, Any]:
    """Launch to first step: ours under mpirun, Lightning's own launcher for DDP."""
    binary = find_mpirun()
    assert binary is not None
    seconds: dict[str, list[float]] = {"CoLearning": [], "DDP": []}
    for number in range(rounds + 1):
        for name in seconds:
            command = [sys.executable, __file__, "--first-step", name]
            if name == "CoLearning":
                command = [binary, "--oversubscribe", "--bind-to", "none", "-n", "2", *command]
            with tempfile.TemporaryDirectory() as folder:
                start = time.time()
                done = subprocess.run(command, env=environment(), cwd=folder, text=True, capture_output=True)
            stamps = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("first step")]
            # Plain DDP aborts now and then when it ends, over a thread of gloo's: its first step has been by then.
            if not stamps or (done.returncode and name == "CoLearning"):
                sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
            if number:
                seconds[name].append(max(stamps) - start)
    ours, plain = median(seconds["CoLearning"]), median(seconds["DDP"])
    return {"CoLearning (s)": ours, "DDP (s)": plain, "CoLearning / DDP": ours / plain}


class FirstStep(Callback):
    """Says when the first step ended, and leaves."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        print(f"first step {time.time()}", flush=True)
        trainer.should_stop = True


def first_step(name: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if name == "CoLearning":
        from colearn_hpc import CoLearning, DataCenter

        center = DataCenter.join(1)
        trained(center, [FirstStep(), CoLearning(run_dir=Path("run"), centers=center)], 2)
        return
    x, y = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    trainer = Trainer(
        devices=2,
        strategy="ddp",
        callbacks=[FirstStep()],
        **BARE,
    )
    trainer.fit(Net(), DataLoader(TensorDataset(x, y), batch_size=32))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    layouts = ["1x1", "2x1", "1x2"]
    options.add_argument("--layouts", nargs="+", default=layouts, help="centers x ranks of each (default: %(default)s)")
    options.add_argument("--steps", type=int, default=400, help="of each fit (default: %(default)s)")
    options.add_argument("--batch", type=int, default=32, help="examples of a step (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="of each, in turn (default: %(default)s)")
    options.add_argument("--starts", type=int, default=3, help="launches of each, in turn (default: %(default)s)")
    options.add_argument("--first-step", choices=["CoLearning", "DDP"], help="what a launch runs")
    chosen = options.parse_args()
    if chosen.first_step:
        first_step(chosen.first_step)
        return
    if chosen.worker:
        torch.set_num_threads(1)
        answer(measure(chosen.layouts[0], chosen.steps, chosen.rounds, chosen.batch))
        return
    rows = []
    for layout in chosen.layouts:
        centers, each = map(int, layout.split("x"))
        options_of_workers = ["--steps", chosen.steps, "--rounds", chosen.rounds, "--batch", chosen.batch]
        rows.append(ranks(centers * each, __file__, "--layouts", layout, *options_of_workers))
    report(rows, chosen, start_up=start_up(chosen.starts) if chosen.starts else None)


if __name__ == "__main__":
    main()
