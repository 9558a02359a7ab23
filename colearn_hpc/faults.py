"""Where a rehearsed fault may strike. Nothing happens here unless a fault was ordered (``trainer/inject.py``)."""

from __future__ import annotations

from collections.abc import Callable

_listeners: list[Callable[[str], Callable[[], None]]] = []


def reached(moment: str) -> None:
    """Tell whoever rehearses faults that this process is at ``moment``: ``"exchange"`` or ``"checkpoint"``."""
    later(moment)()


def later(moment: str) -> Callable[[], None]:
    """What to call when ``moment`` is reached, perhaps in a thread, when the run has gone on from where it is now."""
    strikes = [listener(moment) for listener in _listeners]

    def strike() -> None:
        for one in strikes:
            one()

    return strike


def on_moment(listener: Callable[[str], Callable[[], None]]) -> None:
    """Ask ``listener`` from here on, in place of an earlier one, what is to happen at a moment of this place in the
    run."""
    _listeners[:] = [listener]
