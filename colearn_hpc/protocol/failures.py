"""What follows from a failure inside a data center: begin again, miss the round, or end the run.

"If a participant fails, the server restarts it" (Mi et al. 2020).
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from colearn_hpc.errors import CenterBrokenError, text_of
from colearn_hpc.protocol.messages import describe_elsewhere, describe_error
from colearn_hpc.protocol.settings import OnFailure


@dataclass(frozen=True)
class Failure:
    """What one rank of a data center that failed knows of it.

    Attributes:
        rank: center_rank of the rank whose it is.
        text: for people; empty where the rank only noticed another's failure.
        line: the class of the error and the innermost line of code in it.
        place: round, local epoch and batch in which the rank was.
        restartable: whether this rank could begin again.
        averaged: the round's mean is taken already.
        elsewhere: what other data centers hear instead of ``text``.
    """

    rank: int
    text: str
    line: str
    place: tuple[int, int, int]
    restartable: bool
    averaged: bool = False
    elsewhere: str = ""

    @classmethod
    def of(
        cls, error: BaseException, rank: int, place: tuple[int, int, int], restartable: bool, averaged: bool
    ) -> Failure:
        """What this rank has to say about ``error``."""
        frames = traceback.extract_tb(error.__traceback__)
        kind = type(error).__name__
        line = f"{kind} at {frames[-1].filename}:{frames[-1].lineno}" if frames else kind
        noticed = isinstance(error, CenterBrokenError) or is_lost_peer(error)
        text, elsewhere = ("", "") if noticed else (describe_error(error), describe_elsewhere(error))
        return cls(rank, text, line, place, restartable, averaged, elsewhere)


@dataclass(frozen=True)
class Verdict:
    """What follows from a failure.

    Attributes:
        action: begin again, miss this round (``on_failure="continue_without"``), or end the run.
        text: what happened, and why this follows.
        number: which restart in this round this is.
        elsewhere: what other data centers hear instead of ``text``.
    """

    action: Literal["restart", "miss the round", "stop"]
    text: str
    number: int = 0
    elsewhere: str = ""


class RestartPolicy:
    """Counts restarts, and judges.

    Args:
        limit: restarts in one round.
        on_failure: what comes when they are used up.
    """

    def __init__(self, limit: int = 3, on_failure: OnFailure = "stop") -> None:
        self.limit, self.on_failure = limit, on_failure
        self._round, self._count = -1, 0
        self._last: tuple[str, int, tuple[int, int, int]] | None = None

    def judge(self, failures: Sequence[Failure]) -> Verdict:
        """What to do after one failure.

        Args:
            failures: one per rank of the data center.
        """
        cause = next((f for f in failures if f.text), failures[0])
        text, elsewhere = cause.text or "a rank was lost", cause.elsewhere or "a rank was lost"
        if not all(f.restartable for f in failures):
            return Verdict("stop", text, elsewhere=elsewhere)
        current = max(f.place[0] for f in failures)
        if current != self._round:
            self._round, self._count, self._last = current, 0, None
        same = (cause.line, cause.rank, cause.place)
        if same == self._last:
            reason = f"after restart {self._count} the same error came back at the same batch: it would come again"
        elif self._count >= self.limit:
            reason = f"restarts={self.limit} of round {current} are used up"
        else:
            self._count, self._last = self._count + 1, same
            return Verdict("restart", text, self._count, elsewhere)
        self._last = None
        goes_on = self.on_failure == "continue_without" and not any(f.averaged for f in failures)
        action: Literal["miss the round", "stop"] = "miss the round" if goes_on else "stop"
        return Verdict(action, f"{text}\n({reason})", elsewhere=f"{elsewhere}\n({reason})")


_OF_A_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "gloo/transport",
    "NCCL communicator was aborted",
    "remote process exited or there was a network error",  # NCCL's
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error is how torch's backends say that another rank has left the process group."""
    return isinstance(error, RuntimeError) and any(sign in text_of(error) for sign in _OF_A_LOST_PEER)


# As CUDA says them (cudaGetErrorString); HIP takes the same words. None leaves a context that can be used again.
_OF_A_LOST_GPU = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "illegal address space",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable",  # ECC, NVLink
    "unknown error",
)


def is_lost_gpu(error: BaseException) -> bool:
    """Whether the error leaves this process without its GPU: every later call of CUDA fails with it, and only a new
    process has the GPU again."""
    text = text_of(error)
    found = "CUDA error" in text or "HIP error" in text
    return isinstance(error, RuntimeError) and found and any(sign in text for sign in _OF_A_LOST_GPU)
