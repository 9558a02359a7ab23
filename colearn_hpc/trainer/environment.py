"""One DDP world per data center: the cluster environment that Lightning sees."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from typing import Any

import torch

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import ClusterEnvironment, in_use, kinds, package_of
from colearn_hpc.errors import ConfigurationError, TopologyError
from colearn_hpc.join import CentersSpec, DataCenter
from colearn_hpc.trainer.devices import trainer_devices
from colearn_hpc.trainer.process_group import (
    Listener,
    Sockets,
    abort_communicators,
    is_initialized,
    leave_process_group,
    needs_abort,
    open_sockets,
    prepare_error_handling,
)

log = logging.getLogger("colearn_hpc")


class DataCenterEnvironment(ClusterEnvironment):
    """Gives Lightning this data center as its whole world.

    To Lightning, global rank and world size are those inside the data center. Node and local rank follow from the
    hosts on which its ranks are. Pass it explicitly (``Trainer(plugins=[DataCenterEnvironment(5)])``): under ``srun``
    Lightning would otherwise take its Slurm environment, and make one DDP world of all ranks.

    Making one is collective over the world.

    Args:
        centers: the number of equal data centers, or a list of their sizes in ranks. None: ``COLEARN_CENTER`` in each
            rank's environment names its data center, or every rank is one. Or a :class:`DataCenter` that was joined.

    Raises:
        TopologyError: on all ranks, when ranks and declaration do not fit, or when a data center has
            different numbers of ranks on its hosts (Lightning needs the same number on each).
    """

    _listener: Listener | None = None  # of a process group that does not notice a failure by itself

    def __init__(self, centers: CentersSpec | DataCenter = None) -> None:
        super().__init__()
        for one in kinds("plugins.environments", "ClusterEnvironment"):
            one.register(type(self))  # of a name that was imported meanwhile
        self.center = centers if isinstance(centers, DataCenter) else DataCenter.join(centers)
        # All collectives happen here: Lightning reads the properties below on some ranks and not on others.
        _check_equal_nodes(self.center)
        self.renew_address()

    def renew_address(self) -> None:
        """Choose where the data center's process group meets. Collective over the data center.

        Anew after a failure: the broken group may not have let go of its port yet.
        """
        # The leader's socket stays bound, and not listening, for the life of the process: the port cannot be
        # given to another data center on the same host, and DDP's store (SO_REUSEADDR) can still listen on it.
        self._before: Sockets | None = None
        self._group: Sockets | None = None
        if self._listener is not None:
            self._listener.stop()  # and its store may go: all ranks have left that group
            self._listener = None
        self._reserved = _reserve_port() if self.center.is_leader else None
        address = (socket.gethostname(), self._reserved.getsockname()[1]) if self._reserved else None
        self._address: tuple[str, int] = self.center.comm.bcast(address, 0)
        if self.center.nodes == 1:
            self._address = ("127.0.0.1", self._address[1])

    def trainer_arguments(self, accelerator: str = "auto") -> dict[str, Any]:
        """What a Trainer needs to know of this data center: ``Trainer(**environment.trainer_arguments(), ...)``.
        Collective over the data center.

        Args:
            accelerator: the Trainer's argument of this name.

        Returns:
            The arguments ``plugins`` (this environment), ``num_nodes``, ``strategy``, ``accelerator`` and ``devices``.
            On GPUs, ``devices`` are those of this host that belong to this data center, so two data centers on one
            machine take different ones.

        Raises:
            ConfigurationError: several ranks of one data center would have to share a GPU.
        """
        strategy = "ddp" if self.center.size > 1 else "auto"
        given = {"plugins": [self], "num_nodes": self.center.nodes, "strategy": strategy, "accelerator": accelerator}
        return given | trainer_devices(self.center, accelerator)

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._address[0]

    @property
    def main_port(self) -> int:
        # Lightning 2.6 asks right before it makes the process group.
        self._before = open_sockets() if self._before is None else self._before
        prepare_error_handling()
        return self._address[1]

    def note_process_group(self) -> None:
        """Remember which sockets belong to the process group, and listen for its end where its backend needs that.

        Called whenever Lightning asks for a rank. It asks right after it has made the group, before a user's code can
        open sockets.
        """
        if self._before is None or self._group is not None or not is_initialized():
            return
        self._group = {number: name for number, name in open_sockets().items() if self._before.get(number) != name}
        if self.center.size > 1 and needs_abort():
            self._listener = Listener(abort_communicators)

    def check_process_group(self, device: torch.device) -> None:
        """Collective over the data center, where its backend needs it: what was reduced before has arrived.

        A collective of NCCL that a broken link ends leaves numbers that were not reduced, and only the next one says
        so. There is none after a local epoch's last batch: without this question those numbers would go into the mean.

        Raises:
            RuntimeError: the communicator has been aborted.
        """
        if self._listener is not None:
            asked = torch.zeros(1, device=device)
            torch.distributed.all_reduce(asked)
            asked.item()  # waits for it

    def leave_process_group(self) -> None:
        """Break the data center's process group, so that nobody waits in it for this rank."""
        if self._listener is not None:
            self._listener.call()  # first: communicators are aborted by all at the same time
        leave_process_group(self._group or {})

    @staticmethod
    def detect() -> bool:
        """Never: this environment has to be passed explicitly, so that its absence is noticed."""
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
        self.note_process_group()
        return self.center.local_rank

    def node_rank(self) -> int:
        return self.center.node_rank


def joined_center(trainer: pl.Trainer, centers: CentersSpec | DataCenter) -> DataCenter | None:
    """This process's data center if it has joined, as far as the Trainer and the callback know. Not collective."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, DataCenterEnvironment):
        return environment.center
    return centers if isinstance(centers, DataCenter) else None


def join_trainer(trainer: pl.Trainer, centers: CentersSpec | DataCenter) -> DataCenter:
    """This process's data center, as the Trainer and the callback say. Collective over the world.

    Raises:
        ConfigurationError: on all ranks, when the ranks cannot be divided like that.
    """
    joined = joined_center(trainer, centers)
    return DataCenter.join(None if isinstance(centers, DataCenter) else centers) if joined is None else joined


def check_trainer(trainer: pl.Trainer, center: DataCenter) -> None:
    """Check that the Trainer can be one of co-learning.

    Raises:
        ConfigurationError: where it cannot, which may be in one data center only; the others have to be told.
    """
    if (name := package_of(trainer).__name__) not in in_use():
        raise ConfigurationError(
            f"this Trainer is of {name}, and colearn_hpc was made for {', '.join(in_use())}, which alone had been "
            f"imported before it; import {name} before colearn_hpc"
        )
    known = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")
    if not isinstance(trainer.strategy, tuple(kind for one in known for kind in kinds("strategies", one))):
        raise ConfigurationError(
            f"the strategy is {type(trainer.strategy).__name__}, whose ranks may hold parts of the model that cannot "
            'be told apart. Use strategy="ddp" (or one device), or ModelParallelStrategy for a model in shards (FSDP2)'
        )
    if trainer.world_size != center.size:
        raise TopologyError(
            f"data center {center.name} has {center.size} ranks, but this Trainer's world has "
            f"{trainer.world_size}; pass **DataCenterEnvironment(...).trainer_arguments() to the Trainer, or "
            f"plugins=[DataCenterEnvironment(...)], devices={center.local_size} and num_nodes={center.nodes}"
        )


def _reserve_port() -> socket.socket:
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved


def _check_equal_nodes(center: DataCenter) -> None:
    for one in center.topology.centers:
        ranks = Counter(one.hosts)
        if len(set(ranks.values())) > 1:
            found = ", ".join(f"{number} on {host}" for host, number in ranks.items())
            raise TopologyError(
                f"data center {one.name} has different numbers of ranks on its hosts ({found}); Lightning needs the "
                "same number on each: with Slurm use --ntasks-per-node, with mpirun --map-by ppr:N:node"
            ).on_all_ranks()
