"""``colearn-hpc slurm list|copy``: the scripts for Slurm and other batch systems that come with this package."""

from __future__ import annotations

from collections.abc import Sequence

from colearn_hpc.cli import shipped


def main(argv: Sequence[str]) -> int:
    """Run ``slurm``; returns the exit code."""
    return shipped.run(argv, "slurm", "batch script")
