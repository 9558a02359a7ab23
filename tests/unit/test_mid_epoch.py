"""A run that stops in mid-epoch and goes on has the bits of one that did not; one data center, shards, workers."""

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from run_folders import lines
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from colearn_hpc import CoLearning
from colearn_hpc.cli.data import main as data
from colearn_hpc.data import ShardDataModule
from colearn_hpc.errors import RESUME_CODE, Interrupted

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(pl.LightningModule):
    """Dropout, and metrics of every kind that an epoch sums up."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))
        self.accuracy = MulticlassAccuracy(10)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("worst", loss, on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class StopAfter(pl.Callback):
    """Signals this process during the batches of the given numbers, counted over the run."""

    def __init__(self, *batches):
        self.batches, self.fired = set(batches), 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx in self.batches:
            self.fired += 1
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    assert data(["digits", "--out", str(folder), "--centers", "10"]) == 0
    return folder


def fit(run, shards, *callbacks, workers=0, resume=False, **settings):
    pl.seed_everything(1, verbose=False)
    net, colearning = Net(), CoLearning(rounds=2, local_epochs=2, local_epochs_rule="fle", run_dir=run)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, callbacks=[colearning, *callbacks], **QUIET | settings)
    module = ShardDataModule(str(shards / "dc0.h5"), batch_size=16, num_workers=workers)
    path = colearning.resume_path() if resume else None
    trainer.fit(net, module, ckpt_path=path)
    metrics = lines(run)[-1]["centers"][0]["local_metrics"]
    return [value.clone() for value in net.state_dict().values()], metrics


def same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1] == other[1] and {"accuracy", "loss_epoch", "worst"} <= one[1].keys()


@pytest.mark.parametrize("settings", [{}, {"workers": 1}, {"limit_train_batches": 5}, {"accumulate_grad_batches": 2}])
def test_the_same_bits(tmp_path, shards, settings):
    whole = fit(tmp_path / "whole", shards, **settings)
    run = tmp_path / "stopped"
    stops = 0
    # In the first epoch, in a later one, at an epoch's last batches.
    for batch in (1, 8, 9, 17):
        callback = StopAfter(batch)
        try:
            left = fit(run, shards, callback, resume=True, **settings)
            break
        except Interrupted as stop:
            assert stop.code == RESUME_CODE and callback.fired == 1
            stops += 1
    else:
        left = fit(run, shards, resume=True, **settings)
    assert stops >= 3
    same(left, whole)


def test_signals_are_given_back(tmp_path, shards):
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    fit(tmp_path, shards)
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)) == before


def test_without_resume_points_signals_are_not_taken(tmp_path, shards):
    before = signal.getsignal(signal.SIGUSR1)
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append(signal.getsignal(signal.SIGUSR1))

    colearning = CoLearning(rounds=1, local_epochs=1, run_dir=tmp_path, resume_points=False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, callbacks=[colearning, Look()], **QUIET)
    trainer.fit(Net(), ShardDataModule(str(shards / "dc0.h5"), batch_size=16))
    assert set(seen) == {before}
