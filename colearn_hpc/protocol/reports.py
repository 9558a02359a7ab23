"""The lines of ``rounds.jsonl``: what a round did and what it cost. ``contract.py`` has the chain that ties them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from colearn_hpc.protocol.settings import Settings


@dataclass(frozen=True)
class CenterReport:
    """One data center's part in a round.

    Attributes:
        name: the data center's.
        examples: training examples in the round, over all its ranks and local epochs.
        train_seconds, wait_seconds, exchange_seconds: seconds of local training (without validation), of waiting for
            other data centers, and of averaging.
        bytes_sent: bytes that it sent to other data centers for the mean.
        divergence: ‖w_k - w̄‖ / ‖w̄‖, where w̄ is the mean of eq. 2; NaN if the data center gave nothing to the mean.
        local_metrics: metrics of the data center's own model, from its last local epoch.
        shared_metrics: metrics of the shared model, from this data center's validation after averaging.
        absent: why the data center gave nothing to the round's mean; empty if it gave its model.
        steps: optimizer steps in the round. Synchronous training would have exchanged gradients that often.
        epsilon: ε of differential privacy that it has spent in the run so far; None where it does not train privately.
        data: digest of the training data, as the data module names them; empty where it names nothing.
        model: digest of the shared model after the round; empty where this data center does not write that model.
        loss: mean training loss over the round; NaN (null in the file) where ``training_step`` returned no loss.
    """

    name: str
    examples: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    exchange_seconds: float = 0.0
    bytes_sent: int = 0
    divergence: float = 0.0
    local_metrics: dict[str, float] = field(default_factory=dict)
    shared_metrics: dict[str, float] = field(default_factory=dict)
    absent: str = ""
    steps: int = 0
    epsilon: float | None = None
    data: str = ""
    model: str = ""
    loss: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.loss):
            object.__setattr__(self, "loss", math.nan)  # this one NaN, so that reports can be equal

    def to_be_told(self, settings: Settings) -> CenterReport:
        """What other data centers may know. With secure sums: nothing that was measured on this data center's data."""
        if not settings.secure or settings.share_metrics:
            return self
        shared = self.shared_metrics if settings.public_validation else {}
        return replace(
            self, examples=0, steps=0, divergence=math.nan, loss=math.nan, local_metrics={}, shared_metrics=dict(shared)
        )

    def private_text(self) -> str:
        """What is for the data center's own log alone."""
        metrics = {f"local {key}": value for key, value in self.local_metrics.items()} | self.shared_metrics
        found = {"examples": self.examples, "divergence": self.divergence, "loss": self.loss} | metrics
        return ", ".join(f"{key} {value:.6g}" for key, value in found.items())

    def to_plain(self) -> dict[str, Any]:
        """As plain data, for a meeting or a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Any) -> CenterReport:
        """The report that :meth:`to_plain` made plain data of, possibly in another data center.

        Raises:
            ValueError: the data are no report.
        """
        if not isinstance(plain, dict) or set(plain) != set(cls.__dataclass_fields__):
            raise ValueError(f"no report of a data center: {plain!r:.200}")
        texts = all(isinstance(plain[key], str) for key in ("name", "absent", "data", "model"))
        numbers = all(
            isinstance(plain[key], int | float)
            for key in (
                "examples",
                "steps",
                "train_seconds",
                "wait_seconds",
                "exchange_seconds",
                "bytes_sent",
                "divergence",
                "loss",
            )
        )
        metrics = all(
            isinstance(plain[key], dict) and all(isinstance(value, int | float) for value in plain[key].values())
            for key in ("local_metrics", "shared_metrics")
        )
        spent = plain["epsilon"] is None or isinstance(plain["epsilon"], int | float)
        if not (texts and numbers and metrics and spent):
            raise ValueError(f"no report of a data center: {plain!r:.200}")
        return cls(**plain)


@dataclass(frozen=True)
class RoundReport:
    """A line of ``rounds.jsonl``.

    Attributes:
        round: i, from 0.
        local_epochs: T_i, as trained.
        learning_rates: rate of each local epoch (first parameter group).
        relative_change: the shared model's relative change (eq. 4); null if infinite.
        epochs_done: local epochs finished since the start of the run.
        next_local_epochs: T_{i+1} as decided.
        centers: one :class:`CenterReport` for each data center.
        unit: what T counts. ``"epochs"`` is left out of the file. ``"steps"``: then ``local_epochs``, ``epochs_done``
            and ``next_local_epochs`` are numbers of optimizer steps, and ``learning_rates`` has the rate of each
            block's last step.
    """

    round: int
    local_epochs: int
    learning_rates: list[float]
    relative_change: float
    epochs_done: int
    next_local_epochs: int
    centers: list[CenterReport] = field(default_factory=list)
    unit: str = "epochs"

    def to_plain(self) -> dict[str, Any]:
        """As plain data, for the file."""
        plain = asdict(self)
        if self.unit == "epochs":
            del plain["unit"]
        return plain

    @property
    def unit_text(self) -> str:
        """What T counts, for people."""
        return "local epochs" if self.unit == "epochs" else self.unit
