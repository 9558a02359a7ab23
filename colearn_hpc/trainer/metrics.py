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
    """Examples in a batch; 0 if it cannot be told.

    What the batch says of itself comes first: ``batch_size``, ``num_graphs`` (graphs), then the length that its tensors
    have in common, at any depth; tensors without a dimension are passed over.
    """
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor) and batch[0].ndim:
        # Nearly always: a list of tensors. This is for every batch, so look no further than needed.
        length = batch[0].shape[0]
        if all(isinstance(part, Tensor) and part.ndim and part.shape[0] == length for part in batch):
            return int(length)
    return next(iter(lengths), 0) if len(lengths := batch_lengths(batch)) == 1 else 0


def batch_lengths(batch: Any) -> set[int]:
    """All lengths that the parts of a batch have; more than one, and nobody knows how many examples there are."""
    for name in ("batch_size", "num_graphs"):
        said = getattr(batch, name, None)
        if isinstance(said, int) and not isinstance(said, bool):
            return {said}
    if isinstance(batch, Tensor):
        return {int(batch.shape[0])} if batch.ndim else set()
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return set().union(*map(batch_lengths, parts))
