"""Where a rehearsed fault may strike. Nothing happens here unless a fault was ordered (``trainer/inject.py``)."""

from __future__ import annotations

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []


def reached(moment: str) -> None:
    """Tell whoever rehearses faults that this process is at ``moment``: ``"exchange"`` or ``"checkpoint"``."""
    for listener in _listeners:
        listener(moment)


def on_moment(listener: Callable[[str], None]) -> None:
    """Call ``listener`` with every moment from here on, in place of an earlier listener."""
    _listeners[:] = [listener]
