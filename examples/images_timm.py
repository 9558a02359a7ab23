"""Images with a network of timm: three data centers whose scanners differ in brightness.

    pip install "colearn_hpc[mpi,timm]"
    colearn-hpc launch --centers 3 -- examples/images_timm.py

The images are made here, gratings of four orientations; put your own Dataset in the place of `Gratings`.
"""

import math

import pytorch_lightning as pl
import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

CLASSES, SIZE, EXAMPLES = 4, 32, 128


def gratings(examples: int, seed: int, brightness: float) -> TensorDataset:
    """Images (n, 3, SIZE, SIZE) and labels (n,): stripes at one of CLASSES angles, any phase, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % CLASSES
    angle = (labels * math.pi / CLASSES)[:, None, None]
    phase = torch.rand(examples, 1, 1, generator=generator) * 2 * math.pi
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    stripes = torch.sin((x * angle.cos() + y * angle.sin()) * 0.9 + phase) + brightness
    images = stripes[:, None].expand(-1, 3, -1, -1)
    return TensorDataset(images + 0.3 * torch.randn(images.shape, generator=generator), labels)


class Images(pl.LightningModule):
    """Any classifier of timm. `pretrained=True` takes its weights from the Hugging Face hub."""

    def __init__(self, name: str = "test_resnet", learning_rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = timm.create_model(name, pretrained=False, num_classes=CLASSES)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.network(images)
        self.log("val_loss", cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate, momentum=0.9)


def main() -> None:
    center = DataCenter.join()
    pl.seed_everything(0)
    train = gratings(EXAMPLES, seed=center.index, brightness=0.5 * center.index)
    val = gratings(EXAMPLES, seed=100, brightness=0.5)  # a scanner of average brightness
    colearning = CoLearning(rounds=4, local_epochs=2, epsilon=0.05, run_dir="runs/images_timm")
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
        Images(),
        DataLoader(train, batch_size=16, shuffle=True),
        DataLoader(val, batch_size=128),
        ckpt_path=colearning.resume_path(),
    )
    if center.is_first:
        print(f"accuracy of the shared model: {float(trainer.callback_metrics['val_acc']):.3f}")


if __name__ == "__main__":
    main()
