"""One line per event, for whoever reads the coordinator's output or its journal: as text, or as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from colearn_hpc.federation.wire import texts

Sink = Callable[..., None]


class Events:
    """Prints events.

    Args:
        as_json: an object a line instead of text.
        out: where to.
    """

    def __init__(self, as_json: bool = False, out: TextIO | None = None) -> None:
        self._as_json, self._out = as_json, out or sys.stdout

    def __call__(self, event: str, text: str = "", **facts: Any) -> None:
        """Print one.

        Args:
            event: its kind, one word or two.
            text: for people; what a site said is made printable.
            facts: for programs.
        """
        now = time.time()
        if self._as_json:
            line = json.dumps({"time": round(now, 3), "event": event, "text": texts(text, 2000), **facts})
        else:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
            line = f"{stamp} {event}: {texts(text, 2000)}" if text else f"{stamp} {event}"
        with contextlib.suppress(OSError):  # whoever read it is gone; the run is not
            print(line, file=self._out, flush=True)
