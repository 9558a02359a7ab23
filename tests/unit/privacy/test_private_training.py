"""DP-SGD under Lightning in one process: what it computes, spends, refuses, and how it goes on after a kill."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from opacus.accountants import RDPAccountant
from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.site_random import Noise, poisson_batch
from colearn_hpc.trainer.optimizers import reset_state
from colearn_hpc.trainer.private_training import PrivateTraining

KEY = bytes(range(32))
EXAMPLES, BATCH, STEPS = 60, 15, 4
GENERATOR = torch.Generator().manual_seed(1)
DATA = TensorDataset(torch.randn(EXAMPLES, 4, generator=GENERATOR), torch.arange(EXAMPLES) % 3)


def network():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


class Task(pl.LightningModule):
    def __init__(self, net=None, optimizer=torch.optim.SGD, **settings):
        super().__init__()
        self.net = network() if net is None else net
        self.optimizer, self.settings = optimizer, {"lr": 0.1} | settings

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), **self.settings)

    def train_dataloader(self):
        return DataLoader(DATA, batch_size=BATCH, shuffle=True)


class KilledError(Exception):
    pass


class Kill(Callback):
    """Writes a checkpoint after a step, and dies after another."""

    def __init__(self, path, saved_after, killed_after):
        self.path, self.saved_after, self.killed_after = path, saved_after, killed_after

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.saved_after:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.killed_after:
            raise KilledError


def privately(noise=1.0, key=KEY, **settings):
    """A callback with a key that the test knows."""
    private = PrivateTraining(noise=noise, **{"delta": 1e-3, "budget": 100.0} | settings)
    if key is not None:
        private.load_state_dict({"key": key.hex(), "weights": "", "accountant": {"history": []}})
    return private


def fit(task, *callbacks, path=None, **settings):
    settings = {"max_epochs": 3} | settings
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), **dict.fromkeys(quiet, False) | settings
    )
    trainer.fit(task, ckpt_path=path)
    return trainer


def weights(task):
    return torch.cat([p.detach().reshape(-1) for p in task.parameters()])


def noise_of(private, step, batch=BATCH):
    """What a callback that has trained one epoch drew in a step of it."""
    weights, settings = bytes.fromhex(private.state_dict()["weights"]), (private.noise, private.clip, EXAMPLES, batch)
    return Noise(KEY, step, weights + repr(settings).encode())


def opacus_epsilon(noise, steps, delta):
    accountant = RDPAccountant()
    accountant.history = [(noise, BATCH / EXAMPLES, steps)]
    return accountant.get_epsilon(delta)


def test_one_step_by_hand():
    """Clip each record's gradient, add them up, add noise, divide by the expected batch."""
    task, private = Task(), privately(noise=0.7, clip=0.3)
    before = network()
    fit(task, private, max_steps=1)
    parameters = list(before.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    batch = poisson_batch(KEY, 0, EXAMPLES, BATCH / EXAMPLES)
    assert batch
    for index in batch:
        x, y = DATA[index]
        gradients = torch.autograd.grad(cross_entropy(before(x[None]), y[None]), parameters)
        norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
        assert norm > 0.3, "else nothing is clipped"
        for t, g in zip(total, gradients, strict=True):
            t += g * 0.3 / norm
    noise = noise_of(private, 0)
    for p, t, trained in zip(parameters, total, task.parameters(), strict=True):
        drawn = torch.from_numpy(noise.normal(p.numel())).view_as(p)
        expected = p - 0.1 * (t + 0.7 * 0.3 * drawn) / BATCH
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)


def test_epsilon_is_opacus_own():
    private = privately(noise=0.9)
    assert private.epsilon() == 0
    fit(Task(), private)
    assert private.epsilon() == pytest.approx(opacus_epsilon(0.9, 3 * STEPS, 1e-3), abs=1e-9)


def test_names_and_other_attributes_stay_as_they_were():
    """Averaging goes by ``named_parameters``; a GradSampleModule would put ``_module.`` before each name."""
    task, seen = Task(), []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.extend(name for name, _ in module.named_parameters())

    fit(task, privately(), Look())
    assert seen == [name for name, _ in Task().named_parameters()] == list(task.state_dict())
    assert not any(hasattr(p, "grad_sample") for p in task.parameters())


def test_two_starts_of_one_configuration_differ(tmp_path):
    found = []
    for _ in range(2):
        pl.seed_everything(3, verbose=False)
        task = Task()
        fit(task, privately(key=None), max_epochs=1)
        found.append(weights(task))
    assert torch.count_nonzero(found[0] != found[1]) == len(found[0])


@pytest.mark.parametrize(("saved_after", "killed_after"), [(4, 6), (5, 5), (6, 9)], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_resumed_run_has_the_same_bits(tmp_path, saved_after, killed_after, optimizer):
    """Killed in mid-epoch: steps after the checkpoint are made again, release the same, and count once."""
    whole, private = Task(optimizer=optimizer), privately()
    fit(whole, private)
    with pytest.raises(KilledError):
        fit(Task(optimizer=optimizer), privately(), Kill(tmp_path / "point.ckpt", saved_after, killed_after))
    torch.load(tmp_path / "point.ckpt", weights_only=True)
    again, resumed = Task(optimizer=optimizer), privately(key=None)
    pl.seed_everything(99, verbose=False)
    fit(again, resumed, path=tmp_path / "point.ckpt")
    assert torch.equal(weights(whole), weights(again))
    assert resumed.epsilon() == private.epsilon()
    assert resumed.epsilon() == pytest.approx(opacus_epsilon(1.0, 3 * STEPS, 1e-3), abs=1e-9)


@pytest.mark.parametrize("changed", [{"noise": 2.0}, {"clip": 2.0}, {"net": 7}], ids=str)
def test_another_gradient_has_other_noise(changed):
    """A run that goes back and comes by with other weights or settings must not use noise again."""

    class Spy(Callback):
        def on_train_start(self, trainer, module):
            self.drawn = trainer.optimizers[0]._noise_of_step

        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 1:
                self.noise = self.drawn().normal(100)

    drawn = []
    for settings in ({}, changed):
        task, spy = Task(), Spy()
        if "net" in settings:
            torch.manual_seed(settings["net"])
            task.net[0].reset_parameters()
        fit(task, privately(**{k: v for k, v in settings.items() if k != "net"}), spy, max_epochs=1)
        drawn.append(spy.noise)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.5


def test_the_key_is_in_the_callback_state_alone(tmp_path):
    trainer = fit(Task(), privately(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "resume.ckpt")
    trainer.save_checkpoint(tmp_path / "shared.ckpt", weights_only=True)
    assert KEY.hex().encode() in (tmp_path / "resume.ckpt").read_bytes()
    assert KEY.hex().encode() not in (tmp_path / "shared.ckpt").read_bytes()


def test_the_budget_is_kept_to_the_step(caplog):
    budget = opacus_epsilon(1.0, 6, 1e-3) + 1e-6
    private = privately(budget=budget)
    with caplog.at_level(logging.WARNING, "colearn_hpc"):
        trainer = fit(Task(), private, max_epochs=10)
    assert trainer.global_step == 6  # in the middle of the second epoch
    assert private.epsilon() <= budget < opacus_epsilon(1.0, 7, 1e-3)
    assert "one more step would pass the budget" in caplog.text
    assert private.epochs_left(STEPS) == 0


def test_a_spent_budget_trains_nothing_more(tmp_path):
    budget = opacus_epsilon(1.0, 4, 1e-3) + 1e-6
    fit(Task(), privately(budget=budget), max_epochs=1).save_checkpoint(tmp_path / "point.ckpt")
    task = Task()
    trainer = fit(task, privately(key=None, budget=budget), path=tmp_path / "point.ckpt", max_epochs=5)
    assert trainer.global_step == 4


def test_a_trainer_that_must_go_on_is_ended():
    with pytest.raises(ConfigurationError, match="allows 2 steps, and the Trainer goes on; leave out min_epochs"):
        fit(Task(), privately(budget=opacus_epsilon(1.0, 2, 1e-3) + 1e-6), min_epochs=3)


def test_epochs_left():
    private = privately(budget=opacus_epsilon(1.0, 5 * STEPS + 3, 1e-3) + 1e-6)
    fit(Task(), private, max_epochs=2)
    assert private.steps_per_epoch == STEPS
    assert private.epochs_left(STEPS) == 3


def test_a_round_may_forget_the_optimizer_state():
    """``reset_state`` clears what the optimizer inside has learnt; clipping and noise stay around it."""

    class Reset(Callback):
        def on_train_epoch_end(self, trainer, module):
            assert trainer.optimizers[0].state
            reset_state(trainer.optimizers)
            assert not trainer.optimizers[0].original_optimizer.state

    private = privately()
    fit(Task(momentum=0.9), private, Reset())
    assert private.accountant.steps == 3 * STEPS


def test_a_batch_without_records_is_noise_alone():
    class Small(Task):
        def train_dataloader(self):
            return DataLoader(DATA, batch_size=1)

    empty = next(step for step in range(EXAMPLES) if not poisson_batch(KEY, step, EXAMPLES, 1 / EXAMPLES))
    task, seen = Small(), {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen[trainer.global_step] = weights(task)

    private = privately()
    fit(task, private, Look(), max_epochs=1)
    drawn = noise_of(private, empty, batch=1)
    noise = np.concatenate([drawn.normal(p.numel()) for p in task.parameters()])
    torch.testing.assert_close(seen[empty] - seen[empty + 1], torch.from_numpy(noise) * 0.1, rtol=1e-3, atol=1e-6)


def test_mixed_precision():
    private = privately()
    fit(Task(), private, precision="bf16-mixed", max_epochs=1)
    assert private.accountant.steps == STEPS


class Normed(nn.Sequential):
    def __init__(self, norm):
        super().__init__(nn.Linear(4, 8), norm, nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False)], ids=["affine", "plain"])
def test_batch_norm_is_refused(norm):
    with pytest.raises(ConfigurationError, match=r"layer net.1 \(BatchNorm1d\) mixes the records.*replace_layers=True"):
        fit(Task(Normed(norm)), privately())


def test_batch_norm_is_replaced():
    task = Task(Normed(nn.BatchNorm1d(8)))
    fit(task, privately(replace_layers=True))
    assert isinstance(task.net[1], nn.GroupNorm)


class Manual(Task):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Part(Task):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1)


class Buffered(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("seen", torch.zeros(1))


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.net(x)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (lambda: Task(optimizer=torch.optim.LBFGS), {}, "does not go with LBFGS.*use SGD or Adam"),
        (Part, {}, "parameter net.2.weight is trainable, but not in the optimizer; freeze it"),
        (lambda: Task(Buffered()), {}, "keep buffers in layers without trainable parameters"),
        (lambda: Task(Idle()), {}, "parameter net.idle.weight got no gradient for single records"),
        (lambda: Task(nn.Sequential(Remembers())), {}, "buffer net.0.mean changes in training"),
        (Manual, {}, "manual optimization; let Lightning step"),
        (Task, {"gradient_clip_val": 1.0}, "gradient_clip_val=1.0.*leave it out"),
        (Task, {"accumulate_grad_batches": 2}, "accumulated gradients; leave accumulate_grad_batches out"),
        (Task, {"overfit_batches": 2}, "use limit_train_batches"),
        (Task, {"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs"),
        (Task, {"strategy": "ddp"}, "strategy=DDPStrategy.*PrivateDDPStrategy"),
    ],
)
def test_what_would_not_be_private_is_refused_first(task, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(task(), privately(), **settings)


def test_a_schedule_of_accumulation_is_refused():
    with pytest.raises(ConfigurationError, match="accumulated gradients"):
        fit(Task(), GradientAccumulationScheduler({1: 2}), privately())


def test_delta_must_be_below_one_over_the_examples():
    with pytest.raises(ConfigurationError, match=r"delta=0.02 must lie between 0 and 1 / examples, here 0.02"):
        fit(Task(), privately(delta=0.02))


@pytest.mark.parametrize("wrong", [{"noise": 0}, {"noise": 1, "clip": -1}, {"noise": 1, "budget": float("inf")}])
def test_impossible_settings(wrong):
    with pytest.raises(ConfigurationError, match="must be a number above 0"):
        PrivateTraining(**wrong)


def test_without_opacus(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.validators", None)
    with pytest.raises(
        ConfigurationError, match=r"Opacus, which is not installed: pip install 'colearn_hpc\[privacy\]'"
    ):
        PrivateTraining(noise=1.0)


def test_importing_opacus_leaves_the_root_logger_alone():
    """Opacus configures it at import; a fresh interpreter shows it."""
    code = "import logging; from colearn_hpc.privacy.opacus_import import import_opacus; import_opacus()"
    code += "; print(logging.getLogger().handlers)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
