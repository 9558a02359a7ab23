"""What an attacker gets: a record from one exchange of a small model, and who was in the training data.

    python benchmarks/attacks.py docs/pictures/attack_digit.svg

**A record from a step.** A site trains one step on one digit. The step of a first layer is the outer product of an
error and the record, so every row of it shows the record, up to a factor (Zhu et al. 2019, arXiv 1906.08935; Geiping et
al. 2020, arXiv 2003.14053). The attacker is another leader of the run: it looks at what it was sent.

**Membership.** A model that was trained for long knows its records: their loss is lower than that of others (Yeom et
al. 2018, arXiv 1709.01604). The attacker has the model and a record, and guesses by the loss.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

PIXELS, HIDDEN = 64, 32


def digits() -> tuple[Tensor, Tensor]:
    """(records (1797, 64) from 0 to 1, labels (1797,))."""
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


def network(seed: int = 0) -> nn.Sequential:
    """64 - 32 - 10."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))


def vector_of(net: nn.Module) -> Tensor:
    """All weights, shape (n,); the first layer's matrix comes first."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])


def step_on(record: Tensor, label: Tensor, rate: float = 0.1) -> tuple[Tensor, Tensor]:
    """(weights before, weights after) one step of SGD on one record."""
    net = network()
    before = vector_of(net)
    cross_entropy(net(record[None]), label[None]).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= rate * parameter.grad  # type: ignore[operator]
    return before, vector_of(net)


def record_from(step: Tensor) -> Tensor:
    """The record that a step shows.

    Args:
        step: of the first rows of the first layer's matrix, shape (n,) with n >= 64.

    Returns:
        Shape (64,), from 0 to 1.
    """
    rows = step[: len(step) // PIXELS * PIXELS].double().reshape(-1, PIXELS)
    row = rows[int(rows.norm(dim=1).argmax())]
    row = row if row.sum() > 0 else -row  # an error may be negative, pixels are not
    row = row - row.min()
    return (row / row.max().clamp(min=1e-300)).float()


def likeness(one: Tensor, other: Tensor) -> float:
    """Correlation of two pictures."""
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


@dataclass(frozen=True)
class Losses:
    """Of a model, by record."""

    members: Tensor
    others: Tensor

    @property
    def advantage(self) -> float:
        """How often a member's loss is below another's: 0.5 is a guess, 1 is certain (the area under the ROC curve)."""
        lower = (self.members[:, None] < self.others[None]).double().mean()
        equal = (self.members[:, None] == self.others[None]).double().mean()
        return float(lower + equal / 2)

    def found(self, false_alarms: float = 0.1) -> float:
        """Part of the members that is found, where so many others are taken for one."""
        return float((self.members < self.others.quantile(false_alarms)).double().mean())


def membership(seed: int, epsilon: float | None, records: int = 60, epochs: int = 150) -> tuple[Losses, float, float]:
    """Train on few records, of which every fifth has a wrong label, until it knows them.

    Args:
        seed: of the split and the first weights.
        epsilon: the privacy budget; None: without privacy.
        records: to train on; as many others are compared.
        epochs: local epochs.

    Returns:
        (losses, accuracy on the rest of the digits, ε spent).
    """
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    from colearn_hpc.privacy.planner import plan_noise
    from colearn_hpc.privacy.sampling import Sampling
    from colearn_hpc.trainer.private_training import PrivateTraining

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(seed)

        def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.5)

    x, y = digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    x, true = x[order], y[order]
    y = true.clone()
    y[::5] = torch.randint(0, 10, y[::5].shape, generator=generator)
    callbacks, batch = [], 20
    if epsilon is not None:
        noise = plan_noise(Sampling(records, batch), epochs, epsilon, 1e-3).noise
        callbacks = [PrivateTraining(noise=noise, delta=1e-3, budget=epsilon)]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    task = Digits()
    data = TensorDataset(x[:records], y[:records])
    trainer.fit(task, DataLoader(data, batch_size=batch, shuffle=True, generator=generator))
    with torch.no_grad():
        outputs = task.net(x)
        losses = cross_entropy(outputs, y, reduction="none")
        right = float((outputs[2 * records :].argmax(1) == true[2 * records :]).double().mean())
    spent = callbacks[0].epsilon() if callbacks else float("nan")
    return Losses(losses[:records], losses[records : 2 * records]), right, spent


def sent_in_one_exchange(victim: int, others: Sequence[int]) -> dict[str, Tensor]:
    """One mean of sites that trained on one digit each; what the first of ``others``, who owns the first slice, sees.

    Returns:
        "plain": the victim's row as it came; "masked": the same under masks; "sum": the mean step, which all know.
        Each as a step, shape (n,).
    """
    import sys

    sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests/unit/privacy")]
    import numpy as np
    from secure_means import Models, taken

    from colearn_hpc.algorithm.fixed_point import scales_for
    from colearn_hpc.mpi import pipeline

    x, y = digits()
    records = [others[0], victim, *others[1:]]
    steps = [step_on(x[index], y[index]) for index in records]
    models = Models(steps[0][0], [after for _, after in steps], len(steps[0][0]))
    scales = scales_for(models.entries, [0.01, 0.01], 32, len(records))
    found = {}
    for name in ("plain", "masked"):
        means, _, wire = taken(models, secure=name == "masked")
        row = next(c for k, to, tag, c in wire.log if (k, to, tag) == (1, 0, pipeline._TO_OWNER))
        numbers = torch.from_numpy(np.frombuffer(row, np.int32).copy())
        found[name] = numbers.double() / scales.of(0, len(numbers))
    found["sum"] = (means[0] - models.previous)[: len(found["plain"])]
    return found


def main() -> None:
    """Draw the picture, and print the numbers."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("picture", type=Path)
    options.add_argument("--trials", type=int, default=5)
    chosen = options.parse_args()
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "attack"
    victim, others = 3, [10, 21, 32, 45]
    x, _ = digits()
    seen = sent_in_one_exchange(victim, others)
    titles = {
        "plain": "plain: as it came",
        "masked": "secure: as it came",
        "sum": "the sum of five",
    }
    figure, axes = pyplot.subplots(1, 4, figsize=(8, 2.4))
    pictures = {"the record": x[victim]} | {titles[name]: record_from(step) for name, step in seen.items()}
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(f"{title}\ncorrelation {likeness(picture, x[victim]):.2f}", fontsize=8)
        axis.set_axis_off()
        print(f"{title}: correlation with the record {likeness(picture, x[victim]):.4f}")
    figure.tight_layout()
    figure.savefig(chosen.picture, metadata={"Date": None})
    for epsilon in (None, 8.0, 2.0):
        runs = [membership(trial, epsilon) for trial in range(chosen.trials)]
        for name, values in (
            ("AUC", [losses.advantage for losses, _, _ in runs]),
            ("found at 10 % false alarms", [losses.found() for losses, _, _ in runs]),
            ("accuracy", [right for _, right, _ in runs]),
            ("ε spent", [0.0 if epsilon is None else spent for *_, spent in runs]),
        ):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"budget {epsilon}: {name} {statistics.mean(values):.3f} ± {deviation:.3f}")


if __name__ == "__main__":
    main()
