"""One data center of one rank, in this process: what a fit leaves, and what it does in a folder that holds a run."""

import json
import logging
import time

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.errors import DataError
from colearn_hpc.trainer.fingerprint import check_lengths


class Net(pl.LightningModule):
    def __init__(self, optimizes=True, sparse=False, fails=False):
        super().__init__()
        self.layer, self.optimizes, self.fails = torch.nn.Linear(3, 2), optimizes, fails
        if sparse:
            self.register_buffer("adjacency", torch.eye(3).to_sparse())

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        if self.fails:
            raise ValueError("no such optimizer")
        return torch.optim.SGD(self.parameters(), 0.1) if self.optimizes else None


def trained(colearning, model, path=None, weights_only=None, before=(), after=(), supervised=True):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    callbacks = [*before, colearning, *after]
    trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, enable_checkpointing=False, **options)
    loader = DataLoader(TensorDataset(torch.ones(8, 3)), 4)
    run = colearning.fit if supervised else lambda trainer, *arguments, **more: trainer.fit(*arguments, **more)
    run(trainer, model, ckpt_path=path, train_dataloaders=loader, weights_only=weights_only)
    return trainer


def fit(folder, model, resume=False, path=None, weights_only=None, **arguments):
    colearning = CoLearning(local_epochs=1, run_dir=folder, **{"rounds": 2} | arguments)
    return trained(colearning, model, colearning.resume_path() if resume else path, weights_only)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_who_may_read_what(tmp_path):
    run = tmp_path / "run"
    fit(run, Net())
    own = run / "centers" / "dc0"
    assert oct(own.stat().st_mode & 0o777) == "0o700"
    assert {oct(path.stat().st_mode & 0o777) for path in own.iterdir()} == {"0o600"}
    others = run / "status" / "dc0.json"
    assert oct(others.stat().st_mode & 0o777) == "0o644"
    assert "loss" not in json.loads(others.read_text()) and "loss" in json.loads((own / "status.json").read_text())
    assert not [path.name for path in run.rglob(".*")] and not (run / "writer.json").exists()


def test_who_fails_at_the_end_leaves_a_finished_run(tmp_path):
    """... before ours has had its say: nothing is left to be trained, and the others may be gone."""

    class Fails(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="of the user's own"):
        trained(CoLearning(local_epochs=1, rounds=2, run_dir=tmp_path / "run"), Net(), before=[Fails()])
    assert summary(tmp_path / "run")["status"] == "finished" and summary(tmp_path / "run")["rounds"] == 2


@pytest.mark.parametrize("model", [{"optimizes": False}, {"sparse": True}])
def test_as_in_plain_lightning(tmp_path, model):
    fit(tmp_path / "run", Net(**model))
    assert summary(tmp_path / "run")["status"] == "finished"


def test_a_finished_run_says_so_and_stays_finished(tmp_path, caplog):
    run, began = tmp_path / "run", time.monotonic()
    fit(run, Net())
    before = summary(run)
    with caplog.at_level(logging.WARNING, "colearn_hpc"):
        trainer = fit(run, Net(), resume=True)
    assert f"{run} is finished after 2 rounds; raise rounds or choose another folder" in caplog.text
    assert trainer.global_step == 4 and summary(run)["status"] == "finished"
    with pytest.raises(ValueError, match="no such optimizer"):
        fit(run, Net(fails=True), resume=True, restarts=0)
    assert summary(run)["status"] == "finished" and summary(run)["rounds"] == before["rounds"]
    passed = time.monotonic() - began
    assert summary(run)["seconds"] <= passed  # and not this machine's uptime


class Ranks:
    """A place whose data center has ranks with so many batches."""

    def __init__(self, *batches):
        self.site, self.center, self.name, self.batches = self, self, "dc1", batches

    def largest(self, *numbers):
        return [max(self.batches), max(-number for number in self.batches)]


@pytest.mark.parametrize(("batches", "differ"), [((4, 4), False), ((4, 5), True), ((0, 3), True), ((-1, -1), False)])
def test_unequal_loaders_inside_a_data_center(batches, differ):
    trainer = type("Trainer", (), {"num_training_batches": float(batches[0])})()
    if not differ:
        check_lengths(trainer, Ranks(*batches))
        return
    with pytest.raises(DataError, match=f"dc1 have between {min(batches)} and {max(batches)} batches in a local epoch"):
        check_lengths(trainer, Ranks(*batches))
