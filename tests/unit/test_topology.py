"""Who belongs to which data center: the pure core, without MPI."""

import os
import subprocess
import sys

import pytest

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.pipeline import SLICE
from colearn_hpc.mpi.topology import (
    CenterRanks,
    Declaration,
    Topology,
    declared_center,
    expand_hostlist,
)


def declare(*names, host="h0"):
    return [Declaration(host, name) for name in names]


def test_a_number_deals_equal_runs():
    topology = Topology.resolve(2, declare(None, None, None, None))
    assert topology.centers == (CenterRanks(0, "dc0", (0, 1)), CenterRanks(1, "dc1", (2, 3)))
    assert topology.center_of(3).leader == 2


def test_sizes():
    topology = Topology.resolve([1, 3], declare(None, None, None, None))
    assert [c.world_ranks for c in topology.centers] == [(0,), (1, 2, 3)]


def test_names_need_not_be_consecutive():
    topology = Topology.resolve(None, declare("tokyo", "lyon", "tokyo", "lyon"))
    assert [(c.name, c.world_ranks) for c in topology.centers] == [("tokyo", (0, 2)), ("lyon", (1, 3))]


def test_a_number_keeps_nodes_whole():
    """Ranks dealt to the nodes in turn: a data center is a run of nodes all the same."""
    in_turn = [Declaration(f"n{rank % 4}") for rank in range(8)]
    assert [c.world_ranks for c in Topology.resolve(2, in_turn).centers] == [(0, 1, 4, 5), (2, 3, 6, 7)]
    in_runs = [Declaration(f"n{rank // 2}") for rank in range(8)]
    assert Topology.resolve(2, in_runs) == Topology.of_sizes([4, 4])


def test_a_number_over_nodes_that_cannot_be_dealt():
    in_turn = [Declaration(f"n{rank % 3}") for rank in range(6)]
    assert Topology.resolve(2, in_turn) == Topology.of_sizes([3, 3])


def test_nothing_said_is_one_center_a_rank():
    assert [c.name for c in Topology.resolve(None, declare(None, None)).centers] == ["dc0", "dc1"]


def test_number_and_names_that_agree():
    assert len(Topology.resolve(2, declare("a", "a", "b", "b")).centers) == 2


@pytest.mark.parametrize(
    ("spec", "names", "says"),
    [
        (3, [None] * 4, "centers=3 cannot share 4 ranks equally"),
        (0, [None] * 4, "centers=0"),
        (-1, [None] * 4, "centers=-1"),
        (True, [None] * 4, "found True"),
        ("5", [None] * 5, "found '5'"),
        ([4, 4, 2], [None] * 4, "needs 10 ranks, found 4"),
        ([2, 0], [None] * 2, "at least 1 each"),
        ([], [None] * 2, "sizes must be whole numbers"),
        (None, ["a", "a", None, None], "some ranks have COLEARN_CENTER set and some do not"),
        (2, ["a", "a", "a", "b"], "COLEARN_CENTER declares a (3 ranks), b (1 rank)"),
        (None, ["a/b"] * 2, "a name becomes a folder"),
        (None, ["..", "b"], "a name becomes a folder"),
        (None, ["a\x1b[2J", "b"], r"a name becomes a folder"),
        (None, ["a" * 300, "b"], "at most 100 of them"),
    ],
)
def test_what_does_not_fit(spec, names, says):
    with pytest.raises(TopologyError) as raised:
        Topology.resolve(spec, declare(*names))
    assert says in str(raised.value)


def test_an_error_says_what_each_host_declared():
    declarations = [Declaration("n1", "lyon"), Declaration("n1", "lyon"), Declaration("n2", None)]
    with pytest.raises(TopologyError, match=r"n1: 2 ranks in lyon; n2: 1 rank without a name"):
        Topology.resolve(None, declarations)


def test_a_rank_in_two_centers():
    with pytest.raises(TopologyError, match="exactly one"):
        Topology((CenterRanks(0, "a", (0, 1)), CenterRanks(1, "b", (1,))))


def test_two_centers_of_one_name():
    with pytest.raises(TopologyError, match="different names"):
        Topology((CenterRanks(0, "a", (0,)), CenterRanks(1, "a", (1,))))


def test_declared_by_name():
    assert declared_center({"COLEARN_CENTER": "lyon", "SLURM_HET_SIZE": "2"}) == "lyon"
    assert declared_center({}) is None


def test_declared_by_heterogeneous_component():
    environ = {
        "SLURM_HET_SIZE": "2",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "n[1-2]",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "n[3,7-8],gpu05",
    }
    assert declared_center(environ | {"SLURMD_NODENAME": "n2"}) == "dc0"
    assert declared_center(environ | {"SLURMD_NODENAME": "n8"}) == "dc1"
    assert declared_center(environ | {"SLURMD_NODENAME": "gpu05"}) == "dc1"
    assert declared_center(environ | {"SLURMD_NODENAME": "n9"}) is None


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10],m", ["n08", "n09", "n10", "m"]),
        ("a[1,3]-ib", ["a1-ib", "a3-ib"]),
    ],
)
def test_hostlists(text, hosts):
    assert expand_hostlist(text) == hosts


@pytest.mark.parametrize(("environ", "limit"), [({}, 528384), ({"OMPI_MCA_btl_tcp_eager_limit": "70000"}, 70000)])
def test_open_mpi_sends_slices_without_asking(environ, limit):
    """Unless somebody has chosen otherwise; a slice of float64 and its header fit."""
    code = (
        "import os; before = dict(os.environ); from colearn_hpc import DataCenter; "
        "assert dict(os.environ) == before, 'importing changes nothing'; DataCenter.join(); "
        "print(os.environ['OMPI_MCA_btl_tcp_eager_limit'])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_MCA_btl")}
    done = subprocess.run([sys.executable, "-c", code], env=clean | environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) == limit
    assert "OMPI_MCA_btl_tcp_eager_limit" in environ or limit > 8 * SLICE + 64
