"""What all data centers must have in common, compared before round 0."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn.parameter import UninitializedParameter

from colearn_hpc._version import __version__
from colearn_hpc.errors import ConfigurationError


def fingerprint(trainer: pl.Trainer, module: pl.LightningModule, settings: dict[str, str]) -> dict[str, str]:
    """Names, shapes and dtypes of the model, settings, and versions, as readable pairs.

    What may differ between data centers is left out: data, batch sizes, devices, numbers of ranks.

    Raises:
        ConfigurationError: a lazy parameter has no shape yet.
    """
    items = {
        "colearn_hpc version": __version__,
        "pytorch_lightning version": pl.__version__,
        "torch version": torch.__version__.split("+")[0],  # CPU and CUDA builds may meet
        "numpy major version": np.__version__.split(".")[0],
    }
    items |= {f"CoLearning({key})": value for key, value in settings.items()}
    items["Trainer(max_epochs)"] = str(trainer.max_epochs)
    items["Trainer(min_epochs)"] = str(trainer.min_epochs)
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigurationError(
                f"parameter {name} is lazy and has no shape yet; run one batch through the model in its `setup()`"
            )
        trainable = "trainable" if parameter.requires_grad else "frozen"
        items[f"parameter {name}"] = f"{_text(parameter)} {trainable}"
    for name, buffer in module.named_buffers():
        items[f"buffer {name}"] = _text(buffer)
    return items


def _text(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
