"""Who carries which share of a mean."""

import pytest

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.lanes import NodePlace, deal, places_of
from colearn_hpc.mpi.topology import Topology
from colearn_hpc.trainer.means import parts_of


def ranks(*centers):
    """Places of world ranks, center by center, from the number of ranks on each of its nodes."""
    nodes = [(k, node, size) for k, sizes in enumerate(centers) for node, size in enumerate(sizes)]
    return [NodePlace(k, node, local) for k, node, size in nodes for local in range(size)]


def test_one_node_is_one_lane():
    assert deal(ranks([4], [4])) == [[0, 4]]


def test_one_lane_per_node_of_the_smallest():
    """... and a lane's ranks are on different nodes, the leaders' in the first."""
    assert deal(ranks([2, 2], [2, 2])) == [[0, 4], [2, 6]]
    assert deal(ranks([1, 1, 1], [2, 2])) == [[0, 3], [1, 5]]
    assert deal(ranks([2, 2], [4])) == [[0, 4]]


def test_a_number_of_lanes():
    """More than nodes: the second ranks of nodes come when each has one."""
    assert deal(ranks([2, 2], [4]), 3) == [[0, 4], [2, 5], [1, 6]]
    assert deal(ranks([2, 2], [2, 2]), 1) == [[0, 4]]


def test_one_data_center_has_nobody_to_send_to():
    assert deal(ranks([2, 2])) == [[0]]
    assert deal(ranks([2, 2]), 2) == [[0]]


def test_ranks_dealt_in_turn():
    """World ranks of a data center need not be consecutive (``mpirun --map-by node``)."""
    places = [
        NodePlace(0, 0, 0),
        NodePlace(1, 0, 0),
        NodePlace(0, 1, 0),
        NodePlace(1, 1, 0),
        NodePlace(0, 0, 1),
        NodePlace(1, 0, 1),
    ]
    assert deal(places) == [[0, 1], [2, 3]]


def test_too_many():
    with pytest.raises(TopologyError, match=r"lanes=3 needs as many ranks in every data center; .* index 1 has 2"):
        deal(ranks([4], [2]), 3)


def test_places_follow_from_hosts():
    """Two data centers on shared nodes, ranks dealt in turn: nodes are counted inside each data center."""
    topology = Topology.of_names(["a", "b", "a", "b", "a"]).on_hosts(["n0", "n1", "n1", "n0", "n0"])
    found = [(place.center, place.node_rank, place.local_rank) for place in places_of(topology)]
    assert found == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)]
    assert deal(places_of(topology)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100, 1000, 4099])
@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
def test_parts_cover_a_vector(size, lanes):
    """Each element once, in order; parts begin with a cache line, and differ by two of them at most."""
    parts = parts_of(size, lanes)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(size))
    assert len(parts) == lanes
    assert all(part.start % 16 == 0 or part.start == size for part in parts)
    assert all(abs(part.stop - part.start - size / lanes) < 32 for part in parts)
