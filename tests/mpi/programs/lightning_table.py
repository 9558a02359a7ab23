"""Every flag of the Trainer and every built-in callback, with rounds: the rows of docs/lightning.md. Run on 2 ranks.

Writes OUT/rows.json: name -> "works", "differently", "refused: message", or "wrong: why" of a row whose check fails.
usage: lightning_table.py OUT [NAME ...]
"""

import toy  # first: makes torchvision importable
import json
import sys
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch import nn
from torch.utils.data import DataLoader

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

pl = toy.pl
CB = pl.callbacks
OUT = Path(sys.argv[1])
WORLD = MPI.COMM_WORLD
CENTER = DataCenter.join(2)


@dataclass
class Row:
    """How a flag or callback is tried.

    Attributes:
        settings: of the Trainer.
        callbacks: makes them.
        rules: arguments of CoLearning.
        module: makes it.
        differs: it works, but not as without rounds.
        rounds: lines of rounds.jsonl at the end.
        check: (Trainer, callbacks, lines) -> whether it did what the table says.
        alike: all data centers hold one model at the end.
        loaders: ``fit`` is given them; otherwise the module makes them.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Any = list
    rules: dict[str, Any] = field(default_factory=dict)
    module: Any = lambda: toy.Toy(toy.network(CENTER.index))
    differs: bool = False
    rounds: int = 2
    check: Any = lambda trainer, callbacks, lines: True
    alike: bool = True
    loaders: bool = True


class Saw(pl.Callback):
    def __init__(self):
        self.validations = self.batches = self.reloads = 0

    def on_validation_start(self, trainer, pl_module):
        self.validations += not trainer.sanity_checking

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1


class Tuned(toy.Toy):
    """With a backbone, as BackboneFinetuning wants it."""

    def __init__(self):
        super().__init__(toy.network(CENTER.index))
        self.backbone = nn.Linear(toy.FEATURES, toy.FEATURES)

    def training_step(self, batch, batch_idx):
        return super().training_step((self.backbone(batch[0]), batch[1]), batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(list(self.net.parameters()), lr=0.1)


class Searched(toy.Toy):
    """With what the two searches may change."""

    def __init__(self):
        super().__init__(toy.network(CENTER.index))
        self.lr, self.batch_size = 0.1 + 0.1 * CENTER.index, 4

    def train_dataloader(self):
        return DataLoader(toy.data(CENTER.index), batch_size=self.batch_size)

    def val_dataloader(self):
        return toy.loader(CENTER.index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Unfreezes(CB.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


class Writes(CB.BasePredictionWriter):
    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        self.written = len(predictions)


def saw(what, number):
    def check(trainer, callbacks, lines):
        found = getattr(next(c for c in trainer.callbacks if isinstance(c, Saw)), what)
        return found == number or f"{what} = {found}"

    return check


def logs(trainer, callbacks, lines):
    folders = WORLD.allgather(trainer.loggers[0].log_dir)
    return len(set(folders)) == 2 or folders


def one_rate(trainer, callbacks, lines):
    rates = WORLD.allgather(trainer.optimizers[0].param_groups[0]["lr"])
    return rates[0] == rates[1] or rates


def kept(trainer, callbacks, lines):
    names = WORLD.allgather(Path(callbacks[0].best_model_path).name)
    return (bool(names[0]) and names[0] == names[1] and "epoch=3" in names[0]) or names


HERE = OUT / f"center{CENTER.index}"
FLAGS = {
    "accelerator": Row({"accelerator": "cpu"}),
    "strategy": Row({"strategy": "fsdp" if torch.cuda.is_available() else pl.strategies.SingleDeviceStrategy("cpu")}),
    "devices": Row({"devices": 2, "strategy": "ddp"}),
    "num_nodes": Row({"num_nodes": 2, "strategy": "ddp"}),
    "precision": Row({"precision": "bf16-mixed"}),
    "logger": Row({"logger": pl.loggers.CSVLogger(OUT / "logs")}, differs=True, check=logs),
    "callbacks": Row(callbacks=lambda: [CB.LambdaCallback()]),
    "fast_dev_run": Row({"fast_dev_run": 2}, differs=True, rounds=1, check=saw("batches", 2)),
    "max_epochs": Row({"max_epochs": 3}, rules={"rounds": None}, check=lambda t, c, lines: t.current_epoch == 3),
    "min_epochs": Row(
        {"min_epochs": 4, "max_epochs": 8},
        lambda: [CB.EarlyStopping("val_loss", patience=1, min_delta=1e9)],
        rules={"rounds": None, "local_epochs": 1, "local_epochs_rule": "fle"},
        rounds=4,
    ),
    "max_steps": Row({"max_steps": 10}, rules={"rounds": None}, check=lambda t, c, lines: t.global_step == 10),
    "min_steps": Row(
        {"min_steps": 12, "max_epochs": 8},
        lambda: [CB.EarlyStopping("val_loss", patience=1, min_delta=1e9)],
        rules={"rounds": None, "local_epochs": 1, "local_epochs_rule": "fle"},
        rounds=3,
    ),
    "max_time": Row({"max_time": timedelta(hours=1)}),
    "limit_train_batches": Row({"limit_train_batches": 2}, check=saw("batches", 8)),
    "limit_val_batches": Row({"limit_val_batches": 0}, check=saw("validations", 0)),
    "limit_test_batches": Row({"limit_test_batches": 1}),
    "limit_predict_batches": Row({"limit_predict_batches": 1}),
    "overfit_batches": Row({"overfit_batches": 1}, check=saw("batches", 4)),
    "val_check_interval": Row({"val_check_interval": 0.5}),
    "check_val_every_n_epoch": Row({"check_val_every_n_epoch": 2}),
    "num_sanity_val_steps": Row({"num_sanity_val_steps": 1}, check=saw("validations", 2)),
    "log_every_n_steps": Row({"log_every_n_steps": 1, "logger": pl.loggers.CSVLogger(HERE)}),
    "enable_checkpointing": Row({"enable_checkpointing": True, "default_root_dir": HERE / "root"}, differs=True),
    "enable_progress_bar": Row({"enable_progress_bar": True}, differs=True),
    "enable_model_summary": Row({"enable_model_summary": True}),
    "accumulate_grad_batches": Row({"accumulate_grad_batches": 2}, check=lambda t, c, lines: t.global_step == 8),
    "gradient_clip_val": Row({"gradient_clip_val": 0.1}),
    "gradient_clip_algorithm": Row({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "deterministic": Row({"deterministic": "warn"}),
    "benchmark": Row({"benchmark": True}),
    "inference_mode": Row({"inference_mode": False}),
    "use_distributed_sampler": Row({"use_distributed_sampler": True}, differs=True, check=saw("batches", 16)),
    "profiler": Row({"profiler": pl.profilers.SimpleProfiler(HERE, "profile")}),
    "detect_anomaly": Row({"detect_anomaly": True}),
    "barebones": Row({"barebones": True}, differs=True),
    "plugins": Row({"plugins": [DataCenterEnvironment(CENTER)]}, differs=True),
    "sync_batchnorm": Row({"sync_batchnorm": True}, differs=True),
    "reload_dataloaders_every_n_epochs": Row({"reload_dataloaders_every_n_epochs": 1}),
    "default_root_dir": Row({"default_root_dir": HERE / "root"}),
    "enable_autolog_hparams": Row({"enable_autolog_hparams": False}),
    "model_registry": Row({"model_registry": None}),
}
CALLBACKS = {
    "BackboneFinetuning": Row(
        callbacks=lambda: [CB.BackboneFinetuning(2, backbone_initial_lr=0.01, verbose=False)],
        module=Tuned,
        differs=True,
    ),
    "BaseFinetuning": Row(callbacks=lambda: [Unfreezes()], module=lambda: toy.Toy(toy.network(0)), differs=True),
    "BasePredictionWriter": Row(callbacks=lambda: [Writes("epoch")]),
    "BatchSizeFinder": Row(
        callbacks=lambda: [CB.BatchSizeFinder(steps_per_trial=1, max_trials=1)],
        module=Searched,
        loaders=False,
        differs=True,
    ),
    "Callback": Row(callbacks=lambda: [CB.Callback()]),
    "Checkpoint": Row({"enable_checkpointing": True}, callbacks=lambda: [CB.Checkpoint()]),
    "DeviceStatsMonitor": Row({"logger": pl.loggers.CSVLogger(HERE)}, lambda: [CB.DeviceStatsMonitor(cpu_stats=False)]),
    "EarlyStopping": Row(
        {"max_epochs": 20},
        lambda: [CB.EarlyStopping("val_loss", patience=2, min_delta=1e9)],
        {"rounds": None, "local_epochs_rule": "fle"},
        differs=True,
        rounds=3,
    ),
    "GradientAccumulationScheduler": Row(
        callbacks=lambda: [CB.GradientAccumulationScheduler({2: 2})], check=lambda t, c, lines: t.global_step == 12
    ),
    "LambdaCallback": Row(callbacks=lambda: [CB.LambdaCallback()]),
    "LearningRateFinder": Row(
        callbacks=lambda: [CB.LearningRateFinder(num_training_steps=20)],
        rules={"learning_rate": None},
        module=Searched,
        loaders=False,
        differs=True,
        check=one_rate,
    ),
    "LearningRateMonitor": Row({"logger": pl.loggers.CSVLogger(HERE)}, lambda: [CB.LearningRateMonitor()]),
    "ModelCheckpoint": Row(
        {"enable_checkpointing": True},
        lambda: [CB.ModelCheckpoint(HERE / "kept", monitor="val_loss")],
        differs=True,
        check=kept,
    ),
    "ModelPruning": Row(
        callbacks=lambda: [CB.ModelPruning("l1_unstructured", amount=0.5, use_global_unstructured=True)], differs=True
    ),
    "ModelSummary": Row({"enable_model_summary": True}, lambda: [CB.ModelSummary()]),
    "OnExceptionCheckpoint": Row({"enable_checkpointing": True}, lambda: [CB.OnExceptionCheckpoint(HERE)]),
    "ProgressBar": Row({"enable_progress_bar": True}, lambda: [CB.ProgressBar()], differs=True),
    "RichModelSummary": Row({"enable_model_summary": True}, lambda: [CB.RichModelSummary()]),
    "RichProgressBar": Row({"enable_progress_bar": True}, lambda: [CB.RichProgressBar()], differs=True),
    "StochasticWeightAveraging": Row(callbacks=lambda: [CB.StochasticWeightAveraging(0.01)]),
    "SpikeDetection": Row(callbacks=lambda: [CB.SpikeDetection()]),
    "ThroughputMonitor": Row(
        {"logger": pl.loggers.CSVLogger(HERE)}, lambda: [CB.ThroughputMonitor(lambda batch: len(batch[0]))]
    ),
    "Timer": Row(callbacks=lambda: [CB.Timer(timedelta(hours=1))]),
    "TQDMProgressBar": Row({"enable_progress_bar": True}, lambda: [CB.TQDMProgressBar()], differs=True),
    "EMAWeightAveraging": Row(callbacks=lambda: [CB.EMAWeightAveraging()], differs=True),
    "WeightAveraging": Row(callbacks=lambda: [CB.WeightAveraging()], differs=True),
}


def tried(name: str, row: Row) -> str:
    rules = {"rounds": 2, "local_epochs": 2, "epsilon": 0.0} | row.rules
    colearning = CoLearning(run_dir=OUT / "runs" / name, centers=CENTER, **rules)
    made, module = row.callbacks(), row.module()
    try:
        trainer = toy.trainer(CENTER, colearning, *made, Saw(), **row.settings)
        trainer.fit(module, *([toy.loader(CENTER.index)] * 2 if row.loaders else ()))
    except Exception as error:
        own = type(error).__module__.startswith("colearn_hpc")
        return f"refused: {error}" if own else f"wrong: {traceback.format_exc()}"
    WORLD.Barrier()
    lines = [json.loads(line) for line in (OUT / "runs" / name / "rounds.jsonl").read_text().splitlines()]
    digest = sha256(b"".join(p.detach().float().numpy().tobytes() for p in module.parameters())).digest()
    if row.alike and len(set(WORLD.allgather(digest))) > 1:
        return "wrong: the models differ"
    if len(lines) != row.rounds:
        return f"wrong: {len(lines)} rounds"
    found = row.check(trainer, made, lines)
    return f"wrong: the check failed: {found}" if found is not True else "differently" if row.differs else "works"


toy.quiet()
found = {}
for name, row in (FLAGS | CALLBACKS).items():
    if len(sys.argv) > 2 and name not in sys.argv[2:]:
        continue
    pl.seed_everything(1, verbose=False)
    answers = WORLD.gather(tried(name, row))
    if answers:
        found[name] = next((answer for answer in answers if answer.startswith("wrong")), answers[0])
if CENTER.is_first:
    (OUT / "rows.json").write_text(json.dumps(found, indent=1))
