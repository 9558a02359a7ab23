"""One progress display for the run: a bar on a terminal, a line per local epoch elsewhere, tables at the end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import ProgressBar
from colearn_hpc.protocol.reports import RoundReport
from colearn_hpc.trainer.optimizers import first_rate
from colearn_hpc.trainer.standing import Standing

_SECONDS_PER_LINE = 10.0  # in a log file, a line per local epoch would bury the rounds


class RunProgress(ProgressBar):
    """Shows round, local epoch, rate and relative change. Only the presiding leader of the run shows anything.

    Args:
        standing: tells how the run stands, :meth:`CoLearning.standing`.
    """

    def __init__(self, standing: Callable[[], Standing]) -> None:
        super().__init__()
        self._standing = standing
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._records: list[RoundReport] = []
        self._terminal = sys.stderr.isatty()
        self._last_line = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._say(" ".join(map(str, args)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self._standing()
        self._enabled = self._enabled and now.presides
        bound = f"{now.rounds} rounds" if now.rounds else "until the Trainer's limits"
        self._say(f"co-learning over {now.centers}; {bound}; run folder {now.folder}")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled and self._terminal:
            total = int(self.total_train_batches) if self.total_train_batches != float("inf") else None
            self._bar = tqdm(
                total=total, desc=self._position(trainer), leave=False, dynamic_ncols=True, file=sys.stderr
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update(batch_idx + 1 - self._bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = _text(self.get_metrics(trainer, pl_module)) if self._enabled else ""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._enabled and time.monotonic() - self._last_line > _SECONDS_PER_LINE:
            # The callback before this one has already counted the epoch.
            self._last_line = time.monotonic()
            self._say(f"{self._position(trainer, ended=True)}  {metrics}")

    def round_closed(self, record: RoundReport, doubled: bool) -> None:
        """Called by :class:`CoLearning` on the ranks of every data center when a round is logged."""
        self._records.append(record)
        shared = _text(record.centers[0].shared_metrics)
        # An ensemble has no shared model that could change.
        change = record.relative_change
        what = f"averaged: relative change {change:.4f}" if math.isfinite(change) else "closed: predictions averaged"
        self._say(f"round {record.round} {what}  {shared}")
        if doubled:
            now, then = record.local_epochs, record.next_local_epochs
            self._say(f"  T doubles: {now} -> {then} {record.unit_text} a round")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._records:
            self._say(table(self._records))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _position(self, trainer: pl.Trainer, ended: bool = False) -> str:
        now = self._standing()
        number, unit = now.epoch + (0 if ended else now.block), "step" if now.in_steps else "epoch"
        change = "-" if now.relative_change is None else f"{now.relative_change:.4f}"
        rate = first_rate(trainer.optimizers)
        return f"round {now.round} {unit} {number}/{now.local_epochs} rate {rate:.4g} change {change}"

    def _say(self, text: str) -> None:
        if self._enabled:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()


def table(records: Sequence[RoundReport]) -> str:
    """The closing table: a line per round, metrics of the shared model as the first data center saw them."""
    metrics = list(dict.fromkeys(name for record in records for name in record.centers[0].shared_metrics))
    rows = [["round", "T", records[0].unit, "rate", "change", *metrics, "train s", "wait s", "exchange s", "MB sent"]]
    for record in records:
        centers = record.centers
        shared = centers[0].shared_metrics
        rows.append(
            [
                str(record.round),
                str(record.local_epochs),
                str(record.epochs_done),
                f"{record.learning_rates[-1]:.4g}" if record.learning_rates else "-",
                f"{record.relative_change:.4f}" if math.isfinite(record.relative_change) else "-",
                *(f"{shared[name]:.4f}" if name in shared else "-" for name in metrics),
                f"{max(center.train_seconds for center in centers):.1f}",
                f"{max(center.wait_seconds for center in centers):.1f}",
                f"{max(center.exchange_seconds for center in centers):.2f}",
                f"{sum(center.bytes_sent for center in centers) / 1e6:.2f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(["", *lines, ""])


def _text(metrics: dict[str, Any]) -> str:
    return "  ".join(f"{name} {float(value):.4f}" for name, value in metrics.items() if not isinstance(value, str))
