"""The one place that chooses what carries a run: it finds this process's data center, and how it reaches the others."""

from __future__ import annotations

from colearn_hpc.between import Connection
from colearn_hpc.mpi.topology import CentersSpec, DataCenter

__all__ = ["CentersSpec", "DataCenter", "connect"]


def connect(center: DataCenter, lanes: int | None = 1) -> Connection:
    """How this process reaches the others of its run. Collective over the world.

    Args:
        center: this process's data center.
        lanes: ranks of each data center that share the transfer of a mean; None: one per node.

    Raises:
        TopologyError: on all ranks, when there cannot be so many lanes.
    """
    from colearn_hpc.mpi.between import MpiBetween
    from colearn_hpc.mpi.site import MpiSite

    site = MpiSite(center)
    return Connection(center, site, MpiBetween(center, site, lanes))
