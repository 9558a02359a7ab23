"""The one place that chooses what carries a run: it finds this process's data center, and how it reaches the others."""

from __future__ import annotations

from collections.abc import Callable

from colearn_hpc.between import Connection
from colearn_hpc.mpi.roll_call import end_world
from colearn_hpc.mpi.topology import CentersSpec, DataCenter

__all__ = ["CentersSpec", "DataCenter", "connect", "end_world"]


def connect(
    center: DataCenter, lanes: int | None = 1, patience: float | None = None, late: Callable[[], str] = lambda: ""
) -> Connection:
    """How this process reaches the others of its run. Collective over the world; waits politely for all.

    Does not return where a rank has ended instead, or does not come in time: then all ranks are ended.

    Args:
        center: this process's data center.
        lanes: ranks of each data center that share the transfer of a mean; None: one per node.
        patience: seconds to wait for all ranks; None: for ever.
        late: why all are ended when they do not come in time.

    Raises:
        TopologyError: on all ranks, when there cannot be so many lanes.
    """
    from colearn_hpc.mpi.between import MpiBetween
    from colearn_hpc.mpi.site import MpiSite

    if center.roll_call is not None:
        center.roll_call.wait(patience, late)
    site = MpiSite(center)
    return Connection(center, site, MpiBetween(center, site, lanes))
