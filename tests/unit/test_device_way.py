"""How models travel from device to device: what the leaders find together."""

import pytest

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.mpi.tensor_wire import choose_way

BLIND = "no (this MPI was built without it, or finds no CUDA here)"


def gpu(name, number, aware=BLIND, nccl="NCCL"):
    return name, ["cuda", aware, nccl, f"host {number}"]


@pytest.mark.parametrize(
    ("facts", "way"),
    [
        ([gpu("a", 0, "yes"), gpu("b", 1, "yes")], "collectives"),
        ([gpu("a", 0), gpu("b", 1)], "collectives"),
        ([gpu("a", 0, "yes"), gpu("b", 0, "yes")], "mpi"),  # which lets them share a GPU
        ([gpu("a", 0, "yes", ""), gpu("b", 1, "yes")], "mpi"),
        ([("a", ["cpu", BLIND, "", ""]), ("b", ["cpu", "yes", "", ""])], "collectives"),
    ],
)
def test_the_way(facts, way):
    assert choose_way(facts) == way


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ([gpu("a", 0), ("b", ["cpu", BLIND, "", ""])], "found cuda in a, cpu in b"),
        ([("a", ["mps", BLIND, "", ""])], "found mps in a"),
        ([gpu("a", 0, nccl=""), gpu("b", 1)], "torch has no NCCL in a"),
        ([gpu("a", 0, "yes", ""), gpu("b", 0, "unknown (this MPI does not say)")], r"memory: unknown \(this MPI"),
        ([gpu("a", 0), gpu("b", 1), gpu("c", 0)], "data centers a, c share a GPU, which NCCL does not allow"),
    ],
)
def test_there_is_no_way(facts, said):
    with pytest.raises(ConfigurationError, match=said) as error:
        choose_way(facts)
    assert "eave device out" in str(error.value)
