"""Rounds that count optimizer steps, in one data center: plain Lightning's bits, resumes, rates, what is refused."""

import json
import os
import signal
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.algorithm.learning_rate import CyclicalLR, ExponentialLR
from colearn_hpc.algorithm.local_epochs import FixedEpochs, InSteps, QuadraticEpochs
from colearn_hpc.errors import ConfigurationError, DataError, Interrupted

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": -1,
}
PASS = 4  # batches


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Net(pl.LightningModule):
    """Draws in training and in validation."""

    def __init__(self, by_hand=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.automatic_optimization, self.rates, self.expected = not by_hand, [], []

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        optimizer = self.optimizers()
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not self.automatic_optimization:
            for _ in range(2):  # two steps of the optimizer in one of ours
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()
        return loss

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        torch.rand(1)
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        self.expected.append(self.trainer.estimated_stepping_batches)
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def on_train_start(self):
        self.expected.append(self.trainer.estimated_stepping_batches)


def examples(seed=0):
    x = torch.randn(8 * PASS, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


class Stream(IterableDataset):
    """Without a length; each pass in an order that the global generator draws."""

    def __iter__(self):
        data = examples()
        for index in torch.randperm(len(data)).tolist():
            yield data[index]


class Once(IterableDataset):
    """Ends, and has nothing more."""

    def __init__(self):
        self.left = iter(list(examples()))

    def __iter__(self):
        return self.left


LOADERS = {
    "shuffled": lambda: DataLoader(examples(), batch_size=8, shuffle=True),
    "workers": lambda: DataLoader(examples(), batch_size=8, shuffle=True, num_workers=1),
    "sampler": lambda: DataLoader(examples(), batch_size=8, sampler=DistributedSampler(examples(), 1, 0)),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
}


def fit(*callbacks, loader="shuffled", by_hand=False, colearning=None, resume=False, **settings):
    pl.seed_everything(1, verbose=False)
    callbacks = [*callbacks, *([] if colearning is None else [colearning])]
    trainer, net = pl.Trainer(**QUIET | {"callbacks": callbacks} | settings), Net(by_hand)
    path = colearning.resume_path() if resume else None
    trainer.fit(net, LOADERS[loader](), DataLoader(examples(1), batch_size=16), ckpt_path=path)
    return trainer, net


def bits(trainer, net):
    return [*net.state_dict().values(), *trainer.optimizers[0].state_dict()["state"][0].values()]


def same(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(bits(*found), bits(*expected), strict=True))


def in_steps(folder, steps, rounds, rule="fle", **rules):
    return CoLearning(rounds, run_dir=folder, local_steps=steps, local_epochs_rule=rule, **rules)


@pytest.mark.parametrize("steps", [3, 4, 6])
@pytest.mark.parametrize(("loader", "accumulate"), [("shuffled", 1), ("stream", 1), ("workers", 2)])
def test_one_data_center_has_the_bits_of_plain_lightning(tmp_path, loader, accumulate, steps):
    """... that validates after as many steps; a pass over the data ends within a round and between two."""
    settings = {"loader": loader, "accumulate_grad_batches": accumulate}
    ours = fit(colearning=in_steps(tmp_path, steps, 12 // steps, schedule="none"), **settings)
    every = {"val_check_interval": steps * accumulate, "check_val_every_n_epoch": None}
    plain = fit(max_steps=12, **settings, **every)
    assert ours[0].global_step == plain[0].global_step == 12
    same(ours, plain)
    assert torch.equal(ours[0].callback_metrics["val_loss"], plain[0].callback_metrics["val_loss"])
    lines = read_lines(tmp_path / "rounds.jsonl")
    assert [(line["local_epochs"], line["epochs_done"], line["unit"]) for line in lines] == [
        (steps, steps * (i + 1), "steps") for i in range(12 // steps)
    ]
    assert [line["centers"][0]["steps"] for line in lines] == [steps] * (12 // steps)


class StopAfter(pl.Callback):
    """Signals this process during the batches of the given numbers, counted over the run."""

    def __init__(self, *batches):
        self.batches = set(batches)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx in self.batches:
            os.kill(os.getpid(), signal.SIGUSR1)


class Crash(StopAfter):
    """Fails there, as a killed run would: only the resume points written before are left."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx in self.batches:
            raise KeyError("crash")


@pytest.mark.parametrize(("loader", "accumulate"), [("shuffled", 2), ("workers", 1), ("sampler", 1), ("stream", 1)])
def test_resumed_in_mid_round_to_the_bit(tmp_path, loader, accumulate):
    """Stopped in the middle of blocks, between two blocks of a round, between rounds, at a pass's end; and killed."""
    settings = {"loader": loader, "accumulate_grad_batches": accumulate}

    def rounds(folder):  # of 3 steps, then of 6
        return in_steps(folder, 3, 2, rule="ile", epsilon=9.0)

    whole = fit(colearning=rounds(tmp_path / "whole"), **settings)
    assert whole[0].global_step == 9
    for number, stops in enumerate([(*map(StopAfter, (1, 3, 5, 7)),), (Crash(4), StopAfter(5)), (Crash(1),)]):
        run, left = tmp_path / str(number), None
        for stop in stops:
            stop.batches = {at * accumulate for at in stop.batches}
            with pytest.raises((Interrupted, KeyError)):
                fit(stop, colearning=rounds(run), resume=True, **settings)
        left = fit(colearning=rounds(run), resume=True, **settings)
        same(left, whole)
        lines = [read_lines(folder / "rounds.jsonl") for folder in (run, tmp_path / "whole")]
        of_rounds = [
            [(line["local_epochs"], line["learning_rates"], line["centers"][0]["shared_metrics"]) for line in of_run]
            for of_run in lines
        ]
        assert of_rounds[0] == of_rounds[1]
        losses = [line["centers"][0]["loss"] for line in lines[1]]
        assert [line["centers"][0]["loss"] for line in lines[0]] == losses


def test_rates_and_doubling_in_steps(tmp_path):
    """Equation 3's j counts steps; eq. 4 doubles their number; QSR has the paper's unit."""
    _, net = fit(colearning=in_steps(tmp_path / "ile", 2, 2, rule="ile", epsilon=9.0))
    assert net.rates == pytest.approx([0.1 * 0.25 ** (j / t) for t in (2, 4) for j in range(1, t + 1)])
    lines = read_lines(tmp_path / "ile" / "rounds.jsonl")
    assert [line["next_local_epochs"] for line in lines] == [4, 8]
    assert lines[1]["learning_rates"] == pytest.approx([0.1 * 0.25**0.5, 0.1 * 0.25])  # of each block's last step
    qsr = CoLearning(
        3,
        run_dir=tmp_path / "qsr",
        schedule=ExponentialLR(gamma=0.8, every=1),
        local_epochs_rule=InSteps(QuadraticEpochs(initial=2, alpha=0.17)),
    )
    trainer, net = fit(colearning=qsr)
    assert net.rates == pytest.approx([0.1 * 0.8**e for e in range(32)])
    chosen = [line["local_epochs"] for line in read_lines(tmp_path / "qsr" / "rounds.jsonl")]
    assert chosen == [2, 4, 26]  # ⌊(0.17 / η)²⌋ with the η of the last step, 0.1 · 0.8 and 0.1 · 0.8⁵
    assert trainer.global_step == 32


def test_warm_up_in_steps(tmp_path):
    _, net = fit(colearning=in_steps(tmp_path, 2, 3, schedule=CyclicalLR(0.25), warmup_steps=3))
    assert net.rates == pytest.approx(
        [0.1 * 0.25 ** (j / 2) * w for j, w in zip([1, 2] * 3, (0.25, 0.5, 0.75, 1, 1, 1), strict=True)]
    )


@pytest.mark.parametrize("by_hand", [False, True])
def test_where_the_trainer_ends_the_run(tmp_path, by_hand):
    """max_steps is known beforehand, and the last round is shorter; a user's stop in a block ends its round there."""

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop |= trainer.fit_loop.total_batch_idx == 6

    stopped, _ = fit(Stop(), colearning=in_steps(tmp_path / "stopped", 4, None), by_hand=by_hand)
    assert stopped.fit_loop.total_batch_idx == 6
    lines = read_lines(tmp_path / "stopped" / "rounds.jsonl")
    assert [line["epochs_done"] for line in lines] == [4, 7]
    assert [line["centers"][0]["examples"] for line in lines] == [32, 24]
    limited, _ = fit(
        colearning=in_steps(tmp_path / "limited", 4, None), max_steps=12 if by_hand else 6, by_hand=by_hand
    )
    assert limited.fit_loop.total_batch_idx == 5
    lines = read_lines(tmp_path / "limited" / "rounds.jsonl")
    assert [line["epochs_done"] for line in lines] == [4, 6]
    assert lines[1]["local_epochs"] == (4 if by_hand else 2)  # by hand nobody knows how many steps are one of ours


def test_how_long_it_will_be_is_known_where_optimizers_are_made(tmp_path):
    for limit, expected in ((-1, 12), (5, 5)):
        trainer, net = fit(colearning=in_steps(tmp_path / str(limit), 4, 3), loader="stream", max_steps=limit)
        assert net.expected == [expected] * 2 and trainer.max_steps == limit and trainer.max_epochs == -1
    _, net = fit(colearning=in_steps(tmp_path / "ile", 4, 2, rule="ile"), loader="stream")
    assert net.expected == [float("inf")] * 2


def test_a_loader_that_cannot_begin_again(tmp_path):
    LOADERS["once"] = lambda: DataLoader(Once(), batch_size=8)
    with pytest.raises(DataError, match=r"no batch in its pass 1 \(from 0\).*begin anew"):
        fit(colearning=in_steps(tmp_path, 5, 1), loader="once")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"local_steps": 5, "local_epochs": 2}, "local_epochs=2 and local_steps=5 count T in two units"),
        ({"local_steps": 5, "max_local_epochs": 8}, r"max_local_epochs=8 .* \(max_local_steps is in steps\)"),
        ({"max_local_steps": 8}, "max_local_steps=8 bounds local_steps, which is not set"),
        ({"local_steps": 5, "max_local_steps": 2}, "max_local_steps=2 is below local_steps=5"),
        ({"local_steps": 0}, "local_steps must be a whole number of optimizer steps, at least 1; found 0"),
        ({"local_steps": 5, "local_epochs_rule": FixedEpochs(3)}, r"has a T_0 of its own; .* give InSteps\(rule\)"),
        ({"local_steps": 5, "warmup_epochs": 1}, "warmup_epochs=1 counts local epochs, .* use warmup_steps"),
        ({"local_steps": 5, "schedule": "elr"}, r'schedule="elr" decays every 2 local epochs, .* every=STEPS'),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(settings, says):
    with pytest.raises(ConfigurationError, match=says):
        CoLearning(1, **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_epochs": 3}, r"Trainer\(max_epochs=3\) counts passes .* set max_epochs=-1 with rounds or max_steps"),
        ({"min_epochs": 3}, r"Trainer\(min_epochs=3\)"),
        ({"reload_dataloaders_every_n_epochs": 1}, r"Trainer\(reload_dataloaders_every_n_epochs=1\)"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, r"use Trainer\(accumulate_grad_batches=\.\.\.\)"),
    ],
)
def test_what_counts_epochs_is_refused(tmp_path, settings, says):
    colearning = in_steps(tmp_path, 5, 1)
    callbacks = [*settings.get("callbacks", []), colearning]
    trainer = pl.Trainer(**QUIET | settings | {"callbacks": callbacks})
    with pytest.raises(ConfigurationError, match=says):
        trainer.fit(Net(), LOADERS["shuffled"]())


def test_validation_by_lightnings_own_rules(tmp_path):
    """An interval is a part of a block, or batches."""
    seen = []

    class See(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append(trainer.fit_loop.total_batch_idx + 1)

    settings = {"num_sanity_val_steps": 0}
    for number, (interval, every, expected) in enumerate([(0.5, 1, [3, 6, 9, 12]), (4, None, [4, 8, 12])]):
        seen.clear()
        colearning = in_steps(tmp_path / str(number), 6, 2, validation="lightning")
        fit(See(), colearning=colearning, val_check_interval=interval, check_val_every_n_epoch=every, **settings)
        assert seen == expected


def test_epochs_are_blocks_to_everybody_else(tmp_path):
    """Hooks, and the loss over an epoch."""
    seen = []

    class See(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append((trainer.current_epoch, trainer.global_step, "loss" in trainer.callback_metrics))

    fit(See(), colearning=in_steps(tmp_path, 3, 2, rule="ile", epsilon=9.0), loader="stream")
    assert seen == [(0, 3, True), (1, 6, True), (2, 9, True)]
    metrics = [line["centers"][0]["local_metrics"]["loss"] for line in read_lines(tmp_path / "rounds.jsonl")]
    assert all(a != b for a, b in pairwise(metrics))
