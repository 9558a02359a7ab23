"""``colearn-hpc serve``: the coordinator of a federation."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import ColearnError, ConfigurationError
from colearn_hpc.federation.agreement import Federation, split_address
from colearn_hpc.federation.coordinator.events import Events
from colearn_hpc.federation.coordinator.service import serve
from colearn_hpc.federation.identity import Identity

_M_ARENA_MAX = -8  # of glibc's malloc.h


def main(argv: Sequence[str]) -> int:
    """Serve one run until all its sites have finished; returns the exit code."""
    parser = Parser(
        prog="colearn-hpc serve",
        description="The coordinator of a federation: it keeps the roster, holds meetings, and sums the sites' models. "
        "It needs one open port, no GPU and no torch. It may be killed and started again at any moment.",
    )
    parser.add_argument("federation", type=Path, help="federation.yaml, the same as at all sites")
    parser.add_argument(
        "--identity",
        type=Path,
        help="folder of the coordinator's certificate and key; default: `coordinator` beside it",
    )
    parser.add_argument("--state", type=Path, help="folder of what survives a kill; default: `state` beside it")
    parser.add_argument("--listen", help="address:port; default: all addresses, and the port that the file names")
    parser.add_argument("--json", action="store_true", help="one JSON object an event instead of a line of text")
    parser.add_argument(
        "--metrics", type=int, metavar="PORT", help="serve figures for Prometheus on this port of the loopback address"
    )
    options = parser.parse_args(argv)
    _keep_one_heap()
    try:
        federation = Federation.read(options.federation)
        beside = options.federation.parent
        identity = Identity.read(options.identity or beside / "coordinator")
        if identity.fingerprint != federation.coordinator_fingerprint:
            raise ConfigurationError(
                f"the certificate in {identity.folder} is {identity.fingerprint[:23]}…, and {options.federation} lists "
                f"{federation.coordinator_fingerprint[:23]}… for the coordinator; use its own identity"
            )
        listen = options.listen or f"[::]:{split_address(federation.coordinator)[1]}"
        state = options.state or beside / "state"
        asyncio.run(
            serve(federation, options.federation, identity, state, listen, Events(options.json), options.metrics)
        )
    except ColearnError as error:
        print(f"colearn-hpc: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _keep_one_heap() -> None:
    """Let all threads of this process share one heap; another C library than glibc, or the user's setting, stays.

    gRPC frees a chunk on another thread than it was taken on; with a heap for each thread the coordinator is a third
    larger.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
