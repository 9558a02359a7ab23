"""Every data center's own model, and the shared one, on every data center's validation data.

A row per model, a column per data center. Data stay where they are: under MPI the models travel, a data center's own at
a time, and each data center evaluates what it is handed on its own examples. One process that has the data of all
(a simulation) goes through them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from colearn_hpc.errors import CheckpointError, ConfigurationError
from colearn_hpc.mpi.copies import copy_to_all
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.trainer.local_model import FILE as LOCAL
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.run_folder import jsonable
from colearn_hpc.trainer.writing import write_atomically

FILE = "cross_site.json"
SHARED = "shared"

Measured = dict[str, float]


def own_model(folder: Path, name: str) -> Path | None:
    """The model that a data center has trained by itself; an ensemble's member is one."""
    paths = [folder / "centers" / name / file for file in (LOCAL, "member.ckpt")]
    return next((path for path in paths if path.exists()), None)


def measured(trainer: pl.Trainer) -> Measured:
    """What the last evaluation has logged."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def alone(
    trainer: pl.Trainer,
    data_of: Callable[[str], tuple[pl.LightningModule, pl.LightningDataModule | None]],
    options: Mapping[str, Any],
    names: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """The matrix by one process that has all data.

    Args:
        trainer: evaluates.
        data_of: name -> (model, data) of a data center.
        options: of ``trainer.validate``.
        names: of the data centers.
        folder: of the run.

    Raises:
        CheckpointError: no data center has left its own model.
    """
    models = {SHARED: folder / "shared.ckpt"} | {name: own_model(folder, name) for name in names}
    models = {name: path for name, path in models.items() if path is not None and path.exists()}
    _check_models([name for name in models if name != SHARED], folder)
    _check_same_round({name: _epoch(path) for name, path in models.items() if name != SHARED and path is not None})
    columns: dict[str, dict[str, Measured]] = {}
    for name in names:
        model, data = data_of(name)
        columns[name] = {}
        for whose, path in models.items():
            trainer.validate(model, datamodule=data, ckpt_path=str(path), **options)
            columns[name][whose] = measured(trainer)
    return matrix(list(models), columns)


def among_all(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule | None,
    options: Mapping[str, Any],
    place: Place,
    folder: Path,
) -> dict[str, Any]:
    """The matrix by all data centers together, each on its own data. Collective over the world.

    Raises:
        CheckpointError: on all ranks, when no data center has left its own model, or they are of different rounds.
    """
    conversation, center, names = place.conversation, place.center, place.between.names
    own, shared = own_model(folder, center.name), folder / "shared.ckpt"
    vehicle = shared if shared.exists() else own
    mine = [None if own is None else _epoch(own), shared.exists(), vehicle is not None]
    told = conversation.meet(Topic(TopicKind.EVALUATION, detail="models"), mine).contents
    epochs = {names[k]: content[0] for k, content in told.items() if content[0] is not None}
    _check_models(list(epochs), folder)
    _check_same_round(epochs)
    if blind := [names[k] for k, content in told.items() if not content[2]]:
        raise CheckpointError(
            f"{', '.join(blind)}: no model in {folder} there; evaluate where the run was"
        ).on_all_ranks()
    rows = ([SHARED] if all(content[1] for content in told.values()) else []) + list(epochs)
    handed = HandedModel(place)
    trainer.callbacks.append(handed)  # type: ignore[attr-defined]
    results = {}
    for whose in rows:
        handed.source = None if whose == SHARED else list(names).index(whose)
        path = own if whose == center.name else vehicle
        trainer.validate(model, datamodule=data, ckpt_path=str(path), **options)
        results[whose] = measured(trainer)
    everyone = conversation.meet(Topic(TopicKind.EVALUATION, detail="cross-site"), results).contents
    return matrix(rows, {names[k]: found for k, found in everyone.items()})


class HandedModel(Callback):
    """Puts another data center's model in the place of the one that was loaded.

    Args:
        place: this process's.

    Attributes:
        source: index of the data center whose model all evaluate; None: each the one that it has loaded.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.source: int | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collective over the world. Here the module is whole: ``setup`` and ``configure_model`` have been called."""
        if self.source is None:
            return
        everything = [*pl_module.parameters(), *pl_module.buffers()]
        tensors = [tensor for tensor in everything if tensor.layout == torch.strided]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        # All are there: from here on no user's code runs until the model is in place.
        topic = Topic(TopicKind.EVALUATION, self.source, "model")
        sizes = self._place.conversation.meet(topic, [len(tensors), size]).contents
        if len({tuple(found) for found in sizes.values()}) > 1:
            raise ConfigurationError(
                "the data centers' models differ in size; evaluate with the run's own configuration"
            ).on_all_ranks()
        if self._place.center.leaders is not None:
            copy_to_all(self._place.center.leaders, self.source, tensors)
        self._place.site.copy_to_all(tensors)


def matrix(rows: Sequence[str], columns: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    """What ``cross_site.json`` holds.

    Args:
        rows: whose models.
        columns: data center -> model -> metrics on its validation data.

    Returns:
        ``models``, ``centers``, and ``metrics``: name -> a row per model, a column per data center; None where the
        metric was not measured.
    """
    names = dict.fromkeys(key for column in columns.values() for found in column.values() for key in found)
    metrics = {name: [[columns[c].get(row, {}).get(name) for c in columns] for row in rows] for name in names}
    return {"models": list(rows), "centers": list(columns), "metrics": metrics}


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Put the matrix into the run folder."""
    write_atomically(folder / FILE, json.dumps(jsonable(dict(found)), indent=2) + "\n")


def as_text(found: Mapping[str, Any]) -> str:
    """The matrix for a terminal."""
    tables = []
    for metric, rows in found["metrics"].items():
        lines = [[f"{metric}: model of", *(f"on {name}" for name in found["centers"])]]
        lines += [[model, *map(_digits, row)] for model, row in zip(found["models"], rows, strict=True)]
        tables.append(_aligned(lines))
    return "\n\n".join(tables)


def by_center(told: Mapping[str, Mapping[str, float]]) -> str:
    """A line per data center: what one model is worth on the data of each."""
    metrics = list(dict.fromkeys(name for found in told.values() for name in found))
    lines = [["data center", *metrics]]
    lines += [[name, *(_digits(found.get(metric)) for metric in metrics)] for name, found in told.items()]
    return _aligned(lines)


def _digits(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        text.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(text)


def _epoch(path: Path) -> int:
    return int(torch.load(path, map_location="cpu", weights_only=True)["epoch"])


def _check_models(found: Sequence[str], folder: Path) -> None:
    if not found:
        raise CheckpointError(
            f"no data center has left its own model in {folder} (centers/NAME/{LOCAL}, which `fit` writes where there "
            "are several data centers); train a round with this version"
        ).on_all_ranks()


def _check_same_round(epochs: Mapping[str, int]) -> None:
    if len(set(epochs.values())) > 1:
        found = ", ".join(f"{name}: {epoch + 1} local epochs" for name, epoch in epochs.items())
        raise CheckpointError(f"the data centers' own models are of different rounds ({found}); finish the run first")
