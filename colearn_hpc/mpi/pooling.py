"""Which data centers a run *would* have: for the methods that put all ranks into one.

Vanilla-learning needs the names of all data centers (their shards are pooled), single the name of one, before the
ranks are arranged as one data center of that name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.startup import prepare_environment
from colearn_hpc.mpi.topology import CENTER_VARIABLE, CentersSpec, declared_center
from colearn_hpc.mpi.wire import allgather_plain


def declared_names(centers: CentersSpec) -> tuple[list[str], list[str]]:
    """Names of all data centers that were set, and of those whose ranks are running. Collective over the world.

    Names in the ranks' environment come first, then ``centers`` (dc0, dc1, …), then one data center per rank. Any
    number of ranks may be running. The second list is empty where no rank was given a name.

    Raises:
        TopologyError: on all ranks, when ``centers`` is neither a number, nor a list of sizes, nor None.
    """
    prepare_environment()
    from mpi4py import MPI

    declared = allgather_plain(MPI.COMM_WORLD, declared_center(os.environ))
    return names_of(centers, declared), list(dict.fromkeys(name for name in declared if name))


def names_of(centers: CentersSpec, declared: Sequence[str | None]) -> list[str]:
    """The pure core of :func:`declared_names`: ``declared`` holds each rank's own name or None."""
    named = list(dict.fromkeys(name for name in declared if name))
    if isinstance(centers, bool) or not isinstance(centers, int | list | None):
        raise TopologyError(f"centers must be a number, a list of sizes, or left out; found {centers!r}").on_all_ranks()
    count = len(declared) if centers is None else centers if isinstance(centers, int) else len(centers)
    if count < 1:
        raise TopologyError(f"centers={centers!r}: at least one data center is needed").on_all_ranks()
    # Fewer names than data centers: only some of them run here, as when one center's ranks train on pooled data.
    if named and (centers is None or len(named) == count):
        return named
    return [f"dc{k}" for k in range(count)]


def declare(name: str) -> None:
    """Make this rank a member of data center ``name``: to be called on all ranks before they join."""
    os.environ[CENTER_VARIABLE] = name
