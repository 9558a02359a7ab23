"""Nothing is unpickled that came from another data center: a pickle may run any code.

mpi4py's lower-case calls pickle. They are for one organisation's ranks, on a communicator of one data center.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "colearn_hpc"
PICKLING_CALLS = {
    *("send", "recv", "isend", "irecv", "bsend", "ssend", "issend", "ibsend", "sendrecv"),
    *("probe", "iprobe", "mprobe", "improbe"),
    *("bcast", "gather", "allgather", "scatter", "alltoall", "reduce", "allreduce", "scan", "exscan"),
}
# Where a communicator can be at all; the other rooms may not import what has one.
ROOMS = ("mpi", "protocol", "trainer", "cli", "between.py", "join.py")
# What is no communicator though its calls are named like one's: a Site, a Mailbox, functions, tensors.
OTHERS = {"site", "_site", "_mailbox", "probe", "functools", "probabilities"}
# File -> (on what, why).
ALLOWED = {
    "mpi/site.py": (
        {"self.enter()", "self._words", "self._distress", "self._regrouping"},
        "duplicates of the data center's own communicator",
    ),
    "trainer/environment.py": ({"self.center.comm"}, "the data center's own: where its process group meets"),
    "trainer/devices.py": ({"center.comm"}, "the data center's own: which GPUs its ranks see"),
    "cli/gpu_report.py": ({"center.comm"}, "the data center's own: where a trial of NCCL meets"),
}
UNPICKLERS = {
    "data/sources/restricted_pickle.py": "CIFAR-10 is published as pickles; it takes arrays and refuses the rest",
    "launching.py": "a function and its result, between processes of one user on one machine",
}


def pickling(source: str) -> set[str]:
    """On what a file makes calls that pickle."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PICKLING_CALLS:
            receiver = ast.unparse(node.func.value)
            if receiver.split(".")[-1] not in OTHERS:
                found.add(receiver)
    return found


def imports_pickle(source: str) -> bool:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return bool(names & {"pickle", "_pickle", "cloudpickle", "dill", "mpi4py.util.pkl5", "mpi4py.MPI.pickle"})


def files(*rooms: str) -> dict[str, str]:
    """Name in the package -> text."""
    found = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: text for name, text in found.items() if not rooms or name.split("/")[0] in rooms}


def test_communicators_between_data_centers_carry_bytes():
    found = {name: on for name, text in files(*ROOMS).items() if (on := pickling(text))}
    assert found == {name: on for name, (on, _) in ALLOWED.items()}


@pytest.mark.parametrize(
    ("source", "on"),
    [
        ("self._leaders.bcast(x, 0)", {"self._leaders"}),
        ("def f(world):\n    return world.allgather(1)", {"world"}),
        ("MPI.COMM_WORLD.isend(x, 1).wait()", {"MPI.COMM_WORLD"}),
        ("self.enter().gather(x)", {"self.enter()"}),
        ("site.gather(x); self._mailbox.send(1, x); functools.reduce(f, xs)", set()),
        ("comm.Bcast(x); comm.Isend(x, 1); comm.Improbe()", set()),
    ],
)
def test_the_walk_sees_calls_that_pickle(source, on):
    """A contract that cannot fail is none."""
    assert pickling(source) == on


def test_pickles_are_read_in_one_place():
    assert {name for name, text in files().items() if imports_pickle(text)} == UNPICKLERS.keys()


@pytest.mark.parametrize(
    "source", ["import pickle", "from pickle import loads", "def f():\n    from mpi4py.util import pkl5", "import dill"]
)
def test_the_walk_sees_pickle(source):
    assert imports_pickle(source) and not imports_pickle("from colearn_hpc.data.sources import restricted_pickle")
