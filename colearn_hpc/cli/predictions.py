"""What ``predict`` writes: one file per data center, its examples in the order of its data."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from colearn_hpc.between import TensorSite
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer.ensemble import evaluated_indices
from colearn_hpc.trainer.writing import write_atomically

Columns = dict[str, np.ndarray[Any, Any]]


class PredictionFile(Callback):
    """Collects what ``predict_step`` returns, and writes it when all is there. Collective over the data center.

    ``predict_step`` returns a tensor (batch, …), or a dictionary, tuple or list of tensors and of lists of texts. In
    HDF5 each is a data set; beside them is ``index``, the example's place in the data. In CSV it is a column, or one
    per entry of a row, named by the data module's ``classes`` where there are as many.

    Args:
        path: ends in .h5, .hdf5 or .csv.
        center: the data center's name.
        site: its ranks.

    Attributes:
        said: how much was written, and where; for people.

    Raises:
        ConfigurationError: another ending.
    """

    def __init__(self, path: Path, center: str, site: TensorSite) -> None:
        if path.suffix not in (".h5", ".hdf5", ".csv"):
            raise ConfigurationError(f"--out {path}: predictions are written as .h5, .hdf5 or .csv").on_all_ranks()
        self.path, self.said = path, ""
        self._center, self._site = center, site
        self._parts: list[list[Columns]] = []  # by loader

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._parts = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._parts += [[] for _ in range(dataloader_idx + 1 - len(self._parts))]
        self._parts[dataloader_idx].append(columns_of(outputs))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loaders = trainer.predict_dataloaders
        loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
        mine = []
        for number, (parts, loader) in enumerate(zip(self._parts, loaders, strict=False)):
            found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            count = len(next(iter(found.values())))
            places = evaluated_indices(loader, count)
            found = {"index": places if len(places) == count else np.full(count, -1)} | found
            mine.append({"loader": np.full(count, number)} | found if len(self._parts) > 1 else found)
        shares = self._site.gather(mine)
        if shares is None:
            return
        whole = joined([part for share in shares for part in share])
        if not whole:
            raise ConfigurationError(
                "predict has run over no example: the data module has no prediction data; set data.test"
            )
        classes = getattr(trainer.datamodule, "classes", ())  # type: ignore[attr-defined]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix == ".csv":
            write_atomically(self.path, as_csv(whole, list(classes)))
        else:
            self._write_hdf5(whole, list(classes))
        self.said = f"predictions for {len(whole['index'])} examples in {self.path}"

    def _write_hdf5(self, whole: Columns, classes: Sequence[str]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with h5py.File(temporary, "w") as file:
            for name, column in whole.items():
                text = column.dtype.kind in "UO"
                file.create_dataset(
                    name, data=column.astype(object) if text else column, dtype=h5py.string_dtype() if text else None
                )
            file.attrs["center"] = self._center
            if classes:
                file.attrs["classes"] = list(classes)
        temporary.replace(self.path)


def columns_of(outputs: Any) -> Columns:
    """What a ``predict_step`` has returned for a batch, by name.

    Raises:
        ConfigurationError: it is nothing that can be written.
    """
    if isinstance(outputs, Mapping):
        named = {str(name): value for name, value in outputs.items()}
    elif isinstance(outputs, list | tuple) and not all(isinstance(item, str) for item in outputs):
        named = {f"prediction_{i}": value for i, value in enumerate(outputs)}
    else:
        named = {"prediction": outputs}
    found = {name: _array(value) for name, value in named.items()}
    lengths = {len(column) if column is not None and column.ndim else -1 for column in found.values()}
    if len(lengths) != 1 or -1 in lengths or not named:
        raise ConfigurationError(
            f"predict_step returned {type(outputs).__name__}, which has no row per example; return a tensor "
            "(batch, ...), or a dictionary of such tensors and of lists of texts"
        )
    return {name: column for name, column in found.items() if column is not None}


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return np.array(value)
    return None


def joined(shares: Sequence[Columns]) -> Columns:
    """One data center's predictions from its ranks': by loader and place, each example once.

    Args:
        shares: with ``index``; −1 where a loader does not say which example is which, and their order then stays.
    """
    shares = [share for share in shares if share and len(share["index"])]
    if not shares:
        return {}
    whole = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
    if (whole["index"] < 0).any():
        return whole
    keys = np.stack([whole.get("loader", np.zeros_like(whole["index"])), whole["index"]])
    _, first = np.unique(keys, axis=1, return_index=True)
    return {name: column[first] for name, column in whole.items()}


def as_csv(whole: Columns, classes: Sequence[str]) -> str:
    """A line per example.

    Raises:
        ConfigurationError: a prediction is more than a row of numbers.
    """
    header: list[str] = []
    cells: list[Sequence[Any]] = []
    for name, column in whole.items():
        if column.ndim == 1:
            header.append(name)
            cells.append(column.tolist())
        elif column.ndim == 2:
            width = column.shape[1]
            header += [*classes] if len(classes) == width else [f"{name}_{i}" for i in range(width)]
            cells += column.T.tolist()
        else:
            raise ConfigurationError(
                f"{name} has shape {column.shape[1:]} for each example, too much for CSV; use --out FILE.h5"
            )
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*cells, strict=True))
    return output.getvalue()
