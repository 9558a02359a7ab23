"""Modules with something wrong in them, for the tests of errors."""

import os

import toy
import torch


class Plain(toy.Toy):
    """Nothing wrong yet. ``width`` may differ between ranks."""

    def __init__(self, width: int = 5, fault: str = "none", center: str = "dc1") -> None:
        net = torch.nn.Sequential(
            torch.nn.Linear(toy.FEATURES, width), torch.nn.Tanh(), torch.nn.Linear(width, toy.CLASSES)
        )
        super().__init__(net)
        self.fault = fault if os.environ["COLEARN_CENTER"] == center else "none"

    def train_dataloader(self):
        return toy.loader(0)

    def training_step(self, batch, batch_idx):
        if self.fault == "nan" and self.current_epoch == 1:
            with torch.no_grad():
                self.net[0].weight[0, 0] = float("nan")
        if self.fault == "raise" and self.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("the user's code failed here")
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.fault == "scheduler":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]
        return optimizer
