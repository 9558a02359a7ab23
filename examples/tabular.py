"""Tabular data: hospitals of different sizes and different patients, one small network.

    colearn-hpc launch --centers 4 -- examples/tabular.py

The Wisconsin breast cancer data come inside scikit-learn: 569 patients, 30 measurements each. The largest hospital has
half of the patients, and hospitals differ in how many of theirs are ill. `weighting="examples"` counts patients, not
hospitals. Measurements are scaled by the common test patients' mean and deviation; no hospital shows its own.
"""

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAUROC

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

SHARES, TEST = (0.5, 0.25, 0.15, 0.1), 140


def patients(index: int | None) -> TensorDataset:
    """Measurements (n, 30) and diagnoses (n,) of a hospital; None: the common test patients."""
    table = load_breast_cancer()
    x, y = np.log1p(table.data).astype(np.float32), table.target.astype(np.float32)
    order = np.random.RandomState(0).permutation(len(y))
    x = (x - x[order[:TEST]].mean(0)) / x[order[:TEST]].std(0)
    chosen = order[:TEST]
    if index is not None:
        rest = order[TEST:]
        # By diagnosis for the most part: the first hospitals see more of the ill.
        rest = rest[np.argsort(y[rest] + np.random.RandomState(1).randn(len(rest)), kind="stable")]
        cuts = (np.cumsum((0, *SHARES)) * len(rest)).astype(int)
        chosen = rest[cuts[index] : cuts[index + 1]]
    return TensorDataset(torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen]))


class Diagnosis(pl.LightningModule):
    """A network of two layers; LayerNorm, for BatchNorm would average what differs between hospitals."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(30, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
        self.auc = BinaryAUROC()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return binary_cross_entropy_with_logits(self.network(x).squeeze(1), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.network(x).squeeze(1)
        self.auc.update(logits, y.int())
        self.log("val_loss", binary_cross_entropy_with_logits(logits, y))
        self.log("val_auc", self.auc, on_epoch=True)

    def predict_step(self, batch, batch_idx):
        return torch.sigmoid(self.network(batch[0]).squeeze(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate, momentum=0.9)


def main() -> None:
    center = DataCenter.join()
    pl.seed_everything(0)
    colearning = CoLearning(
        rounds=5, local_epochs=4, epsilon=0.05, weighting="examples", run_dir="runs/tabular", learning_rate=0.05
    )
    trainer = pl.Trainer(
        max_epochs=-1,
        **DataCenterEnvironment(center).trainer_arguments(),  # where there are GPUs, one of its own
        callbacks=[colearning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Diagnosis(),
        DataLoader(patients(center.index), batch_size=16, shuffle=True),
        DataLoader(patients(None), batch_size=TEST),
        ckpt_path=colearning.resume_path(),
    )
    if center.is_first:
        print(f"area under the ROC curve of the shared model: {float(trainer.callback_metrics['val_auc']):.3f}")


if __name__ == "__main__":
    main()
