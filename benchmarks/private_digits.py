"""Accuracy of differentially private training on scikit-learn's digits, for several ε; one site, one process.

1437 records to train on, 360 to test on, a network of three convolutions with GroupNorm. The same settings for
every ε, with the noise that the planner finds; without privacy the same network, rate and number of epochs.

    python benchmarks/private_digits.py --epsilons 1 2 4 8 --trials 5
"""

from __future__ import annotations

import logging
import statistics
import warnings
from typing import Any

from common import parser, report  # first: makes torchvision importable

# isort: split
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.models.registry import build_network
from colearn_hpc.privacy.planner import plan_noise
from colearn_hpc.privacy.sampling import Sampling
from colearn_hpc.trainer.private_training import PrivateTraining, replace_layers

_TRAIN = 1437


class Digits(pl.LightningModule):
    """Cross-entropy by SGD."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.net = rate, build_network("digits_cnn", 10)
        replace_layers(self)  # without privacy too, so that one network is compared

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.5)


def train(trial: int, epsilon: float | None, options: Any) -> tuple[float, float, float]:
    """(test accuracy, ε spent, σ) of one run, 0 and 0 without privacy; the trial seeds split and weights."""
    pl.seed_everything(trial, verbose=False)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]
    callbacks: list[PrivateTraining] = []
    noise = 0.0
    if epsilon is not None:
        noise = plan_noise(Sampling(_TRAIN, options.batch), options.epochs, epsilon, options.delta).noise
        callbacks = [PrivateTraining(noise=noise, clip=options.clip, delta=options.delta, budget=epsilon)]
    task = Digits(options.rate)
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = pl.Trainer(accelerator="cpu", max_epochs=options.epochs, callbacks=callbacks, **dict.fromkeys(off, False))
    trainer.fit(task, DataLoader(TensorDataset(x[:_TRAIN], y[:_TRAIN]), options.batch, shuffle=True))
    task.eval()
    with torch.no_grad():
        right = (task.net(x[_TRAIN:]).argmax(1) == y[_TRAIN:]).float().mean().item()
    return right, sum(private.epsilon() for private in callbacks), noise


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--epsilons", type=float, nargs="+", default=[1, 2, 4, 8], help="(default: %(default)s)")
    options.add_argument("--trials", type=int, default=5, help="(default: %(default)s)")
    options.add_argument("--epochs", type=int, default=10, help="(default: %(default)s)")
    options.add_argument("--batch", type=int, default=64, help="(default: %(default)s)")
    options.add_argument("--rate", type=float, default=0.5, help="(default: %(default)s)")
    options.add_argument("--clip", type=float, default=1.0, help="(default: %(default)s)")
    options.add_argument("--delta", type=float, default=1e-4, help="(default: %(default)s)")
    chosen = options.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for epsilon in [*chosen.epsilons, None]:
        found = [train(trial, epsilon, chosen) for trial in range(chosen.trials)]
        accuracies = [100 * accuracy for accuracy, _, _ in found]
        rows.append(
            {
                "ε allowed": "without privacy" if epsilon is None else epsilon,
                "ε spent": max(spent for _, spent, _ in found),
                "noise σ": found[0][2],
                "accuracy %": statistics.mean(accuracies),
                "± (sd)": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            }
        )
    report(rows, chosen)


if __name__ == "__main__":
    main()
