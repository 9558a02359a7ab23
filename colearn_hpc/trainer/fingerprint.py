"""What all data centers must have in common, compared before round 0."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn.parameter import UninitializedParameter

from colearn_hpc._version import NUMERICS, PROTOCOL
from colearn_hpc.errors import ConfigurationError, DataError, FingerprintError
from colearn_hpc.trainer.lightning_gaps import callbacks_of
from colearn_hpc.trainer.place import Place


def fingerprint(trainer: pl.Trainer, module: pl.LightningModule, settings: dict[str, str]) -> dict[str, str]:
    """Names, shapes and dtypes of the model, settings, and versions, as readable pairs.

    What may differ between data centers is left out: data, batch sizes, devices, numbers of ranks.

    Raises:
        ConfigurationError: a lazy parameter has no shape yet.
    """
    items = {
        "protocol version": str(PROTOCOL),
        "numerics version": str(NUMERICS),
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


# What a run may be resumed with: more rounds, a later Trainer limit, other libraries.
_MAY_CHANGE = ("CoLearning(rounds)", "CoLearning(on_failure)", "Trainer(", "version")


def check_unchanged(before: dict[str, str], now: dict[str, str]) -> None:
    """A resumed run goes on with the model and settings it began with.

    Args:
        before: :func:`fingerprint` of the run that wrote the resume point; empty if it wrote none.
        now: of this one.

    Raises:
        FingerprintError: naming the first difference.
    """
    for key in (before | now) if before else ():
        if any(word in key for word in _MAY_CHANGE) or before.get(key) == now.get(key):
            continue
        raise FingerprintError(
            f"this run began with `{key} = {before.get(key, '(nothing)')}` and would be resumed with "
            f"`{now.get(key, '(nothing)')}`; set it back, or start anew with another --name"
        )


def check_data(trainer: pl.Trainer, before: dict[str, str]) -> dict[str, str]:
    """What this data center trains on, compared with what it trained on before.

    Args:
        trainer: in ``on_train_start`` or later: its loaders are made.
        before: what this function returned in the run that is resumed; empty in a new one.

    Raises:
        FingerprintError: the data changed.
    """
    of_module = getattr(trainer.datamodule, "fingerprint", None)  # type: ignore[attr-defined]
    data = of_module() if callable(of_module) else {}
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if not data and isinstance(dataset, Sized):
        data = {"training examples": str(len(dataset))}
    for key, value in before.items():
        if data.get(key) != value:
            raise FingerprintError(
                f"this data center trained on `{key}: {value}` and now finds `{data.get(key, '(nothing)')}`; bring the "
                "data back, or start anew with another --name"
            )
    return data


def terms(trainer: pl.Trainer) -> dict[str, str]:
    """What this data center says of itself in the run's contract, and what others may have otherwise: its differential
    privacy, or any callback's ``terms()``, a flat dictionary of text."""
    said: dict[str, str] = {}
    for callback in callbacks_of(trainer):
        if callable(of_callback := getattr(callback, "terms", None)):
            said |= {str(key): str(value) for key, value in of_callback().items()}
    return said


def check_lengths(trainer: pl.Trainer, place: Place) -> None:
    """Check that all ranks of a data center train on equally many batches: in the last ones some would wait for ever.

    Collective over the data center. Loaders that do not know their length are believed.

    Raises:
        DataError: on all ranks of a data center that differ.
    """
    batches = trainer.num_training_batches
    number = -1 if batches == float("inf") else int(batches)
    most, fewest = place.site.largest(number, -number)
    if most != -fewest and -fewest >= 0:
        raise DataError(
            f"the ranks of data center {place.center.name} have between {-fewest} and {most} batches in a local epoch, "
            "and take their steps together; give all equally many (DistributedSampler, or drop_last)"
        )


def meaning(trainer: pl.Trainer) -> dict[str, str]:
    """What the numbers of this data center's examples mean (classes in order, encoding, scale, vocabulary, ...), as its
    data module says by a method ``meaning()``; empty where it says nothing.

    All data centers must mean the same: otherwise label 0 is a cat here and a dog there, and nobody would notice.
    """
    of_module = getattr(trainer.datamodule, "meaning", None)  # type: ignore[attr-defined]
    return {str(key): str(value) for key, value in of_module().items()} if callable(of_module) else {}


def _text(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
