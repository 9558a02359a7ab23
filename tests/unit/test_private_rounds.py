"""Rounds that are trained privately: ε in every line, and no more local epochs than the budget allows."""

import json
import logging

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.cli.watch import view
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.accountant import Accountant
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.studies.run_folder import read_run
from colearn_hpc.studies.run_report import _facts
from colearn_hpc.trainer.privacy_budget import check_monitors, epochs_left, epsilon_of
from colearn_hpc.trainer.private_training import PrivateTraining

EXAMPLES, BATCH, NOISE, DELTA, EPOCHS = 40, 10, 1.5, 1e-3, 5


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = TensorDataset(torch.randn(EXAMPLES, 4), torch.arange(EXAMPLES) % 3)
        return DataLoader(data, batch_size=BATCH)


def spent_by(epochs):
    accountant = Accountant(DELTA)
    for _ in range(epochs * EXAMPLES // BATCH):
        accountant.step(NOISE, BATCH / EXAMPLES)
    return accountant.epsilon()


def trained(folder, **unit):
    """T doubles whenever it can; the budget is that of five local epochs."""
    private = PrivateTraining(noise=NOISE, delta=DELTA, budget=spent_by(EPOCHS) + 1e-9)
    colearning = CoLearning(epsilon=1e9, rounds=10, run_dir=folder, **unit)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[private, colearning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("colearn_hpc").addHandler(handler)
    trainer.fit(Task())
    logging.getLogger("colearn_hpc").removeHandler(handler)
    return folder, private, records


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), local_epochs=1)


def test_every_line_tells_what_is_spent(run):
    folder, private, _ = run
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    done = [line["epochs_done"] for line in lines]
    assert [line["centers"][0]["epsilon"] for line in lines] == pytest.approx([spent_by(n) for n in done], abs=1e-9)
    assert private.epsilon() <= private.budget and done[-1] == EPOCHS


def test_t_is_bounded_by_what_the_budget_allows_and_says_so(run):
    folder, _, said = run
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["local_epochs"] for line in lines] == [1, 2, 2]
    expected = "round 2: T would be 4, and a data center's privacy budget allows 2 more local epochs: T is 2"
    assert expected in said
    assert any("one more step would pass the budget" in text for text in said)


def test_in_steps_the_budget_is_spent_to_the_last_one(tmp_path):
    _, private, said = trained(tmp_path, local_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["local_epochs"] for line in lines] == [3, 6, 11]
    assert "round 2: T would be 12, and a data center's privacy budget allows 11 more steps: T is 11" in said
    assert private.epsilon() == pytest.approx(spent_by(EPOCHS), abs=1e-9)


def test_watch_and_report_show_it(run):
    folder, private, _ = run
    page = view(folder, 0.0)
    assert "ε spent" in page and f"{private.epsilon():.4f}" in page
    facts = {fact.name: fact.text for fact in _facts(read_run(folder), "")}
    assert facts["differential privacy"] == f"dc0 spent ε = {private.epsilon():.4g}"


def test_without_private_training_nothing_is_spent():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    assert epsilon_of(trainer) is None and epochs_left(trainer) is None
    assert CenterReport("dc0").to_plain()["epsilon"] is None


# --- what stays home with secure sums -----------------------------------------------------------------


def settings_of(**privacy):
    return CoLearning(privacy={"secure": True} | privacy).settings


REPORT = CenterReport("dc0", 64, 1.5, 0.5, 0.25, 400, 0.125, {"loss": 2.0}, {"val_loss": 1.0}, steps=8, epsilon=1.0)


def test_what_is_measured_on_private_data_is_told_to_nobody():
    told = REPORT.to_be_told(settings_of())
    assert (told.examples, told.steps, told.local_metrics, told.shared_metrics) == (0, 0, {}, {})
    assert told.divergence != told.divergence and (told.train_seconds, told.bytes_sent, told.epsilon) == (1.5, 400, 1.0)
    assert "examples 64, divergence 0.125, loss nan, local loss 2, val_loss 1" in REPORT.private_text()


def test_what_a_data_center_says_otherwise():
    assert REPORT.to_be_told(settings_of(share_metrics=True)) == REPORT
    assert REPORT.to_be_told(settings_of(public_validation=True)).shared_metrics == {"val_loss": 1.0}
    assert REPORT.to_be_told(Settings(schedule=None, rule=None)) == REPORT


def test_monitors_are_refused():
    monitor = pl.callbacks.EarlyStopping(monitor="val_loss")
    trainer = pl.Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigurationError, match=r"EarlyStopping\(monitor='val_loss'\) .* public_validation=True"):
        check_monitors(trainer, settings_of())
    for said in ("share_metrics", "public_validation"):
        check_monitors(trainer, settings_of(**{said: True}))
