"""The one place that chooses what carries a run: it finds this process's data center, and how it reaches the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colearn_hpc.between import Connection
from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.roll_call import end_world
from colearn_hpc.mpi.topology import CENTER_VARIABLE, CentersSpec, DataCenter, start_command

if TYPE_CHECKING:
    from colearn_hpc.federation.link import Membership

__all__ = [
    "CentersSpec",
    "DataCenter",
    "as_site",
    "connect",
    "decline",
    "end_world",
    "read_membership",
    "start_command",
]


def connect(
    center: DataCenter,
    lanes: int | None = 1,
    patience: float | None = None,
    late: Callable[[], str] = lambda: "",
    membership: Membership | None = None,
    sharded: bool = False,
    device: Any = None,
) -> Connection:
    """How this process reaches the others of its run. Collective over the world; waits politely for all.

    Does not return where a rank has ended instead, or does not come in time: then all ranks are ended.

    Args:
        center: this process's data center.
        lanes: ranks of each data center that share the transfer of a mean; None: one per node.
        patience: seconds to wait for all ranks; None: for ever.
        late: why all are ended when they do not come in time.
        membership: this MPI world is one site of that federation; None: all data centers are in this world.
        sharded: every rank holds a shard of the model, and carries it.
        device: where this rank's model lies, a ``torch.device`` from which it is sent; None: models travel through
            host memory.

    Raises:
        ConfigurationError: on all ranks, when there cannot be so many lanes, or models cannot be sent from there.
    """
    from colearn_hpc.mpi.between import MpiBetween
    from colearn_hpc.mpi.site import MpiSite

    if center.roll_call is not None:
        center.roll_call.wait(patience, late)
    site = MpiSite(center)
    if membership is None:
        return Connection(center, site, MpiBetween(center, site, lanes, sharded, device=device))
    from colearn_hpc.federation.between import FederatedBetween

    inside = MpiBetween(center, site, 1)
    return Connection(center, site, FederatedBetween(membership, center.is_leader, inside.give_up))


def decline(center: DataCenter, patience: float, text: str, own: str) -> None:
    """Tell all who come to a run's beginning that this rank cannot take part: in place of :func:`connect`, and
    collective with it over the world.

    Does not return where not all come in time: then all ranks are ended.

    Args:
        center: this process's data center.
        patience: seconds to wait for all ranks.
        text: why, for all to hear.
        own: the same for this rank's own output, where not all come.

    Raises:
        PeerError: on all ranks.
    """
    from colearn_hpc.mpi.between import MpiBetween
    from colearn_hpc.mpi.site import MpiSite

    if center.roll_call is not None:
        center.roll_call.wait(patience, lambda: own)
    MpiBetween(center, MpiSite(center), failed=text)


def read_membership(federation: Path | str, site: str | None, identity: Path | str | None = None) -> Membership:
    """Of which site of which federation this process is (:class:`~colearn_hpc.federation.link.Membership`).

    Raises:
        ConfigurationError: a file cannot be read, or they do not belong together.
    """
    from colearn_hpc.federation.link import Membership

    return Membership.read(federation, site, identity)


def as_site(center: DataCenter, membership: Membership | None) -> DataCenter:
    """The data center under its site's name, which its files and its data are found by.

    Raises:
        TopologyError: on all ranks, when this MPI world holds several data centers.
    """
    if membership is None:
        return center
    if len(center.topology.centers) != 1:
        raise TopologyError(
            f"a site of a federation is one data center, and this MPI world holds {center.topology.describe()}; start "
            "each site by itself, and leave out `centers` and COLEARN_CENTER"
        ).on_all_ranks()
    os.environ[CENTER_VARIABLE] = membership.name
    topology = replace(center.topology, centers=(replace(center.topology.centers[0], name=membership.name),))
    return replace(center, name=membership.name, topology=topology)
