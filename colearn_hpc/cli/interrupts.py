"""SIGTERM and Ctrl-C as one ``KeyboardInterrupt`` that is not lost, for commands that clean up after themselves."""

from __future__ import annotations

import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_SECONDS = 0.05


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does: batch systems end jobs by it, and Python would die on the spot.

    Neither is lost. Where it is raised in a ``__del__`` or in a weak reference's callback (an import runs many), Python
    prints and drops it; here it is raised again a moment later. Outside the main thread, which hears no signals,
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook

    def raise_again(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # Not from here, where it would be dropped as well; and not as SIGINT, which a script that starts us in the
            # background has ignored.
            threading.Timer(_AGAIN_SECONDS, interrupt_main, [signal.SIGTERM]).start()
        else:
            hook(dropped)

    before = signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
