"""``prepare_data`` runs once per host, whatever the number of data centers there.

Lightning calls it in one process per node, and takes a data center for all of its world: several data centers on one
host would download into the same folder at once. It comes before anything of ours could send a message, and who fails
in it must keep nobody waiting: so they queue at a file of this host, which the kernel unlocks when its holder ends.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("colearn_hpc")


class Preparation:
    """Guards ``prepare_data`` of data modules and modules, from a fit's beginning to :meth:`over`."""

    def __init__(self) -> None:
        self._guarded: list[tuple[Any, Path]] = []
        self._done: set[Path] = set()

    def guard(self, owners: Iterable[Any], start: str) -> None:
        """The first process of this host that comes to an owner's ``prepare_data`` runs it; the others wait for it.

        Where it fails, the next one tries.

        Args:
            owners: the same in all processes, in order.
            start: of the run (``DataCenter.start``).
        """
        self._unguard()
        with suppress(FileNotFoundError):  # no folder for temporary files: then it is as in plain Lightning
            folder = Path(tempfile.gettempdir())
            for number, owner in enumerate(owners):
                path = folder / f"colearn-{os.getuid()}-{start}-{number}"
                owner.prepare_data = self._once(owner.prepare_data, path)
                self._guarded.append((owner, path))

    def over(self) -> None:
        """All processes have prepared their data."""
        self._unguard()
        for path in self._done:
            path.unlink(missing_ok=True)

    def _unguard(self) -> None:
        for owner, _ in self._guarded:
            vars(owner).pop("prepare_data", None)
        self._guarded.clear()

    def _once(self, prepare: Callable[[], Any], path: Path) -> Callable[[], None]:
        @functools.wraps(prepare)
        def prepared() -> None:
            if path in self._done:
                return  # before a failure
            try:
                number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                log.info("%s: %s; data centers of this host do not wait for each other", path, error)
                prepare()
                return
            try:
                fcntl.flock(number, fcntl.LOCK_EX)
                if not os.fstat(number).st_size:
                    prepare()
                    os.write(number, b"done")
                self._done.add(path)
            finally:
                os.close(number)

        return prepared
