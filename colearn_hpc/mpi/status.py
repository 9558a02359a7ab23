"""What a rank brings to a meeting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Status:
    """What a rank brings to a meeting.

    Attributes:
        purpose: where in the run the rank is; all must agree.
        center: its data center's name.
        content: what it wants the others to know (small, picklable).
        error: why it failed, empty if it did not.
        stopping: why it leaves the run, for now; empty if it does not.
        absent: why its data center has no part in this round, empty if it has.
    """

    purpose: str
    center: str
    content: Any = None
    error: str = ""
    stopping: str = ""
    absent: str = ""
