"""SIGUSR1 and SIGTERM set a flag, and nothing else: the run looks at it where it can stop.

A batch system warns before it kills: of the time limit by SIGUSR1 (``sbatch --signal``), of preemption by SIGTERM.
Neither may be acted upon inside the handler: half a batch may be in the optimizer, and the other ranks are elsewhere.

Light to import: the handlers should stand before the heavy libraries are loaded, because a USR1 without one kills.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # it ends workers at exit; what is registered after it comes before it
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

received: list[str] = []  # names of the signals since listen()
_previous: dict[int, Any] = {}
_ends_workers = False


def listen() -> None:
    """Take SIGUSR1 and SIGTERM. Again: take them back from whoever has taken them since.

    Lightning's own SIGTERM handler, set when a fit begins, broadcasts from within the handler: on ranks that are
    signalled at different batches that would mix up their collectives.
    """
    global _ends_workers
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            before = signal.signal(number, _note)
            if before is not _note:
                _previous.setdefault(number, before)
        if not _ends_workers:
            _ends_workers = True
            atexit.register(_end_workers)


def _end_workers() -> None:
    """The interpreter would TERM data loaders' workers and wait for them, for ever if one hangs in its fork, with our
    handler and no turn to run it: CPython before 3.11.10 and 3.12 can (gh-112275)."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def first() -> str:
    """The name of the first signal since :func:`listen`, or nothing."""
    return received[0] if received else ""


def served() -> None:
    """The run has stopped, and this process is leaving with a code of its own: no signal may change that any more.

    The launcher sends TERM to the rest as soon as the first rank has left. Lightning's teardown puts its own handlers
    back, and the interpreter takes handlers down before it ends; only "ignore", set last, stays.
    """
    received.clear()
    ignore()
    atexit.register(ignore)


def ignore() -> None:
    """Let USR1 and TERM do nothing from here on."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def forget() -> None:
    """Give the signals back to whoever had them, and drop those received: nobody looks at the flag any more."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in _previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _previous.clear()
    received.clear()


def _note(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number).name)
