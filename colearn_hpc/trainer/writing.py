"""How a run's files are written: under a temporary name in the folder where they belong, then renamed.

Several organisations may have a right to write in a run folder. So a temporary file is made anew, never opened where
something lies already, and no link is followed; its name carries the start that writes it, so that two starts which
both believe the folder is theirs (see writer_lock.py) never write the same file.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PRIVATE = 0o600  # what only the data center's own user reads
PUBLIC = 0o644  # what others of the run's group are meant to read, whatever the umask

_JSON = r"contract|summary|status|writer"
_OURS = rf"resume-.*\.ckpt|(shared|local|model)\.ckpt|rounds(\.damaged)?\.jsonl|config\.yaml|({_JSON})\.json"
_TEMPORARY = re.compile(rf"\.({_OURS})(\.[0-9a-f]*-[0-9a-f]+)?\.tmp")


def temporary(path: Path, start: str) -> Path:
    """A new name beside ``path``.

    Args:
        path: of the file that is to be written.
        start: of the run that writes it (``DataCenter.start``).
    """
    return path.with_name(f".{path.name}.{start[:8]}-{secrets.token_hex(4)}.tmp")


@contextmanager
def opened_new(path: Path, mode: int | None = None, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that is not there yet, open for writing, and on the disk at the end.

    Args:
        path: of the file.
        mode: its permissions, whatever the umask; None: as the umask has it.
        binary: of what is written.

    Raises:
        FileExistsError: something lies there, be it a link that leads nowhere.
        OSError: the disk refuses.
    """
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666 if mode is None else mode)
    with os.fdopen(number, "wb" if binary else "w") as file:
        if mode is not None:
            os.fchmod(number, mode)
        yield file
        file.flush()
        os.fsync(number)


def write_atomically(path: Path, text: str, start: str = "", mode: int | None = None) -> None:
    """Write under a temporary name, then rename: the file is old or new, never half.

    Args:
        path: of the file.
        text: all that it holds.
        start: of the run that writes it.
        mode: its permissions; None: as the umask has it.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    new = temporary(path, start)
    try:
        with opened_new(new, mode) as file:
            file.write(text)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def private_folder(folder: Path) -> None:
    """Make a folder that nobody else may enter, or make it so.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # somebody else's, or a file system without permissions
        folder.chmod(0o700)


def remove_leftovers(folder: Path) -> None:
    """Remove what starts that were killed while they wrote have left here. Only who alone writes here may."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
