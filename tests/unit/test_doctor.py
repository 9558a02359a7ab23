"""What ``colearn-hpc doctor`` makes of what it finds: pure functions over what ranks reported."""

import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from colearn_hpc.cli import doctor, main
from colearn_hpc.cli.advisories import hostile, unloadable, vulnerable
from colearn_hpc.cli.findings import FAIL, OK, WARN, Finding, show
from colearn_hpc.cli.gpu_report import modes_of, try_collective
from colearn_hpc.cli.rank_report import Quota, Rank, find_quota, parse_quota, try_disk, try_shard
from colearn_hpc.mpi.probe import Link

FOUR = ("a", "b", "c", "d")
RANK = Rank("dc0", "n1", 0, FOUR, frozenset(range(4)), 1, {"torch": "2.9"}, free=500e9, hdf5="1.14")


def levels(findings):
    return [finding.level for finding in findings]


@pytest.mark.parametrize(("bandwidth", "level"), [(5e9, OK), (51e6, OK), (49e6, WARN), (1e6, WARN)])
def test_links(bandwidth, level):
    (finding,) = doctor._links([Link("dc0", "dc1", 25e-6, bandwidth, 0.0)])
    assert finding.level == level
    assert f"dc0 - dc1: 25 us, {bandwidth / 1e6:.0f} MB/s" in finding.text
    assert ("--mca btl_tcp_if_include" in finding.text) == (level == WARN)


@pytest.mark.parametrize(
    ("latency", "bandwidth", "window", "told"),
    [
        (25e-3, 60e6, 4 * 2**20, True),  # of 84 MB/s
        (25e-3, 120e6, 32 * 2**20, False),
        (25e-3, 60e6, None, False),
        (1e-3, 1e9, 4 * 2**20, False),  # near: not a long link, and perhaps no TCP
    ],
)
def test_a_connection_that_cannot_hold_what_is_on_the_link(latency, bandwidth, window, told):
    (finding,) = doctor._links([Link("dc0", "dc1", latency, bandwidth, 0.0, window)])
    assert finding.level == (WARN if told else OK)
    assert ("net.ipv4.tcp_wmem" in finding.text and "84 MB/s" in finding.text) == told


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
    unlocked = replace(RANK, hdf5_error="unable to map file")
    found = doctor._storage([unlocked], tmp_path)
    assert found[0].level == FAIL and "another file system" in found[0].text


def test_versions():
    assert doctor._versions([RANK, RANK]).level == OK
    found = doctor._versions([RANK, replace(RANK, host="n2", versions={"torch": "2.8"})])
    assert found.level == FAIL and "torch 2.8 on n2, 2.9 on n1" in found.text
    for python, level in (("3.11.9", WARN), ("3.11.10", OK), ("3.12.0rc1", OK), ("3.14.2", OK)):
        assert doctor._versions([replace(RANK, versions={"python": python})]).level == level, python


@pytest.mark.parametrize(
    ("cores", "threads", "level", "said"),
    [
        ([range(4)] * 4, 1, OK, "n1: 4 ranks with 4 threads on cores 0-3"),
        ([range(4)] * 4, 2, WARN, "n1: 4 ranks with 8 threads on cores 0-3; that is more threads than cores"),
        (
            [[0, 1, 8], [2, 3, 9]],
            3,
            OK,
            "n1: 1 rank with 3 threads on cores 0-1,8; 1 rank with 3 threads on cores 2-3,9",
        ),
        ([[0], [1, 2, 3]], 2, WARN, "n1: 1 rank with 2 threads on core 0; 1 rank with 2 threads on cores 1-3; that is"),
        ([[0, 1], [1, 2], [0, 2]], 2, WARN, "1 rank with 2 threads on cores 0,2; that is more threads than cores"),
    ],
)
def test_cores(cores, threads, level, said):
    ranks = [replace(RANK, cores=frozenset(mine), threads=threads) for mine in cores]
    (found,) = doctor._cores(ranks)
    assert (found.level == level and found.text.startswith(said)) or said in found.text
    assert levels(doctor._cores([*ranks, replace(RANK, host="n2")])) == [level, OK], "a line per host"


def test_releases_that_attack_or_have_a_hole():
    found = {"pytorch-lightning": "2.6.5", "lightning": "2.6.3"}
    (attack,), (hole,) = hostile(found.get), vulnerable(found.get)
    assert attack.startswith("lightning 2.6.3 is a release that thieves published")
    assert (
        hole.startswith("pytorch-lightning 2.6.5: load_from_checkpoint runs code") and "install 2.6.6 or newer" in hole
    )
    for safe in ("2.6.6", "2.7.0rc1", "missing", "unheard of"):
        assert hostile(lambda _, safe=safe: safe) == vulnerable(lambda _, safe=safe: safe) == []
    ranks = [replace(RANK, hostile=(attack,)), replace(RANK, host="n2", hostile=(attack,), flawed=(hole,))]
    findings = doctor._packages(ranks)
    assert levels(findings) == [FAIL, WARN]
    assert [finding.text.split(":")[0] for finding in findings] == ["n1, n2", "n2"]


def test_a_torchvision_of_another_torch(monkeypatch):
    monkeypatch.setattr("colearn_hpc.cli.advisories.make_torchvision_importable", lambda: True)
    assert "operator torchvision::nms does not exist" in unloadable()[0]
    monkeypatch.setattr("colearn_hpc.cli.advisories.make_torchvision_importable", lambda: False)
    assert unloadable() == []


QUOTA = """Disk quotas for user ada (uid 1000):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
     server:/home  900*    800    1000   6days      10       0       0
     /dev/sdb1     5000       0       0              3       0       0
"""


def test_quota(tmp_path, monkeypatch):
    assert parse_quota(QUOTA, "server:/home") == Quota(900 * 1024, 800 * 1024)
    assert parse_quota(QUOTA, "/dev/sdb1") is None, "no limit"
    assert parse_quota(QUOTA, "/dev/sdc1") is None and parse_quota("", "") is None
    assert find_quota(tmp_path) is None or shutil.which("quota")
    # Over quota, the program fails and prints all the same.
    program = tmp_path / "quota"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{QUOTA}END\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("colearn_hpc.cli.rank_report._mount", lambda _: ("server:/home", "nfs4"))
    assert find_quota(tmp_path / "not" / "there") == Quota(900 * 1024, 800 * 1024)
    found = doctor._storage([replace(RANK, quota=Quota(2e9, 8e9)), replace(RANK, quota=Quota(1e9, 50e9))], tmp_path)
    assert [(f.level, f.topic) for f in found if f.topic == "quota"] == [(WARN, "quota"), (OK, "quota")]
    assert f"dc0: 2.0 of 8.0 GB used in {tmp_path}; make room, or ask for more" in found[1].text


def test_a_quota_on_lustre(tmp_path, monkeypatch):
    program = tmp_path / "lfs"
    program.write_text(
        '#!/bin/sh\n[ "$1 $2" = "quota -u" ] && echo "Disk quotas" && echo "  $4 3000 0 4000 - 1 0 0 -"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("colearn_hpc.cli.rank_report._mount", lambda _: ("10.0.0.1@o2ib:/scratch", "lustre"))
    assert find_quota(tmp_path) == Quota(3000 * 1024, 4000 * 1024)


def test_a_shard_is_tried_as_training_reads_it(tmp_path, monkeypatch):
    version, wrong = try_shard(tmp_path / "not" / "there")
    assert version and not wrong
    assert not list(tmp_path.iterdir()), "nothing is left behind"

    def refuse(*_):
        raise OSError("Input/output error")

    monkeypatch.setattr("colearn_hpc.data.shard_dataset.read_at", refuse)
    assert "cannot be read any more: Input/output error" in try_shard(tmp_path)[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quota", [None, Quota(1.0, 2.0)])
def test_what_ranks_tell_each_other_is_plain(quota):
    rank = replace(RANK, quota=quota, hostile=("a",), flawed=("b", "c"))
    assert Rank.of(json.loads(json.dumps(rank.plain()))) == rank


def test_messages():
    assert doctor._messages([RANK]).level == OK
    assert doctor._messages([RANK, replace(RANK, wrong="dc1 found 3 instead of 6")]).level == FAIL


def test_a_folder_that_cannot_be_written(tmp_path):
    free, error = try_disk(tmp_path / "not" / "there" / "yet")
    assert free is not None and not error, "the nearest folder that exists is tried"
    free, error = try_disk(tmp_path.__class__("/proc/self"))
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
    assert capsys.readouterr().out.startswith(
        "FAIL  centers    centers=3 means 3 data centers, and this process was started alone"
    )


def test_on_a_terminal(monkeypatch, capsys):
    """In columns, in colour, wrapped; and nothing that a host calls itself steers the terminal."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show([Finding(WARN, "links", "\x1b]0;owned\x07 [red]one two three four five six seven")])
    said = capsys.readouterr().out
    assert "\x1b]0" not in said and "\x07" not in said and "\x1b[33mWARN" in said
    lines = re.sub(r"\x1b\[[\d;]*m", "", said).splitlines()
    assert lines[0].split() == ["WARN", "links", r"\x1b]0;owned\x07", "[red]one"]
    assert len(lines) > 2 and all(line.startswith(" " * 13) for line in lines[1:])


def test_ranks_that_share_a_gpu():
    other = replace(RANK, center="dc1", gpus=("a",))
    one = replace(RANK, gpus=("a",))
    (found,) = doctor._shared_gpus([one, other])
    assert found.level == OK and "n1: ranks 0 1 share GPU 0 (a)" in found.text
    modes = modes_of("GPU-a, Exclusive_Process, Disabled\nGPU-b, Default, Enabled\nno devices were found\n")
    assert modes == {"a": ("Exclusive_Process", False), "b": ("Default", True)}
    found = doctor._shared_gpus([replace(one, gpu_modes=modes), replace(other, gpu_modes=modes)])
    assert levels(found) == [FAIL, OK] and "--compute-mode=DEFAULT" in found[0].text and "MIG" in found[1].text
    assert doctor._shared_gpus([one, replace(other, gpus=("b",))]) == []
    assert Rank.of(json.loads(json.dumps(replace(one, gpu_modes=modes).plain()))).gpu_modes == modes


def test_collectives():
    ranks = [RANK, replace(RANK, center_rank=1), replace(RANK, center="dc1")]
    assert doctor._collectives(ranks, [None] * 3) == []
    (right,) = doctor._collectives(ranks, ["", "", None])
    assert right.level == OK and "over the ranks of dc0 is right" in right.text
    (wrong,) = doctor._collectives(ranks, ["", "no answer in 90 s", None])
    assert wrong.level == FAIL and "dc0: no answer in 90 s" in wrong.text and "NCCL_SOCKET_IFNAME" in wrong.text


@pytest.mark.parametrize(
    ("values", "level"), [(["", ""], OK), ([":4096:8"] * 2, OK), ([":16:8", ""], WARN), ([":0:0"] * 2, WARN)]
)
def test_determinism(values, level):
    (found,) = doctor._determinism([replace(RANK, workspace=value) for value in values])
    assert found.level == level
    assert doctor._determinism([replace(RANK, gpus=())]) == []


@pytest.mark.parametrize("other_comes", [True, False])
def test_a_collective_is_tried_in_a_process_of_its_own(other_comes):
    """By gloo: NCCL's needs GPUs."""
    port = []

    def center(rank):
        comm = SimpleNamespace(bcast=lambda where, root: port.append(where) or where if rank == 0 else port[0])
        return SimpleNamespace(comm=comm, rank=rank, size=2, nodes=1, is_leader=rank == 0)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(try_collective, center(0), "gloo", "cpu", 60.0 if other_comes else 1.0)
        if other_comes:
            while not port:
                time.sleep(0.01)
            assert try_collective(center(1), "gloo", "cpu") == ""
        assert first.result() == ("" if other_comes else "no answer in 1 s")
