"""World ranks -> data centers -> leaders.

:class:`Topology` is the pure core: who belongs to which data center, validated, tested without MPI.
:class:`DataCenter` is this process's place in it, with the communicators.

Three ways to say which rank belongs where:

* a number, ``centers=5``: equal runs of nodes where the nodes are equal and divide by it (whatever order the
  launcher dealt the ranks in), otherwise equal runs of consecutive ranks;
* sizes, ``centers=[4, 4, 2]``: runs of those lengths;
* names, ``COLEARN_CENTER=lyon`` in the environment of every rank (or, in a Slurm heterogeneous job, the
  component that a rank's node belongs to).

With none of them every rank is a data center of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.roll_call import RollCall
from colearn_hpc.mpi.startup import prepare_environment
from colearn_hpc.mpi.wire import allgather_plain
from colearn_hpc.protocol.messages import plural

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("colearn_hpc")

CENTER_VARIABLE = "COLEARN_CENTER"
CentersSpec: TypeAlias = "int | list[int] | None"

_roll_calls: list[RollCall] = []  # of this process's joins over the whole world, in order
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a name becomes a folder


@dataclass(frozen=True)
class Declaration:
    """What one world rank says of itself: its host, and its data center's name where the environment has one."""

    host: str
    center: str | None = None


@dataclass(frozen=True)
class CenterRanks:
    """One data center: its index k, its name, its world ranks (the first of them leads), and the host of each, where
    it is known."""

    index: int
    name: str
    world_ranks: tuple[int, ...]
    hosts: tuple[str, ...] = ()

    @property
    def leader(self) -> int:
        """World rank of the leader (center_rank 0)."""
        return self.world_ranks[0]


@dataclass(frozen=True)
class Topology:
    """All data centers of a run, in order of their leaders' world ranks.

    Raises:
        TopologyError: a center without ranks, a rank in no or two centers, two centers of one name, or a
            name that cannot be a folder.
    """

    centers: tuple[CenterRanks, ...]

    def __post_init__(self) -> None:
        ranks = sorted(rank for center in self.centers for rank in center.world_ranks)
        if not self.centers or not all(center.world_ranks for center in self.centers):
            raise TopologyError(f"every data center needs at least one rank, found {self.describe()}")
        if ranks != list(range(len(ranks))):
            raise TopologyError(f"every rank must be in exactly one data center, found {self.describe()}")
        names = [center.name for center in self.centers]
        if len(set(names)) != len(names):
            raise TopologyError(f"data centers need different names, found {names}")
        for name in names:
            if not _NAME.fullmatch(name) or len(name) > 100:
                raise TopologyError(
                    f"a data center is named {name[:110]!r}; a name becomes a folder, so use letters, digits, '.', "
                    "'_', '-', and at most 100 of them"
                )

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> Topology:
        """Runs of consecutive ranks of the given lengths, named dc0, dc1, …"""
        centers, start = [], 0
        for index, size in enumerate(sizes):
            centers.append(CenterRanks(index, f"dc{index}", tuple(range(start, start + size))))
            start += size
        return cls(tuple(centers))

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Topology:
        """One name per world rank; ranks of one data center need not be consecutive."""
        members: dict[str, list[int]] = {}
        for world_rank, name in enumerate(names):
            members.setdefault(name, []).append(world_rank)
        return cls(tuple(CenterRanks(k, name, tuple(ranks)) for k, (name, ranks) in enumerate(members.items())))

    @classmethod
    def resolve(cls, spec: CentersSpec, declarations: Sequence[Declaration]) -> Topology:
        """The topology from what was set (``spec``) and what each rank declared.

        Args:
            spec: number of equal data centers, their sizes, or None for names or one rank each.
            declarations: one per world rank, in order.

        Raises:
            TopologyError: the two do not fit together; the message lists what each host declared.
        """
        world_size = len(declarations)
        names = [declaration.center for declaration in declarations]
        wanted = spec if isinstance(spec, int) else len(spec) if isinstance(spec, list | tuple) else 1
        if world_size == 1 and wanted > 1:
            ranks = spec[0] if isinstance(spec, list | tuple) and len(set(spec)) == 1 else 1
            raise TopologyError(
                f"centers={spec} means {wanted} data centers, and this process was started alone "
                f"({_by_host(declarations)}); type `{start_command(wanted, ranks)}`"
            )
        sizes = _sizes(spec, world_size)
        if any(names):
            if not all(names):
                raise TopologyError(
                    f"some ranks have {CENTER_VARIABLE} set and some do not; set it for all ranks or for none. "
                    f"Found: {_by_host(declarations)}"
                )
            topology = cls.of_names([str(name) for name in names])
            if sizes is not None and sizes != [len(center.world_ranks) for center in topology.centers]:
                raise TopologyError(
                    f"centers={spec} means {_plural(sizes)}, but {CENTER_VARIABLE} declares {topology.describe()}; "
                    f"drop one of the two. Found: {_by_host(declarations)}"
                )
            return topology
        if sizes is None:
            sizes = [1] * world_size
        elif isinstance(spec, int) and (blocks := _node_blocks(spec, [d.host for d in declarations])):
            return cls.of_names(blocks)
        if sum(sizes) != world_size:
            raise TopologyError(
                f"centers={spec} needs {sum(sizes)} ranks, found {world_size} ({_by_host(declarations)}); "
                "start as many ranks as the sizes add up to"
            )
        return cls.of_sizes(sizes)

    def on_hosts(self, hosts: Sequence[str]) -> Topology:
        """The same with the hosts of all ranks, by world rank."""
        return Topology(tuple(replace(c, hosts=tuple(hosts[r] for r in c.world_ranks)) for c in self.centers))

    def center_of(self, world_rank: int) -> CenterRanks:
        """The data center of a world rank."""
        return next(center for center in self.centers if world_rank in center.world_ranks)

    def describe_rank(self, world_rank: int) -> str:
        """For people: ``data center dc1 (rank 0, on node7)``."""
        center = self.center_of(world_rank)
        rank = center.world_ranks.index(world_rank)
        return f"data center {center.name} (rank {rank}{f', on {center.hosts[rank]}' if center.hosts else ''})"

    def describe(self) -> str:
        """One line for people: ``dc0 (2 ranks), dc1 (2 ranks)``."""
        return ", ".join(f"{c.name} ({plural(len(c.world_ranks), 'rank')})" for c in self.centers)


@dataclass(frozen=True)
class DataCenter:
    """This process's data center. Make one with :meth:`join`.

    Attributes:
        topology: all data centers.
        world_rank, world_size: this process among all.
        index, name: k and the name of this process's data center.
        rank, size: center_rank (0 leads) and the number of ranks in this data center.
        host, node_rank, nodes, local_rank, local_size: this process's host, the host's index among the
            hosts of this data center, their number, this process's index on the host within the data
            center, and the data center's ranks on this host.
        host_rank: index on the host among the ranks of all data centers (for dealing out GPUs).
        world, comm, leaders: communicators over all ranks, this data center, and the leaders (None on a
            rank that does not lead).
        start: a word that all ranks of this start share, and those of no other start.
        roll_call: of all ranks, at a run's beginning; None in a world of one rank.
    """

    topology: Topology
    world_rank: int
    world_size: int
    index: int
    name: str
    rank: int
    size: int
    host: str
    node_rank: int
    nodes: int
    local_rank: int
    local_size: int
    host_rank: int
    world: MPI.Intracomm
    comm: MPI.Intracomm
    leaders: MPI.Intracomm | None
    start: str = ""
    roll_call: RollCall | None = None

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0 of the leaders: the one that takes decisions and speaks for the run."""
        return self.world_rank == self.topology.centers[0].leader

    @classmethod
    def join(
        cls, centers: CentersSpec = None, comm: MPI.Intracomm | None = None, abort_on_errors: bool = True
    ) -> DataCenter:
        """Split the world into data centers. Collective over the world (or ``comm``); starts MPI, after telling it what
        slow links need (:func:`~colearn_hpc.mpi.startup.prepare_environment`).

        Afterwards ``COLEARN_CENTER`` is set in this process's environment, so that data code (and a second
        ``join()``) can ask which data center it runs in.

        Args:
            centers: number of data centers, their sizes, or None.
            comm: instead of the world.
            abort_on_errors: an exception that nobody catches ends all ranks, by ``sys.excepthook``; otherwise this
                process would wait in MPI's finalisation for the others, and they for it.

        Raises:
            TopologyError: on every rank, with what each host declared.
        """
        too_late = prepare_environment()
        from mpi4py import MPI

        world = MPI.COMM_WORLD if comm is None else comm
        if comm is None and _roll_calls:
            _roll_calls[-1].wait()  # who has ended since the first join() will not come to this one
        _check_one_world(world.Get_size(), os.environ)
        host = platform.node()
        spec = list(centers) if isinstance(centers, tuple) else centers
        said = allgather_plain(world, [host, declared_center(os.environ), _sendable(spec), secrets.token_hex(16)])
        declarations = [Declaration(host, name) for host, name, _, _ in said]
        hosts = [declaration.host for declaration in declarations]
        topology = _resolve_together(declarations, [spec for _, _, spec, _ in said]).on_hosts(hosts)
        world_rank = world.Get_rank()
        if too_late and len(set(hosts)) > 1 and world_rank == 0:
            log.warning("%s", too_late)
        mine = topology.center_of(world_rank)
        center_hosts = list(dict.fromkeys(hosts[r] for r in mine.world_ranks))
        on_host = [r for r in mine.world_ranks if hosts[r] == host]
        center_comm = cast("MPI.Intracomm", world.Split(mine.index, world_rank))
        leads = world_rank == mine.leader
        leaders = cast("MPI.Intracomm", world.Split(0 if leads else MPI.UNDEFINED, mine.index))
        os.environ[CENTER_VARIABLE] = mine.name
        if abort_on_errors:
            _abort_on_uncaught_errors(world)
        roll_call = None
        if world.Get_size() > 1:
            told = [one.leader for one in topology.centers if one is not mine] if leads else [mine.leader]
            roll_call = RollCall(world, told, topology.describe_rank)
            atexit.register(roll_call.leave)
            if comm is None:
                _roll_calls.append(roll_call)
        return cls(
            topology=topology,
            world_rank=world_rank,
            world_size=world.Get_size(),
            index=mine.index,
            name=mine.name,
            rank=mine.world_ranks.index(world_rank),
            size=len(mine.world_ranks),
            host=host,
            node_rank=center_hosts.index(host),
            nodes=len(center_hosts),
            local_rank=on_host.index(world_rank),
            local_size=len(on_host),
            host_rank=sum(hosts[r] == host for r in range(world_rank)),
            world=world,
            comm=center_comm,
            leaders=leaders if leads else None,
            start=said[0][3],
            roll_call=roll_call,
        )


def _resolve_together(declarations: Sequence[Declaration], specs: Sequence[CentersSpec]) -> Topology:
    """The same topology, or the same error, on every rank."""
    try:
        different = {repr(spec): declaration.host for spec, declaration in zip(specs, declarations, strict=True)}
        if len(different) > 1:
            found = ", ".join(f"centers={spec} on {host}" for spec, host in different.items())
            raise TopologyError(f"the ranks were given different settings: {found}; use one configuration everywhere")
        return Topology.resolve(specs[0], declarations)
    except TopologyError as error:
        error.on_all_ranks()
        raise


class _AbortOnUncaughtErrors:
    """A ``sys.excepthook`` after which no rank waits for this one."""

    def __init__(self, world: MPI.Intracomm) -> None:
        self._world, self._previous = world, sys.excepthook

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        self._previous(kind, error, traceback)
        sys.stderr.flush()
        if not getattr(error, "everywhere", False):
            time.sleep(0.2)  # the launcher forwards what was printed by a path of its own
            self._world.Abort(1)


def _abort_on_uncaught_errors(world: MPI.Intracomm) -> None:
    if not isinstance(sys.excepthook, _AbortOnUncaughtErrors):
        sys.excepthook = _AbortOnUncaughtErrors(world)


def _sendable(spec: Any) -> Any:
    """What was set, as plain data; what is neither a number nor a list of them is told as text and refused by all."""
    if spec is None or type(spec) in (bool, int, float, str):
        return spec
    plain = isinstance(spec, list) and all(type(size) in (bool, int, float, str) for size in spec)
    return spec if plain else repr(spec)


def declared_center(environ: Mapping[str, str]) -> str | None:
    """The data center's name that this rank's environment declares, or None.

    ``COLEARN_CENTER`` comes first. In a Slurm heterogeneous job a rank's component is found by its node,
    because srun does not tell a rank its component.
    """
    if name := environ.get(CENTER_VARIABLE):
        return name
    node = environ.get("SLURMD_NODENAME", "")
    for component in range(int(environ.get("SLURM_HET_SIZE", "0") or 0)):
        if node in expand_hostlist(environ.get(f"SLURM_JOB_NODELIST_HET_GROUP_{component}", "")):
            return f"dc{component}"
    return None


def expand_hostlist(hostlist: str) -> list[str]:
    """Slurm's ``n[1-3,7],gpu05`` as names, zero padding kept."""
    hosts: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,\[]*)", hostlist):
        if not ranges:
            hosts.append(prefix + suffix)
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            hosts += [f"{prefix}{n:0{len(first)}d}{suffix}" for n in range(int(first), int(last or first) + 1)]
    return hosts


def _sizes(spec: CentersSpec, world_size: int) -> list[int] | None:
    if spec is None:
        return None
    if isinstance(spec, bool) or not isinstance(spec, int | list | tuple):
        raise TopologyError(f"centers must be a number, a list of sizes, or left out; found {spec!r}")
    if isinstance(spec, int):
        if spec < 1:
            raise TopologyError(f"centers={spec}: there must be at least 1 data center; leave it out for one per rank")
        if world_size % spec:
            raise TopologyError(
                f"centers={spec} cannot share {plural(world_size, 'rank')} equally; start a multiple of "
                f"{spec} ranks (mpirun, srun or `colearn-hpc launch`), or give sizes, e.g. centers=[4, 4, 2]"
            )
        return [world_size // spec] * spec
    if not spec or not all(isinstance(size, int) and size >= 1 for size in spec):
        raise TopologyError(f"centers={spec!r}: sizes must be whole numbers of ranks, at least 1 each")
    return list(spec)


def _node_blocks(centers: int, hosts: Sequence[str]) -> list[str]:
    """A data center's name per rank, so that no node is shared; empty where the nodes cannot be dealt equally.

    Launchers may deal ranks to nodes in turn (``mpirun --map-by node``, ``srun --distribution=cyclic``): runs of
    consecutive ranks would then put every data center on every node.
    """
    nodes = list(dict.fromkeys(hosts))
    if len(nodes) % centers or len({hosts.count(node) for node in nodes}) > 1:
        return []
    per_center = len(nodes) // centers
    return [f"dc{nodes.index(host) // per_center}" for host in hosts]


def _plural(sizes: Sequence[int]) -> str:
    return f"{plural(len(sizes), 'data center')} of {', '.join(map(str, sizes))} ranks"


def _by_host(declarations: Sequence[Declaration]) -> str:
    counts: dict[tuple[str, str | None], int] = {}
    for declaration in declarations:
        key = (declaration.host, declaration.center)
        counts[key] = counts.get(key, 0) + 1
    return "; ".join(
        f"{host}: {plural(count, 'rank')} {f'in {name}' if name else 'without a name'}"
        for (host, name), count in counts.items()
    )


def start_command(centers: int, ranks: int = 1) -> str:
    """What to type to start this program, or one like it, in so many data centers of so many ranks."""
    more = f" --ranks-per-center {ranks}" if ranks > 1 else ""
    path, *arguments = sys.argv or [""]
    if Path(path).name == "colearn-hpc" or path.endswith("colearn_hpc/__main__.py"):
        program = f"{arguments[0]} ..." if arguments else "fit ..."
    else:
        program = f"python {Path(path).name if path.endswith('.py') else 'train.py'}"
    return f"colearn-hpc launch --centers {centers}{more} -- {program}"


def _check_one_world(world_size: int, environ: Mapping[str, str]) -> None:
    processes = environ.get("WORLD_SIZE", "")
    if world_size == 1 and "TORCHELASTIC_RUN_ID" in environ and processes.isdigit() and int(processes) > 1:
        raise TopologyError(
            f"torchrun started {processes} processes, and MPI, by which data centers talk, knows of 1; start them with "
            f"`{start_command(int(processes))}`"
        )
    # `srun` without the right --mpi silently starts as many worlds of one rank as there are tasks:
    # that would train as many separate models.
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", "1") or 1)
    if world_size == 1 and tasks > 1 and "OMPI_COMM_WORLD_SIZE" not in environ:
        raise TopologyError(
            f"srun started {tasks} tasks, but MPI sees a world of 1: every task would train a model of its own. "
            "Use `srun --mpi=pmix` (Open MPI) or `srun --mpi=pmi2` (MPICH); `srun --mpi=list` shows what there is"
        )
