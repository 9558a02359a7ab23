"""What a round cost and did: the lines of ``rounds.jsonl``, as data. What ties them together: ``contract.py``."""

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
        examples: training examples it went through in the round, over all its ranks and local epochs.
        train_seconds, wait_seconds, exchange_seconds: local training (validation left out), waiting for the
            others, and averaging.
        bytes_sent: payload sent to other data centers for the mean.
        divergence: ‖w_k - w̄‖ / ‖w̄‖, with the mean of eq. 2 as w̄; NaN for who gave nothing to it.
        local_metrics: metrics of the data center's own model, from its last local epoch.
        shared_metrics: metrics of the shared model, from this data center's validation after averaging.
        absent: why it gave nothing to the round's mean, empty if it did.
        steps: optimizer steps it took in the round: as often synchronous training would have exchanged gradients.
        epsilon: ε of differential privacy that it has spent in the run so far; None where it does not train privately.
        data: digest of what it trained on, as its data module names it; empty where it names nothing.
        model: digest of the shared model after the round, where the data center writes it; otherwise empty.
        loss: mean training loss over the round; NaN (null in the file) where ``training_step`` returned none.
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
        """What the others may know of it: with secure sums, nothing that was measured on this data center's data."""
        if not settings.secure or settings.share_metrics:
            return self
        shared = self.shared_metrics if settings.public_validation else {}
        return replace(
            self, examples=0, steps=0, divergence=math.nan, loss=math.nan, local_metrics={}, shared_metrics=dict(shared)
        )

    def private_text(self) -> str:
        """For the data center's own log: what it does not tell."""
        metrics = {f"local {key}": value for key, value in self.local_metrics.items()} | self.shared_metrics
        found = {"examples": self.examples, "divergence": self.divergence, "loss": self.loss} | metrics
        return ", ".join(f"{key} {value:.6g}" for key, value in found.items())

    def to_plain(self) -> dict[str, Any]:
        """As plain data, for a meeting or a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Any) -> CenterReport:
        """From what :meth:`to_plain` made, possibly in another data center.

        Raises:
            ValueError: it is no report.
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
        relative_change: of eq. 4; null if infinite.
        epochs_done: local epochs finished since the start of the run.
        next_local_epochs: T_{i+1} as decided.
        centers: one :class:`CenterReport` each.
        unit: ``"epochs"``, or ``"steps"`` where all of this is in optimizer steps, and a rate is that of the last step
            of each block; only then it stands in the file.
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
