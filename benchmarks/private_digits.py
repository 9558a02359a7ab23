"""Accuracy of differentially private training on handwritten or spoken digits, for several ε; one site, one process.

A network of three convolutions with GroupNorm. The same settings for every ε, with the noise that the planner finds;
without privacy the same network, rate and number of epochs. Handwritten digits are scikit-learn's: 1437 records to
train on, 360 to test on. Spoken digits are shards that `colearn-hpc data wav-folder` has made: their log-mel
spectrograms as pictures of 16 x 16 pixels, 2700 records to train on, 300 to test on.

    python benchmarks/private_digits.py --epsilons 1 2 4 8 --trials 5
    python benchmarks/private_digits.py --spoken data/spoken_digits --epochs 20 --rate 0.25
"""

from __future__ import annotations

import functools
import logging
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from common import parser, report  # first: makes torchvision importable

# isort: split
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, pixel_unshuffle
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.data.audio_features import LogMel
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.models.registry import build_network
from colearn_hpc.privacy.planner import plan_noise
from colearn_hpc.privacy.sampling import Sampling
from colearn_hpc.trainer.private_training import PrivateTraining, replace_layers

Data: TypeAlias = tuple[TensorDataset, TensorDataset]


def handwritten() -> Data:
    """scikit-learn's pictures, split at random: shapes (1, 8, 8)."""
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]
    return TensorDataset(x[:1437], y[:1437]), TensorDataset(x[1437:], y[1437:])


def spoken(folder: Path) -> Data:
    """Clips of all shards and of the test shard, as pictures: shapes (4, 8, 8), four neighbours in a pixel.

    The scale is fixed, for one that is measured on the records would tell of them.
    """
    features = LogMel(16000, window_length=480, hop=320, n_fft=512, bands=20, f_min=20.0, f_max=4000.0)

    def pictures(*shards: Path) -> TensorDataset:
        clips = [dataset[list(range(len(dataset)))] for dataset in map(ShardDataset, shards)]
        mel = torch.cat([features(x.float()) for x, _ in clips])
        x = adaptive_avg_pool2d((mel[:, None] + 8) / 4, 16)
        return TensorDataset(pixel_unshuffle(x, 2), torch.cat([y for _, y in clips]).long())

    return pictures(*sorted(folder.glob("dc*.h5"))), pictures(folder / "test.h5")


class Digits(pl.LightningModule):
    """Cross-entropy by SGD."""

    def __init__(self, rate: float, channels: int) -> None:
        super().__init__()
        self.rate, self.net = rate, build_network("digits_cnn", 10, in_channels=channels)
        replace_layers(self)  # without privacy too, so that one network is compared

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.5)


def train(trial: int, data: Callable[[], Data], epsilon: float | None, options: Any) -> tuple[float, ...]:
    """(test accuracy, ε spent, σ) of one run, 0 and 0 without privacy; the trial seeds what data draws, and weights."""
    pl.seed_everything(trial, verbose=False)
    training, test = data()
    callbacks: list[PrivateTraining] = []
    noise = 0.0
    if epsilon is not None:
        noise = plan_noise(Sampling(len(training), options.batch), options.epochs, epsilon, options.delta).noise
        callbacks = [PrivateTraining(noise=noise, clip=options.clip, delta=options.delta, budget=epsilon)]
    task = Digits(options.rate, training.tensors[0].shape[1])
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = pl.Trainer(accelerator="cpu", max_epochs=options.epochs, callbacks=callbacks, **dict.fromkeys(off, False))
    trainer.fit(task, DataLoader(training, options.batch, shuffle=True))
    task.eval()
    with torch.no_grad():
        x, y = test.tensors
        right = (task.net(x).argmax(1) == y).float().mean().item()
    return right, sum(private.epsilon() for private in callbacks), noise


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument(
        "--spoken", type=Path, help="folder of the spoken digits' shards (default: handwritten digits)"
    )
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
    data = functools.cache(functools.partial(spoken, chosen.spoken)) if chosen.spoken else handwritten
    rows = []
    for epsilon in [*chosen.epsilons, None]:
        found = [train(trial, data, epsilon, chosen) for trial in range(chosen.trials)]
        accuracies = [100 * accuracy for accuracy, *_ in found]
        rows.append(
            {
                "ε allowed": "without privacy" if epsilon is None else epsilon,
                "ε spent": max(spent for _, spent, _ in found),
                "noise σ": found[0][2],
                "accuracy %": statistics.mean(accuracies),
                "± (sd)": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            }
        )
    chosen.spoken = bool(chosen.spoken)
    report(rows, chosen)


if __name__ == "__main__":
    main()
