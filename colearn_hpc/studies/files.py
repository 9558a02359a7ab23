"""Files that others may read while they are written."""

from __future__ import annotations

import fcntl
import secrets
from pathlib import Path
from typing import IO


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: the file is old or new, never half.

    The name is new and cannot be guessed, so that nobody else's file or link lies there: several people may have a
    right to write in a run folder.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def held(path: Path) -> IO[bytes]:
    """A file that is this process's until it is closed, or the process ends.

    A file system that knows no locks lets everybody have it.

    Raises:
        BlockingIOError: another process has it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass
    return file
