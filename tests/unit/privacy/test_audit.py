"""Planted records bound ε from below: what an attacker finds out must stay under what is claimed.

One run is enough (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846): a coin decides for each of many planted records
whether it is trained on; the attacker sees the model and guesses the coins it is surest of. Under (ε, 0) each guess is
right with probability at most e^ε / (1 + e^ε), given the others; δ adds less here than the digits tell.
"""

import math

import pytest
import pytorch_lightning as pl
import torch
from scipy.stats import beta
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.privacy import dp_optimizer
from colearn_hpc.trainer.private_training import PrivateTraining

PLANTED, DELTA = 1000, 1e-6


class Planted(pl.LightningModule):
    """A weight for each planted record, which that record alone pushes up."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(PLANTED, 1, bias=False)
        nn.init.zeros_(self.net.weight)

    def training_step(self, batch, batch_idx):
        return -5 * self.net(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def audit(guesses):
    """(lower bound on ε with 95 % confidence, ε claimed) of one run."""
    coins = torch.rand(PLANTED, generator=torch.Generator().manual_seed(11)) < 0.5
    data = TensorDataset(torch.eye(PLANTED)[coins])
    module, private = Planted(), PrivateTraining(noise=1.0, clip=1.0, delta=DELTA, budget=20.0)
    # One step with every record in it: the strongest case, without help from sampling.
    loader = DataLoader(data, batch_size=len(data))
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[private], **dict.fromkeys(quiet, False))
    trainer.fit(module, loader)
    # A record's push is worth 1 before the mean is taken: an attacker knows clip, rate and number of steps.
    score = module.net.weight.detach().flatten() * len(data) - 0.5
    surest = score.abs().argsort(descending=True)[:guesses]
    right = int(((score > 0) == coins)[surest].sum())
    least = beta.ppf(0.05, right, guesses - right + 1)
    return math.log(least / (1 - least)), private.epsilon()


@pytest.mark.parametrize("guesses", [100, 300, 1000])
def test_the_attacker_finds_out_less_than_is_claimed(guesses):
    bound, claimed = audit(guesses)
    assert 0.3 < bound < claimed


def test_the_audit_finds_too_little_noise(monkeypatch):
    """An audit that cannot fail is none: a tenth of the noise that is accounted for."""
    normal = dp_optimizer.Noise.normal
    monkeypatch.setattr(dp_optimizer.Noise, "normal", lambda self, count: normal(self, count) / 10)
    bound, claimed = audit(1000)
    assert bound > claimed
