"""One DDP world per data center: the cluster environment that Lightning sees."""

from __future__ import annotations

import logging
import socket

from lightning_fabric.plugins.environments import ClusterEnvironment

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.topology import CentersSpec, DataCenter

log = logging.getLogger("colearn_hpc")


class DataCenterEnvironment(ClusterEnvironment):
    """Gives Lightning this data center as its whole world.

    Global rank and world size are those inside the data center; node and local rank come from the hosts that
    its ranks really are on. Pass it explicitly (``Trainer(plugins=[DataCenterEnvironment(5)])``): under
    ``srun`` Lightning would otherwise take its Slurm environment, and make one DDP world of all ranks.

    Args:
        centers: number of equal data centers, their sizes, None (names from the environment, or one rank
            each), or a :class:`DataCenter` already joined. Collective over the world.

    Raises:
        TopologyError: on all ranks, when ranks and declaration do not fit, or when a data center has
            different numbers of ranks on its hosts (Lightning needs the same number on each).
    """

    def __init__(self, centers: CentersSpec | DataCenter = None) -> None:
        super().__init__()
        self.center = centers if isinstance(centers, DataCenter) else DataCenter.join(centers)
        # All collectives happen here: Lightning reads the properties below on some ranks and not on others.
        sizes = self.center.world.allgather((self.center.name, self.center.host, self.center.local_size))
        _check_equal_nodes(sizes)
        # The leader's socket stays bound, and not listening, for the life of the process: the port cannot be
        # given to another data center on the same host, and DDP's store (SO_REUSEADDR) can still listen on it.
        self._reserved = _reserve_port() if self.center.is_leader else None
        address = (socket.gethostname(), self._reserved.getsockname()[1]) if self._reserved else None
        self._address: tuple[str, int] = self.center.comm.bcast(address, 0)
        if self.center.nodes == 1:
            self._address = ("127.0.0.1", self._address[1])

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._address[0]

    @property
    def main_port(self) -> int:
        return self._address[1]

    @staticmethod
    def detect() -> bool:
        """Never by itself: it has to be passed explicitly, so that its absence is noticed."""
        return False

    def world_size(self) -> int:
        return self.center.size

    def set_world_size(self, size: int) -> None:
        if size != self.center.size:
            raise TopologyError(
                f"data center {self.center.name} has {self.center.size} ranks, but the Trainer makes {size} of "
                f"devices x num_nodes; set devices={self.center.local_size} and num_nodes={self.center.nodes}"
            )

    def global_rank(self) -> int:
        return self.center.rank

    def set_global_rank(self, rank: int) -> None:
        """Fixed by the topology."""

    def local_rank(self) -> int:
        return self.center.local_rank

    def node_rank(self) -> int:
        return self.center.node_rank


def _reserve_port() -> socket.socket:
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved


def _check_equal_nodes(sizes: list[tuple[str, str, int]]) -> None:
    for name in dict.fromkeys(center for center, _, _ in sizes):
        hosts = {host: size for center, host, size in sizes if center == name}
        if len(set(hosts.values())) > 1:
            found = ", ".join(f"{size} on {host}" for host, size in hosts.items())
            raise TopologyError(
                f"data center {name} has different numbers of ranks on its hosts ({found}); Lightning needs the "
                "same number on each: with Slurm use --ntasks-per-node, with mpirun --map-by ppr:N:node"
            ).on_all_ranks()
