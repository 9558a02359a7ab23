"""SIGTERM as KeyboardInterrupt that is not lost."""

import signal
import sys
import threading
import time
import weakref

import pytest

from colearn_hpc.cli.interrupts import terminated_like_interrupted


class Thing:
    pass


def after(seconds):
    """Wait for an interrupt, and return where none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_sigterm_is_a_keyboard_interrupt_inside_and_as_before_outside():
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        signal.raise_signal(signal.SIGTERM)
        after(60)
    assert signal.getsignal(signal.SIGTERM) is before and sys.unraisablehook is hook


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_python_drops_comes_again(number, capfd):
    def callback(_):
        signal.raise_signal(number)
        after(60)

    thing = Thing()
    kept = weakref.ref(thing, callback)
    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        del thing
        after(60)
        raise AssertionError("the interrupt was lost")
    assert kept() is None and "ignored" not in capfd.readouterr().err


def test_other_dropped_errors_are_still_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def callback(_):
        raise ValueError("of a callback")

    thing = Thing()
    kept = weakref.ref(thing, callback)
    with terminated_like_interrupted():
        del thing
    assert kept() is None and [str(dropped.exc_value) for dropped in told] == ["of a callback"]


def test_a_thread_changes_nothing():
    seen = []

    def work():
        with terminated_like_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
