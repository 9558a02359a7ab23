"""Streaming DiLoCo in one data center, in this process: what is dealt, what a run leaves, and what is refused."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning, OuterSGD
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer.streaming import fragments_of


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = body()

    def training_step(self, batch, batch_idx):
        return (self.body(batch[0]) - batch[0][:, :2]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Stops(Callback):
    """Ends the run at an epoch's end, as EarlyStopping does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop |= trainer.current_epoch == self.epoch


class Freezes(Callback):
    """A layer, when an epoch begins."""

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.body[3].requires_grad_(trainer.current_epoch < 2)


def fit(folder, *callbacks, fragments=2, outer=None, resume=False, limits=None, **settings):
    """The module that a run of one data center leaves."""
    settings = {"rounds": None if limits else 4, "optimizer_state": "keep"} | settings
    exchange = None if fragments is None else {"fragments": fragments}
    rules = {"schedule": "constant", "local_epochs_rule": "fle", "outer_optimizer": outer or OuterSGD()}
    colearning = CoLearning(local_epochs=1, run_dir=folder, exchange=exchange, **rules | settings)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"max_epochs": -1} | (limits or {})
    trainer = pl.Trainer(accelerator="cpu", callbacks=[*callbacks, colearning], enable_checkpointing=False, **options)
    module = Net()
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    path = colearning.resume_path() if resume else None
    colearning.fit(trainer, module, ckpt_path=path, train_dataloaders=DataLoader(TensorDataset(inputs), 4))
    return module


def same(one, other, **near):
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], msg=key, **near or {"rtol": 0, "atol": 0})


def test_buffers_are_where_their_layer_is():
    found = fragments_of(body(), frozenset(), 2)
    names = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert found == [{"0.weight", "0.bias"}, {"1.weight", "1.bias", "3.weight", "3.bias"} | names]


def test_what_stays_at_home_is_in_no_fragment():
    net = body()
    found = fragments_of(net, frozenset({"3.weight"}), 2)
    assert frozenset().union(*found) == net.state_dict().keys() - {"3.weight"}


def with_and_without(folder, **rules):
    """What a run leaves with fragments and without, where an outer step ends at the data center's own model."""
    rules |= {"outer": OuterSGD(1.0, 0.0, nesterov=False)}
    return [fit(folder / str(fragments), fragments=fragments, **rules).state_dict() for fragments in (2, None)]


@pytest.mark.parametrize("limits", [None, {"max_epochs": 3}, {"max_steps": 6}, {"max_steps": 5}])
def test_all_fragments_are_averaged_at_the_runs_end(tmp_path, limits):
    """... also where it comes with a round's last step, or in the middle of a round."""
    same(*with_and_without(tmp_path, limits=limits), rtol=1e-5, atol=1e-6)


def test_state_is_reset_where_weights_were_averaged(tmp_path):
    with pytest.raises(AssertionError):
        same(*with_and_without(tmp_path, optimizer_state="reset"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [[], [Stops(2)]], ids=["rounds", "stopped"])
def test_the_result_is_the_shared_model(tmp_path, stop):
    found = fit(tmp_path / "run", *stop)
    shared = torch.load(tmp_path / "run" / "shared.ckpt", weights_only=True)["state_dict"]
    same(found.state_dict(), shared)


def test_points_hold_the_local_model(tmp_path):
    """The shared one is another, and the same run goes on from there to the bit."""
    fit(tmp_path / "run", Stops(1))
    shared = torch.load(tmp_path / "run" / "shared.ckpt", weights_only=True)["state_dict"]
    (newest,) = sorted((tmp_path / "run" / "centers" / "dc0").glob("*.ckpt"))[-1:]
    local = torch.load(newest, weights_only=True)["state_dict"]
    assert any(not torch.equal(local[key], shared[key]) for key in shared)
    resumed, whole = fit(tmp_path / "run", resume=True), fit(tmp_path / "whole")
    same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda run: fit(run, fragments=7), "exchange: 7 fragments of a model with 6 tensors; use 1 to 6 fragments"),
        (lambda run: fit(run, Freezes()), "fragments=2 deals the parameters to fragments once, and body.3.bias was"),
        (
            lambda run: (fit(run), fit(run, fragments=3, rounds=6, resume=True)),
            "fragments=3 is set, and the run began with 2; leave it as it was",
        ),
        (
            lambda run: (fit(run), fit(run, fragments=None, rounds=6, resume=True)),
            "began with exchange: {fragments: 2}, which is not set",
        ),
        (
            lambda run: (fit(run, fragments=None), fit(run, rounds=6, resume=True)),
            "fragments=2 is set, and the run began with none",
        ),
    ],
)
def test_refusals(tmp_path, act, said):
    with pytest.raises(ConfigurationError, match=said.replace("{", "\\{")):
        act(tmp_path / "run")
