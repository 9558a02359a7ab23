"""A federation has the bits of one MPI world: K sites, each with an MPI world of its own, and a real coordinator."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from federated import Consortium
from run_folders import lines, shared_bits

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).parent / "programs" / "federated.py"
PLAIN = {"rounds": 3, "local_epochs": 1, "epsilon": 10.0}  # T doubles in every round
OTHERS = {
    "overlap": PLAIN | {"exchange": {"overlap": True}, "local_epochs": 2},
    "steps": {"rounds": 3, "local_steps": 3, "epsilon": 10.0},  # 4 in an epoch: rounds of 3, 6 and 12
}
# What a data center keeps to itself from round to round, and what is pulled to the last shared model. BatchNorm stays:
# a site's own is in its shared.ckpt.
BATCH_NORM = {"local_layers": "batch_norm"}
CORRECTED = {
    "scaffold": PLAIN | {"local_correction": "scaffold"} | BATCH_NORM,
    "fedprox": PLAIN | {"local_correction": "fedprox"},
}


def comparable(run):
    """rounds.jsonl but for what a clock measured, and for bytes: a site sends its model once, a leader slices of it."""
    records = lines(run)
    for record in records:
        for center in record["centers"]:
            del center["bytes_sent"]
            del center["model"]  # told by all who write it: over MPI the first data center alone
    return records


def averaged_bits(run):
    """Of the shared model without BatchNorm."""
    state = torch.load(run / "shared.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    found = {name: tensor.numpy().tobytes() for name, tensor in state.items() if not name.startswith("net.1.")}
    assert len(found) == len(state) - 5
    return found


def same(run, world, whole=True):
    """``whole``: nothing of the model stays at a site."""
    assert comparable(run) == comparable(world)
    if whole:
        assert shared_bits(run) == shared_bits(world)
    else:
        assert averaged_bits(run) == averaged_bits(world)
    return True


def start(run, consortium, name, **case):
    """A site of one rank, not waited for."""
    case |= {"run": str(run), "federation": str(consortium.path), "site": name}
    with (consortium.folder / f"{name}.said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps([case])],
            stdout=said,
            stderr=said,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
        )


@pytest.fixture(scope="module")
def world(launch, tmp_path_factory):
    """Runs of 2 data centers of one rank in one MPI world, one after the other in one start."""
    folder = tmp_path_factory.mktemp("world")
    cases = {"plain": PLAIN} | OTHERS | CORRECTED
    launch(2, "federated.py", json.dumps([c | {"run": str(folder / n), "centers": 2} for n, c in cases.items()])).ok()
    return folder


def test_sites_of_one_rank(world, tmp_path):
    with Consortium(tmp_path / "c", ("dc0", "dc1")) as consortium:
        sites = {name: start(tmp_path / name, consortium, name, **PLAIN) for name in consortium.names}
        assert [site.wait(300) for site in sites.values()] == [0, 0], (consortium.folder / "dc0.said").read_text()
        assert consortium.process.wait(20) == 0
    assert all(same(tmp_path / name, world / "plain") for name in sites)
    chains = {json.loads((tmp_path / n / "rounds.jsonl").read_text().splitlines()[-1])["chain"] for n in sites}
    assert len(chains) == 1
    assert [line["local_epochs"] for line in lines(tmp_path / "dc0")] == [1, 2, 4]


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(("sites", "ranks"), [(2, 2), (3, 1), (5, 1)])
def test_sites_of_several_ranks(launch, tmp_path, sites, ranks):
    names = [f"dc{k}" for k in range(sites)]
    case = PLAIN | {"run": str(tmp_path / "world"), "centers": sites}
    launch(sites * ranks, "federated.py", json.dumps([case]), timeout=400).ok()
    done = {}
    with Consortium(tmp_path / "c", names) as consortium:

        def run(name):
            mine = PLAIN | {"run": str(tmp_path / name), "federation": str(consortium.path), "site": name}
            done[name] = launch(ranks, "federated.py", json.dumps([mine]), timeout=400)

        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in names:
        done[name].ok()
        assert same(tmp_path / name, tmp_path / "world")


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("case", OTHERS)
def test_other_rounds(world, tmp_path, case):
    with Consortium(tmp_path / "c", ("dc0", "dc1")) as consortium:
        sites = [start(tmp_path / name, consortium, name, **OTHERS[case]) for name in consortium.names]
        assert [site.wait(300) for site in sites] == [0, 0], (consortium.folder / "dc0.said").read_text()
    assert all(same(tmp_path / name, world / case) for name in consortium.names)


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(
    "settings",
    [
        {"exchange": {"sums": "fixed64"}, "privacy": {"secure": True}},
        {"exchange": {"sums": "fixed32"}},
    ],
    ids=["secure", "fixed32"],
)
def test_whole_numbers(launch, tmp_path, settings):
    """... in `rounds.jsonl` too: each one's divergence, and what stays home under masks."""
    names = ("dc0", "dc1", "dc2")
    case = PLAIN | settings
    launch(3, "federated.py", json.dumps([case | {"run": str(tmp_path / "world"), "centers": 3}])).ok()
    with Consortium(tmp_path / "c", names) as consortium:
        sites = [start(tmp_path / name, consortium, name, **case) for name in names]
        assert [site.wait(300) for site in sites] == [0, 0, 0], (consortium.folder / "dc0.said").read_text()
    assert all(same(tmp_path / name, tmp_path / "world") for name in names)


def until(holds, patience=120):
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_walltime_at_one_site_and_a_killed_coordinator(world, tmp_path):
    """A site is told that its time is over: it leaves by 85, and the other stays. The coordinator is killed and started
    again, the site comes back, and all end with the bits of the run that nobody disturbed."""
    with Consortium(tmp_path / "c", ("dc0", "dc1")) as consortium:
        slow = PLAIN | {"pause": 0.15}
        sites = {name: start(tmp_path / name, consortium, name, **slow) for name in consortium.names}
        until(lambda: "round 0: report: dc0, dc1" in consortium.said())
        time.sleep(0.3)
        sites["dc1"].send_signal(signal.SIGUSR1)
        assert sites["dc1"].wait(60) == 85, (consortium.folder / "dc1.said").read_text()
        assert "away: dc1: walltime" in consortium.said()
        consortium.kill()
        time.sleep(0.5)
        assert sites["dc0"].poll() is None  # neither stops it
        consortium.serve()
        sites["dc1"] = start(tmp_path / "dc1", consortium, "dc1", **PLAIN)
        assert [site.wait(300) for site in sites.values()] == [0, 0], (consortium.folder / "dc1.said").read_text()
    assert all(same(tmp_path / name, world / "plain") for name in sites)


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(
    ("victim", "case"), [("dc0", "plain"), ("dc1", "plain"), ("dc0", "fedprox"), ("dc1", "scaffold")]
)
def test_a_site_is_killed_and_comes_back(world, tmp_path, victim, case):
    settings = CORRECTED.get(case, PLAIN)
    with Consortium(tmp_path / "c", ("dc0", "dc1")) as consortium:
        slow = settings | {"pause": 0.1}
        sites = {name: start(tmp_path / name, consortium, name, **slow) for name in consortium.names}
        until(lambda: "round 0: report: dc0, dc1" in consortium.said())
        time.sleep(0.5)
        sites[victim].kill()
        sites[victim].wait()
        sites[victim] = start(tmp_path / victim, consortium, victim, **settings)
        assert [site.wait(300) for site in sites.values()] == [0, 0], (consortium.folder / f"{victim}.said").read_text()
    assert all(same(tmp_path / name, world / case, name == "dc0" or case != "scaffold") for name in sites)


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(
    ("returns", "more"),
    [("in the run", {}), ("after its end", {}), ("in the run", {"local_correction": "fedprox"} | BATCH_NORM)],
    ids=["in the run", "after its end", "in the run, fedprox"],
)
def test_the_others_go_on_without_a_site_which_comes_back(tmp_path, returns, more):
    """``continue_without``: whenever it comes back, it ends with the shared model of all others."""
    names = ("dc0", "dc1", "dc2")
    settings = {"on_failure": "continue_without", "round_timeout": 3.0}
    case = PLAIN | {"rounds": 8 if returns == "in the run" else 4, "epsilon": 0.0} | more
    with Consortium(tmp_path / "c", names, **settings) as consortium:
        sites = {n: start(tmp_path / n, consortium, n, **case, pause=0.5) for n in names}
        until(lambda: "round 0: report: dc0, dc1, dc2" in consortium.said())
        sites["dc2"].kill()
        sites["dc2"].wait()
        until(lambda: "going on without dc2" in consortium.said())
        if returns == "after its end":
            assert [sites[n].wait(300) for n in names[:2]] == [0, 0], (consortium.folder / "dc0.said").read_text()
        sites["dc2"] = start(tmp_path / "dc2", consortium, "dc2", **case)
        assert [site.wait(300) for site in sites.values()] == [0, 0, 0], (consortium.folder / "dc2.said").read_text()
        assert consortium.process.wait(20) == 0
    mine, others = lines(tmp_path / "dc2"), lines(tmp_path / "dc0")
    assert [line["round"] for line in others] == list(range(case["rounds"]))
    assert mine[-1]["relative_change"] == others[-1]["relative_change"]
    assert len(mine) < len(others)
    models = {center["model"] for center in mine[-1]["centers"]}  # digests
    assert all(models) and len(models) == (3 if more else 1), "BatchNorm is each site's own, or averaged"
    assert averaged_bits(tmp_path / "dc2") == averaged_bits(tmp_path / "dc0")
