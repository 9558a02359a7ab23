"""Paths and names that users write."""

from __future__ import annotations

import re
from pathlib import Path

from colearn_hpc.errors import DataError


def is_center_name(name: str) -> bool:
    """Whether a name can be that of a data center, which becomes the name of its files and of its logs."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None


def expanded(text: str, setting: str) -> Path:
    """A path with its ``~`` replaced.

    Args:
        text: as the user wrote it.
        setting: where, for messages.

    Raises:
        DataError: the system knows no home folder (containers often have none), or the path cannot be one.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{setting}: {text!r} begins with ~, but no home folder is known (HOME is not set); write the whole path."
        ) from error
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name too long, a NUL byte, a folder that may not be searched
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{setting}: {text[:100]!r} cannot be looked up: {reason}; correct the path.") from error
    return path
