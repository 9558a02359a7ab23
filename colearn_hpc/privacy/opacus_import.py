"""Opacus, imported where it is needed: an optional dependency with a side effect."""

from __future__ import annotations

import logging

from colearn_hpc.errors import ConfigurationError


def import_opacus() -> None:
    """Import Opacus, and leave the root logger alone, which 1.6 configures when it is imported.

    Raises:
        ConfigurationError: it is not installed.
    """
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        import opacus.validators  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "differential privacy needs Opacus, which is not installed: pip install 'colearn_hpc[privacy]'"
        ) from error
    finally:
        root.handlers[:] = handlers
