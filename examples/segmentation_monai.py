"""3-D segmentation in MONAI's idiom: dictionaries, transforms, a U-Net, Dice.

    pip install "colearn_hpc[mpi,examples]"
    colearn-hpc launch --centers 3 -- examples/segmentation_monai.py

The volumes are made here: a bright ball in noise; each hospital's scanner has its own contrast. Put `LoadImaged` in
front of the transforms and a list of files in the place of `volumes`.
"""

import pytorch_lightning as pl
import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import AsDiscrete, Compose, EnsureChannelFirstd, NormalizeIntensityd, RandFlipd

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

SIZE, EXAMPLES = 16, 24


def volumes(examples: int, seed: int, contrast: float) -> list[dict]:
    """Volumes (SIZE, SIZE, SIZE) and their masks, as MONAI's data lists have them."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    found = []
    for _ in range(examples):
        middle = SIZE / 4 + SIZE / 2 * torch.rand(3, 1, 1, 1, generator=generator)
        radius = 2.5 + 2 * torch.rand(1, generator=generator)
        ball = ((grid - middle).square().sum(0).sqrt() < radius).float()
        image = contrast * ball + 0.5 * torch.randn(ball.shape, generator=generator)
        found.append({"image": image, "label": ball})
    return found


class Segmentation(pl.LightningModule):
    """A small U-Net. Its instance normalisation has no buffers, so nothing of a scanner's statistics travels."""

    def __init__(self, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16, 32), strides=(2, 2))
        self.loss = DiceLoss(sigmoid=True)
        self.discrete = Compose([torch.sigmoid, AsDiscrete(threshold=0.5)])
        self.dice = DiceMetric(include_background=True, reduction="mean")

    def training_step(self, batch, batch_idx):
        return self.loss(self.network(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.dice(self.discrete(self.network(batch["image"])), batch["label"])

    def on_validation_epoch_end(self):
        self.log("val_dice", self.dice.aggregate().item())
        self.dice.reset()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


def main() -> None:
    center = DataCenter.join()
    pl.seed_everything(0)
    keys = ("image", "label")
    always = [EnsureChannelFirstd(keys, channel_dim="no_channel"), NormalizeIntensityd("image")]
    augmented = Compose([*always, RandFlipd(keys, prob=0.5, spatial_axis=0)])
    train = Dataset(volumes(EXAMPLES, center.index, contrast=1.0 + 0.5 * center.index), augmented)
    val = Dataset(volumes(8, 100, contrast=1.5), Compose(always))
    colearning = CoLearning(rounds=7, local_epochs=4, epsilon=0.05, run_dir="runs/segmentation_monai")
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
        Segmentation(),
        DataLoader(train, batch_size=4, shuffle=True),
        DataLoader(val, batch_size=8),
        ckpt_path=colearning.resume_path(),
    )
    if center.is_first:
        print(f"Dice of the shared model: {float(trainer.callback_metrics['val_dice']):.3f}")


if __name__ == "__main__":
    main()
