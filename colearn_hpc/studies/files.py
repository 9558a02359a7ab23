"""Files that others may read while they are written."""

from __future__ import annotations

import secrets
from pathlib import Path


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
