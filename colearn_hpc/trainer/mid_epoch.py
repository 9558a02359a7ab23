"""What a resume point in the middle of a local epoch needs beyond one at its end.

Lightning's checkpoint knows how many batches were trained. It does not know where the data loader stood, nor the
sums behind the epoch's metrics. The order of an epoch is drawn when its data iterator is made, so a resumed
epoch makes its iterator from the generators of the *epoch's* start, skips the batches that were trained, and only
then takes the generators of the moment it stopped. That holds for any loader of known length: shuffling by the
global generator or by a sampler's epoch, workers or none. A loader with ``state_dict`` and ``load_state_dict``
(Lightning's protocol), or with a sampler with ``start_at`` (ShardDataModule's), is told its place instead of read.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric

import colearn_hpc._lightning as pl
from colearn_hpc.trainer.lightning_gaps import can_skip_batches, running_sums


def is_safe_point(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the run may stop after this batch; the same on all ranks of a data center.

    Not between the batches of an accumulated gradient, which no checkpoint holds; not before a validation in
    mid-epoch, which a resumed run would skip; not at the last batch: the epoch's end comes with its own point.
    """
    if trainer.is_last_batch or not can_skip_batches(trainer):
        return False
    if (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    every = trainer.val_check_batch
    return not every or (batch_idx + 1) % every != 0


def epoch_metrics(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """This rank's share of the metrics of an epoch under way."""
    metrics = {}
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and metric.update_count:
            state = {key: _on_cpu(getattr(metric, key)) for key in metric.metric_state}
            metrics[name] = {"updates": metric.update_count, "state": state}
    return {"sums": running_sums(trainer), "metrics": metrics}


def restore_metrics(module: pl.LightningModule, metrics: dict[str, Any]) -> None:
    """Put back what :func:`epoch_metrics` found in the module's own metrics."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in metrics:
            for key, value in metrics[name]["state"].items():
                setattr(metric, key, _on_device(value, metric.device))
            metric._update_count = metrics[name]["updates"]
            metric._computed = None


def _on_cpu(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [v.detach().cpu().clone() for v in value] if isinstance(value, list) else value.detach().cpu().clone()


def _on_device(value: Tensor | list[Tensor], device: Any) -> Tensor | list[Tensor]:
    return [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
