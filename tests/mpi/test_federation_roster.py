"""A site leaves a run for good and another joins it: real sites, a real coordinator, and kills around the change."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from federated import Consortium
from run_folders import lines, shared_bits
from test_federation import until

from colearn_hpc.algorithm.local_correction import Scaffold, Variates
from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.cli import main
from colearn_hpc.cli.launch import find_mpirun
from colearn_hpc.federation.agreement import Federation, Member

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))
import toy  # noqa: E402

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]
NAMES = ("dc0", "dc1", "dc2")
SETTINGS = {"local_epochs": 1, "epsilon": 0.12, "decay": 0.25, "weighting": "uniform"}


def family(pid):
    """A process and all that it started; the launcher's ranks have groups of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    own = children.read_text().split() if children.exists() else []
    return [pid, *(one for child in own for one in family(int(child)))]


def end(process):
    if process.poll() is None:
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class Sites:
    """Sites, each in an MPI world of its own, and each with a federation.yaml of its own."""

    def __init__(self, consortium, folder, rounds, **settings):
        self.consortium, self.folder, self.case = consortium, folder, {"rounds": rounds} | settings
        self.processes = {}

    def file(self, name):
        """As it lies at that site; its identity is beside it."""
        return self.consortium.folder / f"federation-of-{name}.yaml"

    def give_file(self, *names):
        for name in names:
            self.file(name).write_text(self.consortium.path.read_text())

    def start(self, name, ranks=1, **more):
        run = self.folder / name
        case = self.case | {"run": str(run), "federation": str(self.file(name)), "site": name} | more
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        command = [find_mpirun(), "--oversubscribe", "--bind-to", "none", *root, "-n", str(ranks), sys.executable]
        with (self.folder / f"{name}.said").open("a") as said:
            self.processes[name] = subprocess.Popen(
                [*command, str(PROGRAMS / "federated.py"), json.dumps([case])],
                stdout=said,
                stderr=said,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
            )

    def kill(self, name):
        """SIGKILL to mpirun and all that it started."""
        end(self.processes[name])

    def code(self, name):
        return self.processes[name].wait(240)

    def said(self, name):
        return (self.folder / f"{name}.said").read_text()

    def end(self):
        for process in self.processes.values():
            end(process)


@pytest.fixture
def run(tmp_path, under_way):
    """``run(rounds, **settings)``: three sites that train, and their coordinator."""

    def begin(rounds, ranks=1, **settings):
        consortium = Consortium(tmp_path / "c", NAMES)
        consortium.serve()
        sites = Sites(consortium, tmp_path, rounds, **settings)
        under_way.append(sites)
        sites.give_file(*NAMES)
        for name in NAMES:
            sites.start(name, ranks, pause=0.25)
        return consortium, sites

    return begin


def change(consortium, leaves="dc2", joins="dc3"):
    """What the organiser does: `federation remove`, `invite`, `accept` and `sign`, and the coordinator's new file."""
    sites = [replace(s, may=(), left=True) if s.name == leaves else s for s in consortium.federation.sites]
    if joins:
        sites.append(Member(joins, consortium.identity(joins).fingerprint))
    consortium.write(replace(consortium.federation, sites=tuple(sites)))


def in_two_parts(train, data, local, seed, rounds, after):
    """Rounds 0 to ``after`` - 1 by data centers 0, 1, 2, and the rest by 0, 1, 3.

    ``train(nets, data, rounds, T)`` is a plain loop of the oracle, and ``local`` its first T.
    """
    nets = [toy.network(seed) for _ in range(3)]
    models, history = train(nets, data[:3], after, local)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(models[-1].copy()), nets[0].parameters())
    last, change = history[-1]
    following = 2 * last if change <= SETTINGS["epsilon"] else last
    more, later = train(nets, [data[k] for k in (0, 1, 3)], rounds - after, following)
    return np.concatenate([models, more]), history + later


METHOD = {"epsilon": SETTINGS["epsilon"], "decay": 0.25, "rate": 0.1, "momentum": 0.9}


def loop(seed, rounds, after):
    """Algorithm 1 as a plain loop."""

    def train(nets, data, rounds, epochs):
        return oracle.co_learning(nets, data, rounds=rounds, local_epochs=epochs, batch=toy.BATCH, **METHOD)

    return in_two_parts(train, [toy.data(k) for k in range(4)], 1, seed, rounds, after)


def steps(seed, rounds, after):
    """The same with T in optimizer steps."""

    def train(nets, streams, rounds, steps):
        return oracle.in_steps(nets, streams, rounds=rounds, local_steps=steps, **METHOD)

    streams = [itertools.cycle(toy.loader(k)) for k in range(4)]
    models, history = in_two_parts(train, streams, 3, seed, rounds, after)
    return models[-1], history


def kept(seed, rounds, after):
    """The same, and what is kept is the mean of the last four shared models, of before and after."""
    models, history = loop(seed, rounds, after)
    return np.mean(models[-4:].astype(np.float64), axis=0).astype(np.float32), history


def mean_of(tensors):
    return weighted_mean([one.reshape(-1) for one in tensors], [1.0] * len(tensors)).reshape(tensors[0].shape)


def scaffold(seed, rounds, after):
    """The same with SCAFFOLD: who joins is handed the common variate, and its own begins at zero."""
    net, rule = toy.network(seed), Scaffold()
    shared = [parameter.detach().clone() for parameter in net.parameters()]
    zeros = [torch.zeros_like(one) for one in shared]
    own, common, history, epochs = dict.fromkeys(range(4), zeros), zeros, [], 1
    for index in range(rounds):
        members, models = (0, 1, 2) if index < after else (0, 1, 3), []
        for k in members:
            with torch.no_grad():
                for parameter, first in zip(net.parameters(), shared, strict=True):
                    parameter.copy_(first)
            optimizer, distance = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 0.0
            for j in range(1, epochs + 1):
                optimizer.param_groups[0]["lr"] = 0.1 * 0.25 ** (j / epochs)
                for x, y in toy.loader(k):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(x), y).backward()
                    for parameter, first, *variates in zip(net.parameters(), shared, own[k], common, strict=True):
                        rule.correct(parameter.grad, parameter.detach(), first, Variates(*variates))
                    distance += optimizer.param_groups[0]["lr"]
                    optimizer.step()
            models.append([parameter.detach().clone() for parameter in net.parameters()])
            parts = zip(models[-1], shared, own[k], common, strict=True)
            own[k] = [rule.renewed(local, first, Variates(*held), distance) for local, first, *held in parts]
        before = torch.cat([one.reshape(-1) for one in shared]).double()
        shared = [mean_of(parts) for parts in zip(*models, strict=True)]
        common = [mean_of(parts) for parts in zip(*(own[k] for k in members), strict=True)]
        moved = torch.cat([one.reshape(-1) for one in shared]).double() - before
        change = float(moved.norm() / before.norm())
        history.append((epochs, change))
        epochs = 2 * epochs if change <= SETTINGS["epsilon"] else epochs
    return torch.cat([one.reshape(-1) for one in shared]).numpy(), history


def vector_of(run):
    state = torch.load(run / "shared.ckpt", map_location="cpu")["state_dict"]
    return torch.cat([tensor.reshape(-1) for tensor in state.values()]).numpy()


def rosters(run):
    said = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [line["roster"] for line in said if "roster" in line]


def test_one_leaves_for_good_and_another_joins_after_round_2(run, tmp_path, capsys):
    """The final weights are those of a plain loop, to the bit; sites and coordinator are killed around the change."""
    consortium, sites = run(6, plain=7, **SETTINGS)
    until(lambda: "round 2: report: dc0, dc1, dc2" in consortium.said())
    sites.kill("dc1")  # perhaps before it has written down what round 2 came to
    change(consortium)
    until(lambda: "left for good: dc2; joins: dc3; in force from round 3 on" in consortium.said())
    # Who is in the run is asked to stop; who has left is refused, and told why.
    assert sites.code("dc0") == 85, sites.said("dc0")
    assert sites.code("dc2") != 0
    assert "dc2 has left run gut for good" in sites.said("dc2")
    sites.start("dc0")  # with the old file
    assert sites.code("dc0") not in (0, 85)
    assert "the roster has changed: put the newest federation.yaml" in sites.said("dc0")
    sites.start("dc2")
    sites.give_file("dc0", "dc1", "dc2", "dc3")
    assert sites.code("dc2") != 0
    for name in ("dc0", "dc1", "dc3"):
        sites.start(name)
    until(lambda: "arrived: dc3 at start" in consortium.said())
    sites.kill("dc3")
    consortium.kill()
    consortium.serve()
    sites.start("dc3")
    until(lambda: "what round 3 begins with" in consortium.said())
    sites.kill("dc3")
    sites.kill("dc0")
    for name in ("dc3", "dc0"):
        sites.start(name)
    assert [sites.code(name) for name in ("dc0", "dc1", "dc3")] == [0, 0, 0], sites.said("dc3")
    assert consortium.process.wait(20) == 0  # nobody waits for who has left
    models, history = loop(7, 6, 3)
    for name in ("dc0", "dc1", "dc3"):
        assert np.array_equal(vector_of(tmp_path / name), models[-1]), name
        found = lines(tmp_path / name)
        mine = history[3:] if name == "dc3" else history
        assert [line["local_epochs"] for line in found] == [epochs for epochs, _ in mine]
        assert [line["relative_change"] for line in found] == pytest.approx([by for _, by in mine], rel=1e-12)
        assert [c["name"] for c in found[-1]["centers"]] == ["dc0", "dc1", "dc3"]
        (line,) = rosters(tmp_path / name)
        assert (line["from_round"], line["joined"], line["left"]) == (3, ["dc3"], ["dc2"])
    assert [c["name"] for c in lines(tmp_path / "dc0")[2]["centers"]] == ["dc0", "dc1", "dc2"]
    heads = {json.loads((tmp_path / n / "rounds.jsonl").read_text().splitlines()[-1])["chain"] for n in ("dc0", "dc3")}
    assert len(heads) == 1
    for name in ("dc0", "dc1", "dc3"):
        code = main(["verify", str(tmp_path / name), "--head", *heads])
        out = capsys.readouterr().out
        assert code == 0 and "joined: dc3; left for good: dc2" in out, out
    path = tmp_path / "dc3" / "rounds.jsonl"
    path.write_text(path.read_text().replace('"left": ["dc2"]', '"left": []'))
    assert main(["verify", str(tmp_path / "dc3")]) == 1
    assert "who joined or left before round 3 is not told as the contract has it" in capsys.readouterr().out


@pytest.mark.exhaustive(sample=0)
@pytest.mark.parametrize(
    "settings",
    [
        {"exchange": {"sums": "fixed64"}, "privacy": {"secure": True}},
        {"exchange": {"codec": "int8"}},
        {"outer_optimizer": "momentum"},
    ],
    ids=["secure", "int8", "outer"],
)
def test_all_hold_one_model_afterwards(run, tmp_path, settings, capsys):
    """Sites of two ranks, with BatchNorm and shuffling, and what goes with the last shared model."""
    consortium, sites = run(5, epsilon=0.0, **settings)
    until(lambda: "round 1: report: dc0, dc1, dc2" in consortium.said())
    change(consortium)
    assert [sites.code(name) for name in ("dc0", "dc1")] == [85, 85], sites.said("dc0")
    sites.give_file("dc0", "dc1", "dc3")
    for name in ("dc0", "dc1", "dc3"):
        sites.start(name, ranks=2 if name == "dc3" else 1)
    assert [sites.code(name) for name in ("dc0", "dc1", "dc3")] == [0, 0, 0], sites.said("dc3")
    assert len({shared_bits(tmp_path / name) for name in ("dc0", "dc1", "dc3")}) == 1
    models = {center["model"] for center in lines(tmp_path / "dc3")[-1]["centers"]}
    assert len(models) == 1 and all(models)
    assert main(["verify", str(tmp_path / "dc3")]) == 0, capsys.readouterr().out


@pytest.mark.exhaustive(sample=0)
@pytest.mark.parametrize(
    ("expected", "settings", "ranks"),
    [
        (steps, {"local_steps": 3}, 1),
        (kept, {"kept_model": "latest"}, 1),
        (scaffold, {"local_correction": "scaffold"}, 1),
        (scaffold, {"local_correction": "scaffold"}, 2),
    ],
    ids=["steps", "kept model", "scaffold", "scaffold on two ranks"],
)
def test_who_joins_goes_on_to_the_bits_of_a_plain_loop(run, tmp_path, expected, settings, ranks):
    """What is handed on of the method: the count of steps, the models that are kept, the common variate."""
    settings = {name: value for name, value in SETTINGS.items() if name != "local_epochs"} | settings
    consortium, sites = run(5, plain=7, **settings)
    until(lambda: "round 1: report: dc0, dc1, dc2" in consortium.said())
    change(consortium)
    assert [sites.code(name) for name in ("dc0", "dc1")] == [85, 85], sites.said("dc0")
    sites.give_file("dc0", "dc1", "dc3")
    for name in ("dc0", "dc1", "dc3"):
        sites.start(name, ranks=ranks if name == "dc3" else 1)
    assert [sites.code(name) for name in ("dc0", "dc1", "dc3")] == [0, 0, 0], sites.said("dc3")
    assert len({shared_bits(tmp_path / name) for name in ("dc0", "dc1", "dc3")}) == 1
    (first,) = {line["from_round"] for line in rosters(tmp_path / "dc3")}
    model, history = expected(7, 5, first)
    found = lines(tmp_path / "dc0")
    assert [line["local_epochs"] for line in found] == [epochs for epochs, _ in history]
    assert [line["relative_change"] for line in found] == pytest.approx([by for _, by in history], rel=1e-4)
    if ranks == 1:
        assert np.array_equal(vector_of(tmp_path / "dc3"), model)
    else:  # two halves of a batch are added up in another order
        np.testing.assert_allclose(vector_of(tmp_path / "dc3"), model, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive(sample=0)
def test_what_cannot_be_handed_on_is_refused_at_all(run, tmp_path):
    """Nobody joins where a mean is under way between two rounds; the site is taken off again, and the run goes on."""
    consortium, sites = run(4, epsilon=0.0, exchange={"overlap": True}, local_epochs=2)
    until(lambda: "round 0: report: dc0, dc1, dc2" in consortium.said())
    change(consortium)
    assert sites.code("dc0") == sites.code("dc1") == 85, sites.said("dc0")
    sites.give_file("dc0", "dc1", "dc3")
    for name in ("dc0", "dc1", "dc3"):
        sites.start(name)
    for name in ("dc0", "dc1", "dc3"):
        assert sites.code(name) not in (0, 85)
        assert "a site cannot join this run while it is under way: exchange: {overlap: true}" in sites.said(name)
    change(consortium, leaves="dc3", joins="")
    sites.give_file("dc0", "dc1")
    for name in ("dc0", "dc1"):
        sites.start(name)
    assert [sites.code(name) for name in ("dc0", "dc1")] == [0, 0], sites.said("dc0")
    assert shared_bits(tmp_path / "dc0") == shared_bits(tmp_path / "dc1")


def test_a_join_without_the_organisers_change_is_refused(tmp_path):
    """A certificate of the run's authority, and a federation.yaml that one site has changed by itself: both are not
    enough."""
    from colearn_hpc.errors import FederationError
    from colearn_hpc.federation.link import Link, Membership

    with Consortium(tmp_path / "c", NAMES) as consortium:
        forged = consortium.folder / "forged.yaml"
        member = Member("dc3", consortium.identity("dc3").fingerprint)
        forged.write_text(replace(consortium.federation, sites=(*consortium.federation.sites, member)).to_yaml())
        assert Federation.read(forged).names[-1] == "dc3"
        for name, why in (("dc3", "is not on the roster"), ("dc0", "says other things than the coordinator's")):
            with pytest.raises(FederationError, match=why):
                Link(Membership.read(forged, name)).ask_now(["news", "here", None], 20)
