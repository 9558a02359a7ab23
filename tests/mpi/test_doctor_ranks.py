"""``colearn-hpc doctor`` over real ranks."""

import re

import pytest

pytestmark = pytest.mark.mpi


def test_three_data_centers(launch, tmp_path):
    said = launch(6, "-m colearn_hpc", "doctor", "--centers=3", f"--runs={tmp_path}").ok()
    assert re.findall(r"centers +(dc\d): \S+ ranks (\d \d)", said) == [("dc0", "0 1"), ("dc1", "2 3"), ("dc2", "4 5")]
    measured = re.findall(r"links +(dc\d - dc\d): (\d+) us, (\d+) MB/s", said)
    assert [pair for pair, _, _ in measured] == ["dc0 - dc1", "dc0 - dc2", "dc1 - dc2"]
    assert all(int(bandwidth) > 0 for _, _, bandwidth in measured)
    assert said.count("Allreduce over 6 ranks") == 1, "one rank speaks"


def test_ranks_that_do_not_fit(launch):
    found = launch(2, "-m colearn_hpc", "doctor", "--centers=3")
    assert found.code == 1
    assert found.out.count("FAIL") == 1 and "cannot share 2 ranks" in found.out
