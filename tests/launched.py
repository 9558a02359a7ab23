"""What the ``launch`` fixture gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Finished:
    """What a launch left: exit code, output, and the processes that should not be there any more."""

    code: int
    out: str
    err: str
    orphans: list[int]

    def ok(self) -> str:
        """The output of a launch that succeeded; fails the test with everything said if it did not."""
        assert self.code == 0, f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        return self.out


Launch = Callable[..., Finished]
