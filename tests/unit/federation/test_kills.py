"""Kill and compare: SIGKILL of the coordinator and of sites at random moments; the run ends with the undisturbed bits.

Real processes, TLS and files; the sites train without Lightning, so that many are started quickly.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from federated import Consortium

WALKER = Path(__file__).parents[2] / "mpi" / "programs" / "walker.py"
NAMES = ("lyon", "kiel", "oslo")
ROUNDS, SIZE = 6, 1_500_001


class Walk:
    """A run of walkers, each of which is started again when it has died."""

    def __init__(self, consortium, rounds=ROUNDS, size=SIZE, pause=0.05):
        self.consortium, self.arguments = consortium, (rounds, size, pause)
        self.processes = {}
        for name in consortium.names:
            self.start(name)

    def start(self, name):
        folder = self.consortium.folder / f"at-{name}"
        folder.mkdir(exist_ok=True)
        with (folder / "said").open("a") as said:
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(WALKER), str(self.consortium.path), name, str(folder), *map(str, self.arguments)],
                env=dict(os.environ, OMP_NUM_THREADS="1"),
                stdout=said,
                stderr=said,
            )

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def done(self, *names):
        return all((self.consortium.folder / f"at-{name}" / "done").exists() for name in names or self.consortium.names)

    def lines(self, name):
        path = self.consortium.folder / f"at-{name}" / "rounds"
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, until, patience=150, restart=True):
        end = time.monotonic() + patience
        while not until():
            assert time.monotonic() < end, self.said()
            for name, process in self.processes.items():
                if restart and process.poll() not in (None, 0):
                    self.start(name)
            time.sleep(0.05)

    def said(self):
        texts = [(self.consortium.folder / f"at-{n}" / "said").read_text()[-2000:] for n in self.consortium.names]
        return "\n---\n".join([*texts, self.consortium.said()[-4000:]])

    def end(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def bits(self, *names):
        names = names or self.consortium.names
        return {(self.consortium.folder / f"at-{name}" / "done").read_text() for name in names}


@pytest.fixture
def walk(tmp_path):
    """``walk(NAMES, **settings)``: a coordinator with its sites, ended after the test."""
    under_way = []

    def begin(names=NAMES, rounds=ROUNDS, size=SIZE, pause=0.05, **settings):
        consortium = Consortium(tmp_path / f"run{len(under_way)}", names, **settings)
        consortium.serve()
        walking = Walk(consortium, rounds, size, pause)
        under_way.append(walking)
        return walking

    yield begin
    for walking in under_way:
        walking.end()
        walking.consortium.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Bits and lines of a run that nobody disturbed."""
    with Consortium(tmp_path_factory.mktemp("undisturbed"), NAMES) as consortium:
        walking = Walk(consortium)
        try:
            walking.wait(walking.done, restart=False)
            assert consortium.process.wait(10) == 0  # every site has finished, and so has the coordinator
            assert len(walking.bits()) == 1
            lines = walking.lines("lyon")
            assert lines == walking.lines("oslo") and [line[:2] for line in lines] == [f"{i} " for i in range(ROUNDS)]
            return walking.bits(), lines
        finally:
            walking.end()


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random(walk, undisturbed, seed):
    """20 runs with 4 kills each."""
    draw, walking = random.Random(seed), walk(pause=0.3)
    walking.wait(lambda: bool(walking.lines("lyon")) or draw.random() < 0.01)
    for _ in range(4):
        time.sleep(draw.uniform(0.1, 1.5))
        victim = draw.choice(["coordinator", *NAMES])
        if victim == "coordinator":
            if walking.consortium.process.poll() is None:
                walking.consortium.kill()
                walking.consortium.serve()
        elif walking.processes[victim].poll() is None:
            walking.kill(victim)
            walking.start(victim)
    walking.wait(walking.done)
    assert walking.bits() == undisturbed[0], walking.said()
    for name in NAMES:  # a site that was killed may have written a line twice
        assert sorted(set(walking.lines(name))) == sorted(undisturbed[1])


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("away", NAMES)
def test_any_site_may_be_left_out_and_comes_back(walk, away):
    """``continue_without``: the others go on after the round_timeout, whoever it is; the mean is theirs."""
    walking = walk(rounds=8, size=10_001, pause=0.4, on_failure="continue_without", round_timeout=3.0)
    others = [name for name in NAMES if name != away]
    walking.wait(lambda: len(walking.lines(others[0])) >= 2)
    walking.kill(away)
    walking.wait(lambda: "going on without" in walking.consortium.said(), restart=False)
    before = len(walking.lines(others[0]))
    walking.wait(lambda: len(walking.lines(others[0])) > before, restart=False)
    walking.wait(walking.done)
    assert len(walking.bits()) == 1, walking.said()
    assert f"{away} is back" in walking.consortium.said() or len(walking.lines(away)) < 8


def test_who_comes_back_after_the_end_ends_with_the_shared_model(walk):
    walking = walk(rounds=5, size=10_001, pause=0.2, on_failure="continue_without", round_timeout=2.0)
    walking.wait(lambda: len(walking.lines("lyon")) >= 1)
    walking.kill("kiel")
    walking.wait(lambda: walking.done("lyon", "oslo"), restart=False)
    walking.start("kiel")
    walking.wait(walking.done)
    assert len(walking.bits()) == 1, walking.said()
    assert walking.consortium.process.wait(10) == 0
