"""Who is here, and what each site last said of itself: for people, and to tell two processes of one site apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colearn_hpc.federation.coordinator.store import Store

_OLD_SESSIONS = 50  # of a site, that are remembered


@dataclass
class _Seen:
    state: str = "never seen"  # here, away, finished
    text: str = ""
    since: float = 0.0
    heard: float = 0.0
    topic: str = ""


class Roster:
    """What is known of each site.

    Args:
        names: in order.
        store: what survives.
    """

    def __init__(self, names: Sequence[str], store: Store) -> None:
        self._names, self._store = list(names), store
        standing = store.standing
        self._active = set(range(len(names))) if standing is None else set(standing.active)
        self._seen = [_Seen() for _ in names]
        self._sessions: list[list[str]] = [list(store.fact(f"sessions {k}", [])) for k in range(len(names))]
        self._finished: set[int] = set(store.fact("finished sites", []))
        self._stop: dict[str, str] = dict(store.fact("stop", {}))  # session -> why
        for k in self._finished:
            self._seen[k].state = "finished"
        for k in set(range(len(names))) - self._active:
            self._seen[k].state = "has left"

    @property
    def all_finished(self) -> bool:
        """Whether every site has said that the run is over for it; who has left has nothing to say."""
        return bool(self._active) and self._active <= self._finished

    def has_spoken(self, site: int, session: str) -> bool:
        """Whether this process is the newest one of its site that is known."""
        return self._sessions[site][-1:] == [session]

    def begins(self, site: int, session: str) -> bool | None:
        """A process of a site speaks.

        Returns:
            Whether it is one that had not spoken yet, or had been away; None: a newer one has taken its place.
        """
        known = self._sessions[site]
        if session in known[:-1]:
            return None
        new = not known or known[-1] != session
        if new:
            mine = [*known, session][-_OLD_SESSIONS:]
            self._store.note(**{f"sessions {site}": mine})
            self._sessions[site] = mine
        seen = self._seen[site]
        seen.heard = time.time()
        if new or seen.state in ("never seen", "away"):
            self._seen[site] = _Seen("here", "", seen.heard, seen.heard)
            return True
        return False

    def heard(self, site: int, text: str) -> None:
        """A site says how far it is."""
        self._seen[site].text = text

    def arrives(self, site: int, topic: str) -> bool:
        """A site comes to a meeting; whether it had not come there yet."""
        seen = self._seen[site]
        new = seen.topic != topic
        seen.topic, seen.text = topic, f"at {topic}"
        return new

    def away(self, site: int, reason: str) -> None:
        """A site leaves, and says why."""
        now = time.time()
        self._seen[site] = _Seen("away", reason, now, now)

    def finished(self, site: int) -> None:
        """For this site the run is over."""
        self._store.note(**{"finished sites": sorted(self._finished | {site})})
        self._finished.add(site)
        self._seen[site].state = "finished"

    def stop_all(self, reason: str) -> None:
        """Ask the processes that are at work now to stop; not those that come after them."""
        stop = {known[-1]: reason for known in self._sessions if known}
        self._store.note(stop=stop)
        self._stop = stop

    def stop_for(self, site: int, session: str) -> str:
        """Why this process is to stop; empty while it is not."""
        return self._stop.get(session, "")

    def text(self, site: int, now: float) -> str:
        """What is known of a site, for people."""
        seen = self._seen[site]
        if seen.state == "never seen":
            return "never seen"
        if seen.state == "away":
            return f"away: {seen.text}, since {now - seen.since:.0f} s"
        return f"{seen.text or seen.state}, heard {now - seen.heard:.0f} s ago"

    def status(self, site: int, waits: bool, now: float) -> dict[str, Any]:
        """The same as plain data, for ``watch``."""
        seen = self._seen[site]
        state = "waiting" if waits and seen.state == "here" else seen.state
        heard = round(now - seen.heard, 1) if seen.heard else None
        return {"state": state, "text": seen.text, "heard_seconds_ago": heard}
