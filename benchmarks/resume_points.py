"""What resume points cost: seconds of a local epoch with them over those without, in turn in one run.

Three ways: without, with, and with points for which training waits (`at once`, as it was before the thread). Steps
sleep, so that the cores are free as a host's are beside its GPUs, or compute on one thread. The optimizer is SGD with
momentum and keeps its state, so a point holds the model twice, and a third time with more than one data center.

    python benchmarks/resume_points.py --parameters 3000000 58164298
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import answer, median, parser, ranks, replica, report
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

WAYS = ("without", "with", "at once")


class Net(LightningModule):
    """Many parameters, all of which have momentum from the first step on, and steps that hardly touch them."""

    def __init__(self, parameters: int, pause: float, computes: bool) -> None:
        super().__init__()
        self.net, self.pause, self.computes = replica(parameters), pause, computes
        self.work = torch.randn(512, 512)

    def training_step(self, batch: Any, index: int) -> Any:
        end = time.perf_counter() + self.pause
        while self.computes and time.perf_counter() < end:
            self.work @ self.work
        time.sleep(max(0.0, end - time.perf_counter()))
        tensors = list(self.parameters())
        return sum(p.sum() for p in (tensors if not self.global_step else tensors[-1:])) * 1e-6

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Clock(Callback):
    """When local epochs began."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.stamps.append(time.perf_counter())


def epochs_of(way: str, center: Any, folder: Path, options: dict[str, Any]) -> tuple[list[float], int]:
    """Seconds of the local epochs after the first, and bytes of a resume point."""
    from colearn_hpc import CoLearning, DataCenterEnvironment
    from colearn_hpc.trainer import callback
    from colearn_hpc.trainer.point_writer import PointWriter

    clock, steps = Clock(), options["steps"]
    # No mean falls among the epochs that are measured.
    settings = {"local_epochs": 1000, "optimizer_state": "keep", "run_dir": folder, "resume_points": way != "without"}
    callback.PointWriter = lambda *place: PointWriter(*place[:3], at_once=way == "at once")
    trainer = Trainer(
        plugins=[DataCenterEnvironment(center)],
        callbacks=[clock, CoLearning(centers=center, **settings)],
        max_epochs=options["epochs"] + 2,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    loader = DataLoader(TensorDataset(torch.zeros(steps, 1)), batch_size=1)
    trainer.fit(Net(options["parameters"], options["seconds"] / steps, options["computes"]), loader)
    points = list((folder / "centers" / center.name).glob("resume-*.ckpt"))
    seconds = [after - before for before, after in zip(clock.stamps[1:], clock.stamps[2:], strict=False)]
    return seconds, max((path.stat().st_size for path in points), default=0)


def measure(options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """On every rank; the figures of the first."""
    from mpi4py import MPI

    from colearn_hpc import DataCenter

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    world, center = MPI.COMM_WORLD, DataCenter.join(MPI.COMM_WORLD.size)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    size = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as name:
        folder = Path(world.bcast(name))
        for number in range(rounds):
            for way in WAYS:
                place = folder / f"{number} {way}"
                found, of_point = epochs_of(way, center, place, options)
                seconds[way] += found
                size = max(size, of_point)
                world.Barrier()
                if world.rank == 0:
                    shutil.rmtree(place)
        world.Barrier()
    middle = {way: median(found) for way, found in seconds.items()}
    return {
        "data centers": world.size,
        "parameters": options["parameters"],
        "steps": "compute" if options["computes"] else "sleep",
        "point (MB)": size / 1e6,
        "epoch without (s)": middle["without"],
        "with / without": middle["with"] / middle["without"],
        "at once / without": middle["at once"] / middle["without"],
        "epochs (s)": {way: [round(one, 3) for one in found] for way, found in seconds.items()},
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, default=1, help="(default: %(default)s)")
    sizes = [3_000_000, 58_164_298]
    options.add_argument("--parameters", type=int, nargs="+", default=sizes, help="(default: %(default)s)")
    options.add_argument("--computes", type=int, nargs="+", default=[0, 1], help="0: steps sleep (default: both)")
    options.add_argument("--seconds", type=float, default=5.0, help="of a local epoch (default: %(default)s)")
    options.add_argument("--steps", type=int, default=50, help="of a local epoch (default: %(default)s)")
    options.add_argument("--epochs", type=int, default=3, help="that are measured in a fit (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=2, help="of each way, in turn (default: %(default)s)")
    chosen = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        values = {name: getattr(chosen, name) for name in ("seconds", "steps", "epochs")}
        place = {"parameters": chosen.parameters[0], "computes": bool(chosen.computes[0])}
        answer(measure(values | place, chosen.rounds))
        return
    rows = []
    for parameters in chosen.parameters:
        for computes in chosen.computes:
            arguments = ["--parameters", parameters, "--computes", computes, "--seconds", chosen.seconds]
            arguments += ["--steps", chosen.steps, "--epochs", chosen.epochs, "--rounds", chosen.rounds]
            rows.append(ranks(chosen.centers, __file__, *arguments))
    report(rows, chosen)


if __name__ == "__main__":
    main()
