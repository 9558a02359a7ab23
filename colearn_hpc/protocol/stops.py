"""One word that nobody waits for: stop at your next safe point."""

from __future__ import annotations

import time
from collections.abc import Callable

from colearn_hpc.protocol.transport import Meetings, Site

# Calls that are answered without asking the other ranks: if batches become slow, a stop must not wait for long.
_MOST_CALLS = 100


def no_signal() -> str:
    """This process was not signalled."""
    return ""


class StopRequests:
    """Who was asked to stop, known to all data centers without a collective between them.

    A rank that was signalled tells its leader, and the leader the others; leaders look for such words whenever they are
    at a safe point or waiting. Safe points of different data centers need not be the same moment: each writes its own
    resume point, and within a round these fit together.

    Args:
        site: inside this data center.
        between: between the data centers.

    Attributes:
        signal: tells whether this process was signalled: the signal's name, or nothing.
        reason: why to stop, empty while there is no reason.
        alone: this data center has one rank: it need not ask anybody.
        due: all ranks of this data center know a reason; once yes, always yes.
    """

    def __init__(self, site: Site, between: Meetings) -> None:
        self.signal: Callable[[], str] = no_signal
        self.reason = ""
        self._site, self._between = site, between
        self._passed_on = False
        self.alone, self.due = site.size == 1, False
        self._calls, self._asked, self._asked_every = 0, time.monotonic(), 0

    def poll(self) -> str:
        """Why to stop, as far as this rank knows. Never blocks; passes this process's own signal on, once."""
        signal = self.signal()
        reason = f"{signal} at data center {self._site.name} ({self._site.host})" if signal else ""
        if self._site.rank:
            if reason and not self._passed_on:
                self._passed_on, self.reason = True, self.reason or reason
                self._site.call_leader(reason)
            return self.reason
        reason = reason or next(iter(self._site.calls()), "")
        if reason and not self._passed_on:
            self._passed_on = True
            self._between.ask_to_stop(reason)
        self._between.listen()
        self.reason = self.reason or reason or self._between.stop_asked
        self.due |= self.alone and bool(self.reason)
        return self.reason

    def agreed(self) -> bool:
        """Whether any rank of this data center knows a reason; once yes, always yes. Collective over the data center.

        Raises:
            CenterBrokenError: a rank of this data center failed.
        """
        if not self.alone:
            self.confer()
        elif self.signal():  # what others have said came with the progress that is told at every batch
            self.poll()
        return self.due

    def confer(self) -> None:
        """Let several ranks tell each other what they know. Collective over the data center.

        The ranks of a data center stop at the same batch, because the next one's gradients take them all. A sum over
        them at every batch would show where cores are shared; so they agree on how many calls come in half a second,
        and at all but the last of these nobody is asked.

        Raises:
            CenterBrokenError: a rank of this data center failed.
        """
        if self.due:
            return
        self._calls += 1
        if self._calls < self._asked_every:
            return
        now = time.monotonic()
        usual = int(0.5 * self._calls / max(now - self._asked, 1e-3))
        # Two calls may come close together, as at an epoch's end: that alone must not make them seldom.
        usual = min(usual, 2 * self._asked_every + 1, _MOST_CALLS)
        known, self._asked_every = self._site.largest(bool(self.poll()), usual)
        self._calls, self._asked, self.due = 0, now, bool(known)

    def regrouped(self) -> None:
        """The data center begins again: its ranks count their calls from here."""
        self._calls, self._asked, self._asked_every = 0, time.monotonic(), 0
        self.due = self.alone and bool(self.reason)
