"""Data sources by the name that ``colearn-hpc data NAME`` uses: one file per source, imported when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from colearn_hpc.errors import DataError

if TYPE_CHECKING:
    from colearn_hpc.data.sources.base import Source

# name -> (module, class, one line of help); a table and not a scan, so that --help imports nothing.
SOURCES: dict[str, tuple[str, str, str]] = {
    "digits": ("digits", "Digits", "scikit-learn's 1,797 handwritten digits, 8 x 8; needs no download"),
    "imagefolder": ("imagefolder", "ImageFolder", "a folder, zip or tar of split/class/*.jpg|png"),
}


def source_class(name: str) -> type[Source]:
    """The class of a source.

    Raises:
        DataError: no source has that name.
    """
    if name not in SOURCES:
        raise DataError(f"data: there is no source {name!r}; choose one of {', '.join(sorted(SOURCES))}.")
    module, class_name, _ = SOURCES[name]
    found: type[Source] = getattr(importlib.import_module(f"colearn_hpc.data.sources.{module}"), class_name)
    return found
