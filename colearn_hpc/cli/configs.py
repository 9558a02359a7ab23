"""``colearn-hpc configs list|copy``: the configuration files that come with this package."""

from __future__ import annotations

from collections.abc import Sequence

from colearn_hpc.cli import shipped


def main(argv: Sequence[str]) -> int:
    """Run ``configs``; returns the exit code."""
    return shipped.run(argv, "configs", "configuration file")
