"""Validation by rounds, in one data center: the bits of plain Lightning, and what is refused."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer.validation import means_of

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(pl.LightningModule):
    """Draws in training and in validation: one validation more or less would change all that follows."""

    def __init__(self, interval="epoch", frequency=1, plateau=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.plateau, self.interval, self.frequency = plateau, interval, frequency

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        torch.rand(1)
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if not self.plateau:
            return optimizer
        scheduler = {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), "monitor": "val_loss"}
        return [optimizer], [scheduler | {"interval": self.interval, "frequency": self.frequency}]


def loader(shuffle=True):
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8, shuffle=shuffle)


def trained(*callbacks, **settings):
    pl.seed_everything(1, verbose=False)
    trainer, net = pl.Trainer(**QUIET | {"max_epochs": 6, "callbacks": list(callbacks)} | settings), Net()
    trainer.fit(net, loader(), loader(shuffle=False))
    return trainer, [*net.state_dict().values(), torch.get_rng_state(), trainer.callback_metrics["val_loss"]]


@pytest.mark.parametrize(("validation", "every"), [("round", 2), ("epoch", 1), ("lightning", 1)])
def test_one_data_center_has_the_bits_of_plain_lightning(tmp_path, validation, every):
    """... that validates in the same epochs."""
    rules = {"schedule": "none", "local_epochs": 2, "local_epochs_rule": "fle"}
    ours, found = trained(CoLearning(run_dir=tmp_path, validation=validation, **rules))
    _, expected = trained(check_val_every_n_epoch=every)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert ours.check_val_every_n_epoch == 1


def test_a_trainer_with_the_callback_validates_without_a_fit(tmp_path):
    trainer = pl.Trainer(**QUIET, callbacks=[CoLearning(rounds=1, run_dir=tmp_path)])
    (found,) = trainer.validate(Net(), loader(), verbose=False)
    assert set(found) == {"val_loss"}


@pytest.mark.parametrize(
    ("callback", "settings", "says"),
    [
        (None, {"check_val_every_n_epoch": 2}, r"check_val_every_n_epoch=2\): with validation=\"round\""),
        (None, {"val_check_interval": 0.5}, r"val_check_interval=0\.5"),
        (None, {"val_check_interval": 1}, r"val_check_interval=1\)"),
        (None, {"check_val_every_n_epoch": None, "val_check_interval": 8}, "leave check_val_every_n_epoch out"),
        (ModelCheckpoint(monitor="val_loss", every_n_train_steps=3), {}, "every_n_train_steps or train_time_interval"),
        (EarlyStopping("local/val_loss"), {}, "monitor 'val_loss'"),
    ],
)
def test_what_is_refused_says_what_to_write(tmp_path, callback, settings, says):
    callbacks = [CoLearning(rounds=1, run_dir=tmp_path), *([callback] if callback else [])]
    trainer = pl.Trainer(**QUIET | {"callbacks": callbacks, "enable_checkpointing": True} | settings)
    with pytest.raises(ConfigurationError, match=says) as raised:
        trainer.fit(Net(), loader(), loader())
    assert "leave" in str(raised.value) or "monitor 'val_loss'" in str(raised.value)


@pytest.mark.parametrize(
    ("net", "rules", "says"),
    [
        ({"interval": "step"}, {}, "it is stepped once a round"),
        ({"frequency": 2}, {}, "it is stepped once a round"),
        ({}, {"on_failure": "continue_without"}, 'use on_failure="stop"'),
    ],
)
def test_schedulers_that_cannot_decide_alike(tmp_path, net, rules, says):
    colearning = CoLearning(rounds=1, schedule="none", run_dir=tmp_path, **rules)
    trainer = pl.Trainer(**QUIET, callbacks=[colearning])
    with pytest.raises(ConfigurationError, match=says):
        trainer.fit(Net(plateau=True, **net), loader(), loader())


def test_a_mean_is_weighted_by_examples():
    one, other = {"loss": [1.0, 30], "acc": [0.1, 30]}, {"loss": [4.0, 10]}
    assert means_of([one, other]) == {"loss": 1.75, "acc": 0.1}
    # Equal to the bit where all measured the same, and where nobody knows how many examples there were.
    assert means_of([{"loss": [0.1, n]} for n in (3, 7, 9)]) == {"loss": 0.1}
    assert means_of([{"loss": [1.0, 0]}, {"loss": [2.0, 0]}]) == {"loss": 1.5}


@pytest.mark.parametrize("said", [[], {"loss": 1.0}, {"loss": ["1", 2]}, {"loss": [1.0, -1]}, {3: [1.0, 1]}])
def test_what_is_no_metric_is_refused(said):
    with pytest.raises(ValueError, match="no metric"):
        means_of([said])
