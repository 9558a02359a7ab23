"""What ``colearn-hpc doctor`` makes of what it finds: pure functions over what ranks reported."""

from dataclasses import replace

import pytest

from colearn_hpc.cli import doctor, main
from colearn_hpc.cli.doctor import FAIL, OK, WARN, Rank
from colearn_hpc.mpi.probe import Link

FOUR = ("a", "b", "c", "d")
RANK = Rank("dc0", "n1", 0, FOUR, {"torch": "2.9"}, 500e9, "", "1.14", "")


def levels(findings):
    return [finding.level for finding in findings]


@pytest.mark.parametrize(("bandwidth", "level"), [(5e9, OK), (51e6, OK), (49e6, WARN), (1e6, WARN)])
def test_links(bandwidth, level):
    (finding,) = doctor._links([Link("dc0", "dc1", 25e-6, bandwidth, 0.0)])
    assert finding.level == level
    assert f"dc0 - dc1: 25 us, {bandwidth / 1e6:.0f} MB/s" in finding.text
    assert ("--mca btl_tcp_if_include" in finding.text) == (level == WARN)


def test_clocks():
    near, far = Link("dc0", "dc1", 1e-5, 1e9, 0.3), Link("dc0", "dc2", 1e-5, 1e9, -86400.0)
    assert doctor._clocks([near, Link("dc1", "dc2", 1e-5, 1e9, None)]).level == OK
    found = doctor._clocks([near, far])
    assert found.level == WARN and "dc2 by -86400.0 s" in found.text and "dc1" not in found.text


def test_gpus():
    second = replace(RANK, center_rank=1)
    assert levels(doctor._gpus([RANK, second], "no")) == [OK, OK]
    # Two data centers may share a GPU, two ranks of one may not.
    assert levels(doctor._gpus([RANK, replace(RANK, center="dc1")], "no")) == [OK, OK]
    shared = doctor._gpus([replace(RANK, gpus=("a",)), replace(second, gpus=("a",))], "no")
    assert shared[0].level == FAIL and "dc0 on n1: 2 ranks see 1 GPUs" in shared[0].text
    apart = doctor._gpus([replace(RANK, gpus=("a",)), replace(second, gpus=("b",))], "no")
    assert levels(apart) == [OK, OK], "each rank sees a GPU of its own"
    blind = doctor._gpus([RANK, replace(RANK, host="n2", gpus=())], "no")
    assert blind[0].level == FAIL and "none seen on n2" in blind[0].text
    assert levels(doctor._gpus([replace(RANK, gpus=())], "no")) == [OK]


def test_storage(tmp_path):
    assert levels(doctor._storage([RANK], tmp_path)) == [OK, OK]
    full = replace(RANK, center="dc1", free=1e9)
    found = doctor._storage([RANK, full], tmp_path)
    assert levels(found) == [WARN, OK] and "least: dc1" in found[0].text
    closed = replace(RANK, center="dc1", free=None, disk_error="/scratch: Permission denied", hdf5="")
    found = doctor._storage([RANK, closed], tmp_path)
    assert found[0].level == FAIL and "dc1 cannot write run folders: /scratch: Permission denied" in found[0].text
    unlocked = replace(RANK, hdf5_error="unable to lock file")
    found = doctor._storage([unlocked], tmp_path)
    assert found[0].level == FAIL and "HDF5_USE_FILE_LOCKING=FALSE" in found[0].text


def test_versions():
    assert doctor._versions([RANK, RANK]).level == OK
    found = doctor._versions([RANK, replace(RANK, host="n2", versions={"torch": "2.8"})])
    assert found.level == FAIL and "torch 2.8 on n2, 2.9 on n1" in found.text
    for python, level in (("3.11.9", WARN), ("3.11.10", OK), ("3.12.0rc1", OK), ("3.14.2", OK)):
        assert doctor._versions([replace(RANK, versions={"python": python})]).level == level, python


def test_messages():
    assert doctor._messages([RANK]).level == OK
    assert doctor._messages([RANK, replace(RANK, wrong="dc1 found 3 instead of 6")]).level == FAIL


def test_a_folder_that_cannot_be_written(tmp_path):
    free, error = doctor._try_disk(tmp_path / "not" / "there" / "yet")
    assert free is not None and not error, "the nearest folder that exists is tried"
    free, error = doctor._try_disk(tmp_path.__class__("/proc/self"))
    assert free is None and error
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("COLEARN_CENTER", raising=False)
    assert main(["doctor", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "one rank alone" in said and said.rstrip().endswith("WARN") and "mpi4py" in said
    assert not list(tmp_path.iterdir())


def test_impossible_centers_alone(capsys, monkeypatch):
    monkeypatch.delenv("COLEARN_CENTER", raising=False)
    assert main(["doctor", "--centers", "3"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  centers    centers=3 cannot share 1 rank")
