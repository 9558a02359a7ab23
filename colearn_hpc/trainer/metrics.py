"""Which metrics speak of the local model, and which of the shared one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor


class MetricsSplit:
    """Sorts a Trainer's metrics for the round log.

    A metric belongs to the shared model if the validation after averaging wrote it: Lightning puts a new
    tensor under its name. Everything else is the data center's own.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._shared: dict[str, float] = {}

    def before_validation(self, trainer: pl.Trainer) -> None:
        self._before = dict(trainer.callback_metrics)

    def after_validation(self, trainer: pl.Trainer, shared: bool) -> None:
        if shared and not trainer.sanity_checking:
            now = trainer.callback_metrics
            self._shared = {k: float(v) for k, v in now.items() if v is not self._before.get(k)}

    def split(self, trainer: pl.Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """(local, shared). To be called on all ranks: metrics may synchronise inside the data center."""
        local = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in self._shared}
        return local, self._shared


def batch_size(batch: Any) -> int:
    """Examples in a batch: the length of the first tensor in it, at any depth; 0 if there is none."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    if isinstance(batch, list) and batch and (size := batch_size(batch[0])):  # nearly always; this is for every batch
        return size
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((size for item in items if (size := batch_size(item))), 0)
