"""Lanes: the ranks of a data center that share the transfer of a mean, one on each of its nodes.

    lane 0   the leaders                                                    the first part of the vector
    lane 1   one rank of each data center, on another node than its leader  the second
    …        as many as the data center with the fewest nodes has nodes

Each lane takes the mean of its part by itself, over the links of its own nodes; then the parts are spread inside each
data center (``trainer/means.py``). Who takes part in a lane is called a carrier.

Where a model is sharded inside each data center, every rank is a carrier: lane r are the ranks r of all data centers,
each with its own shard, and nothing is spread.

Source: multi-lane collectives, Träff 2019, arXiv:1910.13373.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.topology import Topology


@dataclass(frozen=True)
class NodePlace:
    """Where a world rank runs: its data center's index, and its node and its place on the node within that."""

    center: int
    node_rank: int
    local_rank: int


def deal(places: Sequence[NodePlace], lanes: int | None = None) -> list[list[int]]:
    """Who carries what: the world ranks of each lane, in the order of the data centers.

    Lane 0 are the leaders. The first lanes of a data center are on different nodes. One data center alone has one lane.

    Args:
        places: by world rank.
        lanes: how many; None: one per node of the data center that has the fewest.

    Raises:
        TopologyError: more lanes than some data center has ranks.
    """
    centers = sorted({place.center for place in places})
    # One rank per node, then a second one per node, …
    members = {
        k: sorted(
            (r for r, place in enumerate(places) if place.center == k),
            key=lambda r: (places[r].local_rank, places[r].node_rank),
        )
        for k in centers
    }
    nodes = {k: len({places[r].node_rank for r in members[k]}) for k in centers}
    count = min(nodes.values()) if lanes is None else lanes
    if len(centers) == 1:
        count = 1  # nothing travels
    for k in centers:
        if len(members[k]) < count:
            raise TopologyError(
                f"exchange: lanes={count} needs as many ranks in every data center; the one with index {k} has "
                f"{len(members[k])}. Set fewer lanes, or none: one per node"
            )
    return [[members[k][lane] for k in centers] for lane in range(count)]


def deal_shards(topology: Topology) -> list[list[int]]:
    """One lane per rank of a data center: the world ranks of equal place, in the order of the data centers.

    Raises:
        TopologyError: the data centers have different numbers of ranks, so their shards do not fit.
    """
    if len({len(center.world_ranks) for center in topology.centers}) > 1:
        raise TopologyError(
            f"a sharded model needs as many ranks in every data center, found {topology.describe()}; start the same "
            "number in each"
        )
    return [list(ranks) for ranks in zip(*(center.world_ranks for center in topology.centers), strict=True)]


def places_of(topology: Topology) -> list[NodePlace]:
    """Where every world rank runs, by world rank; of a topology that knows its hosts."""
    places: dict[int, NodePlace] = {}
    for center in topology.centers:
        nodes = list(dict.fromkeys(center.hosts))
        for at, (world_rank, host) in enumerate(zip(center.world_ranks, center.hosts, strict=True)):
            local_rank = center.hosts[:at].count(host)
            places[world_rank] = NodePlace(center.index, nodes.index(host), local_rank)
    return [places[rank] for rank in sorted(places)]
