"""A GAN: manual optimization, two optimizers, both networks in one shared model.

    colearn-hpc launch --centers 3 -- examples/gan.py

Each data center sees points around a middle of its own; the shared generator has to draw from all of them. The rates
are the optimizers' own (`schedule="none"`), and Adam's moments are averaged like the weights.
"""

import itertools

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

NOISE, EXAMPLES = 4, 512
MIDDLES = torch.tensor([[1.0, 2.0], [2.0, 2.5], [3.0, 1.5]])  # of the data centers


def points(examples: int, seed: int, middle: torch.Tensor) -> TensorDataset:
    """(n, 2): normal around the middle, with deviation 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(middle + 0.5 * torch.randn(examples, 2, generator=generator))


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class GAN(pl.LightningModule):
    """Generator (NOISE,) -> (2,), discriminator (2,) -> logit."""

    def __init__(self, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator, self.discriminator = layers(NOISE, 32, 32, 2), layers(2, 32, 32, 1)

    def judged(self, points, real: float):
        """How far the discriminator is from calling these points real (1) or drawn (0)."""
        logits = self.discriminator(points)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def draw(self, number: int):
        return self.generator(torch.randn(number, NOISE, device=self.device))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        for_generator, for_discriminator = self.optimizers()

        self.toggle_optimizer(for_discriminator)
        loss = self.judged(real, 1.0) + self.judged(self.draw(len(real)).detach(), 0.0)
        for_discriminator.zero_grad()
        self.manual_backward(loss)
        for_discriminator.step()
        self.untoggle_optimizer(for_discriminator)

        self.toggle_optimizer(for_generator)
        loss = self.judged(self.draw(len(real)), 1.0)
        for_generator.zero_grad()
        self.manual_backward(loss)
        for_generator.step()
        self.untoggle_optimizer(for_generator)

    def validation_step(self, batch, batch_idx):
        (real,) = batch
        self.log("val_distance", (self.draw(2000).mean(0) - real.mean(0)).norm(), batch_size=len(real))

    def configure_optimizers(self):
        def adam(network):
            return torch.optim.Adam(network.parameters(), lr=self.hparams.learning_rate, betas=(0.5, 0.99))

        return adam(self.generator), adam(self.discriminator)


def main() -> None:
    center = DataCenter.join()
    pl.seed_everything(0)
    everywhere = torch.cat([points(EXAMPLES, 100 + k, middle).tensors[0] for k, middle in enumerate(MIDDLES)])
    colearning = CoLearning(
        rounds=10,
        local_epochs=1,
        local_epochs_rule="fle",
        schedule="none",
        optimizer_state="average",
        run_dir="runs/gan",
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
        GAN(),
        DataLoader(points(EXAMPLES, center.index, MIDDLES[center.index]), batch_size=32, shuffle=True),
        DataLoader(TensorDataset(everywhere), batch_size=len(everywhere)),
        ckpt_path=colearning.resume_path(),
    )
    if center.is_first:
        print(f"middle of what is drawn, from the middle of all data: {trainer.callback_metrics['val_distance']:.3f}")


if __name__ == "__main__":
    main()
