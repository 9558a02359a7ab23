"""How long is long: sleeps, reports and grace of everyone who waits. Tests shorten them."""

from __future__ import annotations

import time

LONGEST_SLEEP = 0.05  # s; a waiting rank then uses well under 1 % of a core
FIRST_REPORT, LATER_REPORTS = 10.0, 120.0  # s of waiting after which the awaited are named
GRACE = 10.0  # s that a failed rank waits for the others before it aborts the world
LOOK_INTERVAL = 0.1  # s between two looks at what others have told, while training
NEWS_INTERVAL = 10.0  # s between two unasked reports of progress
STALL = 300.0  # s in which nothing of the mean arrives, after which it is given up: TCP may mend a cut for so long
SILENCE = 60.0  # s after which no news is worth a word: training reports at every batch's end


class Patience:
    """One wait: when to report, when to give up, how long to sleep.

    Args:
        limit: seconds; None waits for ever.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self._start = time.monotonic()
        self._sleep, self._report = 0.0005, FIRST_REPORT

    @property
    def seconds(self) -> float:
        """How long this wait has taken."""
        return time.monotonic() - self._start

    def over(self, extra: float = 0.0) -> bool:
        """Whether the limit, and ``extra`` seconds, have passed."""
        return self.limit is not None and self.seconds > self.limit + extra

    def report_due(self) -> bool:
        """Whether to say who is awaited; true once per interval."""
        if self.seconds <= self._report:
            return False
        self._report = self.seconds + LATER_REPORTS
        return True

    def sleep(self) -> None:
        """Sleep, a little longer each time."""
        time.sleep(self._sleep)
        self._sleep = min(1.5 * self._sleep, LONGEST_SLEEP)
