"""Who carries which share of a mean."""

import pytest

from colearn_hpc.errors import TopologyError
from colearn_hpc.mpi.lanes import Place, deal


def ranks(*centers):
    """Places of world ranks, center by center, from the number of ranks on each of its nodes."""
    nodes = [(k, node, size) for k, sizes in enumerate(centers) for node, size in enumerate(sizes)]
    return [Place(k, node, local) for k, node, size in nodes for local in range(size)]


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
    places = [Place(0, 0, 0), Place(1, 0, 0), Place(0, 1, 0), Place(1, 1, 0), Place(0, 0, 1), Place(1, 0, 1)]
    assert deal(places) == [[0, 1], [2, 3]]


def test_too_many():
    with pytest.raises(TopologyError, match=r"lanes=3 needs as many ranks in every data center; .* index 1 has 2"):
        deal(ranks([4], [2]), 3)
