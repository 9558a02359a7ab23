"""What the ranks of tests/gpu/check.py do: one training after the other, in the same processes.

usage: program.py FOLDER DEVICE CASES

CASES is a JSON list of arguments of :func:`train`. Of each, rank r leaves FOLDER/NAME-r.json: digests of all that must
be equal after an interruption, and when training began; and FOLDER/NAME-r.pt, its weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from colearn_hpc._quick_imports import import_quickly

import_quickly()  # before Lightning

import like_nccl
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment
from colearn_hpc.algorithm.outer import OuterSGD
from colearn_hpc.trainer.devices import OwnGPU
from colearn_hpc.trainer.inject import FaultInjector

EXAMPLES, BATCH, CLASSES = 64, 8, 4


class Small(pl.LightningModule):
    """Convolutions, BatchNorm and dropout, trained by Adam."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            # A bias before BatchNorm has a gradient of rounding errors alone, which Adam makes whole steps of.
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(72, CLASSES),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Watch(pl.Callback):
    """Notes when training began, and its pace; asks for a stop in the middle of an epoch."""

    def __init__(self, stop_at: tuple[int, int] | None) -> None:
        self.began: list[float] = []  # of each attempt, when its first batch was trained
        self.first, self.steps, self.seconds = 0.0, 0, 0.0
        self._stop_at, self._fresh = stop_at, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fresh = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._fresh:
            self.began.append(time.time())
            self._fresh = False
        if (trainer.current_epoch, batch_idx) == self._stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        if trainer.global_step == 10:  # what is only done once is done
            self.first = self._now()
        elif trainer.global_step > 10:
            self.steps = trainer.global_step - 10

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = self._now() - self.first

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.monotonic()


def loader(center: DataCenter) -> DataLoader:
    """Batches of BATCH examples per data center, in an order that is drawn anew in each epoch."""
    generator = torch.Generator().manual_seed(100 + center.index)
    y = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    x = torch.randn(EXAMPLES, 3, 8, 8, generator=generator) + 0.3 * y.view(-1, 1, 1, 1)
    data = TensorDataset(x, y)
    if center.size == 1:
        return DataLoader(data, batch_size=BATCH, shuffle=True)
    return DataLoader(data, batch_size=BATCH // center.size, sampler=DistributedSampler(data, center.size, center.rank))


def train(
    name: str,
    device: str,
    folder: Path,
    centers: int,
    run: str = "",
    rounds: int = 2,
    dropout: float = 0.3,
    precision: str = "32-true",
    backend: str | None = None,
    shares_gpu: bool = False,
    faults: str = "",
    stop_at: list[int] | None = None,
    outer: bool = False,
    plain_epochs: int = 0,
    sync_batchnorm: bool = False,
    **settings: Any,
) -> None:
    """One training.

    Args:
        name: of the case.
        device: "cuda" or "cpu".
        folder: for what it leaves, and for run folders.
        centers: K; the ranks are divided equally.
        run: whose run folder; empty: a new one. One that is there is continued.
        rounds: of 2 local epochs.
        dropout: its probability.
        precision: as of the Trainer.
        backend: of torch.distributed; None: NCCL on GPUs, gloo on CPUs.
        shares_gpu: all ranks of a data center take the first GPU.
        faults: to be rehearsed.
        stop_at: local epoch and batch after which the first rank is asked to stop.
        outer: an outer optimizer.
        plain_epochs: so many epochs without CoLearning.
        sync_batchnorm: as of the Trainer.
        settings: further arguments of CoLearning.
    """
    center = DataCenter.join(centers)
    pl.seed_everything(5 + center.world_rank, verbose=False)
    environment = DataCenterEnvironment(center)
    arguments = environment.trainer_arguments("cpu" if device == "cpu" or shares_gpu else "gpu")
    if shares_gpu and device == "cuda":
        arguments |= {"accelerator": OwnGPU(), "devices": center.local_size}
    if center.size > 1 and backend is not None:
        arguments["strategy"] = DDPStrategy(process_group_backend=backend)
    if device == "cpu" and precision == "16-mixed":  # Lightning takes it on GPUs alone, unless it is told how
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
        arguments["plugins"] = [*arguments["plugins"], MixedPrecision("16-mixed", "cpu", scaler)]
    else:
        arguments["precision"] = precision
    stops = tuple(stop_at) if stop_at is not None and center.world_rank == 0 else None
    watch = Watch(stops)  # type: ignore[arg-type]
    path = folder / "runs" / (run or name)
    colearning = CoLearning(
        rounds=rounds,
        local_epochs=2,
        local_epochs_rule="fle",
        run_dir=path,
        centers=center,
        optimizer_state="keep",
        outer_optimizer=OuterSGD(0.7, 0.9) if outer else None,
        **settings,
    )
    callbacks = [watch] if plain_epochs else [colearning, FaultInjector(faults.split(), colearning.standing), watch]
    trainer = pl.Trainer(
        **arguments,
        callbacks=callbacks,
        max_epochs=plain_epochs or -1,
        sync_batchnorm=sync_batchnorm,
        deterministic=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    module = Small(dropout)
    if plain_epochs:
        trainer.fit(module, loader(center))
    else:
        colearning.fit(trainer, module, ckpt_path=colearning.resume_path(), train_dataloaders=loader(center))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next case makes worlds of its own
    os.environ.pop("COLEARN_CENTER", None)
    weights = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    found: dict[str, Any] = {
        "weights": weights.values(),
        "generators": (torch.get_rng_state(), np.random.get_state()[1]),
        "momenta": (value for entry in trainer.optimizers[0].state.values() for value in entry.values()),
    }
    if device == "cuda":
        found["CUDA generator"] = (torch.cuda.get_rng_state(),)
    digests = {key: digest_of(values) for key, values in found.items()}
    digests["scaler"] = json.dumps(None if scaler is None else scaler.state_dict())
    pace = watch.steps / watch.seconds if watch.seconds else 0.0
    left = {"digests": digests, "began": watch.began, "steps per second": pace, "center": center.name}
    left["device"] = str(trainer.strategy.root_device)
    torch.save(weights, folder / f"{name}-{center.world_rank}.pt")
    (folder / f"{name}-{center.world_rank}.json").write_text(json.dumps(left))


def digest_of(values: Any) -> str:
    """SHA-256 of tensors and numbers, bit for bit."""
    parts = [v.detach().cpu().contiguous() if isinstance(v, Tensor) else torch.as_tensor(v) for v in values]
    return sha256(b"".join(part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts)).hexdigest()


def main() -> None:
    """All cases."""
    assert like_nccl.NAME in torch.distributed.Backend.backend_list
    torch.backends.cudnn.allow_tf32 = False  # results are compared with the CPU's
    torch.set_num_threads(1)
    for case in json.loads(sys.argv[3]):
        train(folder=Path(sys.argv[1]), device=sys.argv[2], **case)


main()
