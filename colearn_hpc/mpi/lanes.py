"""Lanes: the ranks of a data center that share the transfer of a mean, one on each of its nodes.

    lane 0   the leaders                                                    the first share of the vector
    lane 1   one rank of each data center, on another node than its leader  the second
    …        as many as the data center with the fewest nodes has nodes

Each lane takes the mean of its share by itself, over the links of its own nodes; then the shares are spread inside each
data center. Who takes part in a lane is called a carrier.

Source: multi-lane collectives, Träff 2019, arXiv:1910.13373.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.center_link import CenterLink
from colearn_hpc.mpi.pipeline import Source

if TYPE_CHECKING:
    from mpi4py import MPI

    from colearn_hpc.mpi.topology import DataCenter

CHUNK = 1 << 24  # elements per message inside a data center: counts stay far below 2^31 bytes
_ALIGNED = 16  # elements: shares begin with a cache line


@dataclass(frozen=True)
class Place:
    """Where a world rank runs: its data center's index, and its node and its place on the node within that."""

    center: int
    node_rank: int
    local_rank: int


def deal(places: Sequence[Place], lanes: int | None = None) -> list[list[int]]:
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


class Lanes:
    """This rank's place in the lanes. Collective over the world.

    Args:
        center: this process's data center.
        lanes: see :func:`deal`; the same on all ranks.

    Attributes:
        count: how many lanes there are.
        index: this rank's, None where it does not carry.

    Raises:
        TopologyError: on all ranks; see :func:`deal`.
    """

    def __init__(self, center: DataCenter, lanes: int | None = None) -> None:
        from mpi4py import MPI

        said = center.world.allgather((Place(center.index, center.node_rank, center.local_rank), lanes))
        try:
            if len({wanted for _, wanted in said}) > 1:
                found = ", ".join(sorted({str(wanted) for _, wanted in said}))
                raise TopologyError(f"the ranks were given different numbers of lanes: {found}; use one configuration")
            dealt = deal([place for place, _ in said], lanes)
        except TopologyError as error:
            raise error.on_all_ranks() from None
        mine = [lane for lane, ranks in enumerate(dealt) if center.world_rank in ranks]
        self.count = len(dealt)
        self.index = mine[0] if mine else None
        world_ranks = center.topology.centers[center.index].world_ranks
        self._carriers = [world_ranks.index(ranks[center.index]) for ranks in dealt]  # center_ranks, by lane
        color = MPI.UNDEFINED if self.index is None else self.index
        self._comm = cast("MPI.Intracomm", center.world.Split(color, center.index))
        self._groups: dict[tuple[int, ...], MPI.Intracomm] = {}

    def group(self, present: tuple[int, ...]) -> MPI.Intracomm:
        """This lane's ranks of the data centers ``present``. Collective over them alone."""
        if len(present) == self._comm.Get_size():
            return self._comm
        if present not in self._groups:
            self._groups[present] = self._comm.Create_group(self._comm.Get_group().Incl(present))
        return self._groups[present]

    def share(self, size: int, lane: int | None = None) -> slice:
        """The part of a vector of ``size`` elements that a lane carries; this rank's, where none is named."""
        lane = self.index if lane is None else lane
        assert lane is not None, "this rank does not carry"
        first, last = (min(-(-size * end // (self.count * _ALIGNED)) * _ALIGNED, size) for end in (lane, lane + 1))
        return slice(first, last)

    def spread(self, vector: Tensor, link: CenterLink) -> None:
        """Give each carrier's share to all ranks of the data center, in place. Collective over the data center.

        Who is early waits politely: carriers may be busy with a slow link for minutes.

        Args:
            vector: contiguous CPU vector; this rank's share of it is there.
            link: the data center's.
        """
        from mpi4py import MPI

        comm = link.enter()
        # All shares at once: each begins on another node.
        MPI.Request.Waitall(
            [
                comm.Ibcast(block.numpy(), carrier)
                for lane, carrier in enumerate(self._carriers)
                for block in vector[self.share(len(vector), lane)].split(CHUNK)
            ]
        )


class Share:
    """A stretch of a :class:`Source` as one.

    Args:
        whole: of all lanes.
        place: the stretch.
    """

    def __init__(self, whole: Source, place: slice) -> None:
        self._whole, self._first = whole, place.start
        self.size, self.dtype, self.on_gpu = place.stop - place.start, whole.dtype, whole.on_gpu

    def read(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        return self._whole.read(self._first + start, self._first + stop, scratch)

    def wait(self) -> None:
        self._whole.wait()
