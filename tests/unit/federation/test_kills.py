"""Kill and compare: SIGKILL of the coordinator and of sites at random moments; the run ends with the undisturbed bits.

Real processes, TLS and files; the sites train without Lightning, so that many are started quickly.
"""

import random
import time

import pytest
from federated import Consortium
from walking import Walk

NAMES = ("lyon", "kiel", "oslo")
ROUNDS, SIZE = 6, 1_500_001


def walker(consortium, rounds=ROUNDS, size=SIZE, pause=0.05):
    """Program and arguments of a site."""
    return "walker.py", lambda name, folder: [consortium.path, name, folder, rounds, size, pause]


@pytest.fixture
def walk(tmp_path, under_way):
    """``walk(NAMES, **settings)``: a coordinator with its sites, ended after the test."""

    def begin(names=NAMES, rounds=ROUNDS, size=SIZE, pause=0.05, **settings):
        consortium = Consortium(tmp_path / f"run{len(under_way)}", names, **settings)
        consortium.serve()
        walking = Walk(consortium, *walker(consortium, rounds, size, pause))
        under_way.append(walking)
        return walking

    return begin


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Bits and lines of a run that nobody disturbed."""
    with Consortium(tmp_path_factory.mktemp("undisturbed"), NAMES) as consortium:
        walking = Walk(consortium, *walker(consortium))
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


def test_who_was_killed_when_all_was_done_needs_no_coordinator(walk):
    """A site that has told that it is finished, and dies before it has ended: the coordinator ends without it."""
    walking = walk(rounds=3, size=10_001)
    walking.wait(walking.done, restart=False)
    assert walking.consortium.process.wait(10) == 0
    bits, done = walking.bits(), walking.consortium.folder / "at-kiel" / "done"
    walking.processes["kiel"].wait(10)
    done.unlink()
    walking.start("kiel")
    walking.wait(walking.done, restart=False)
    assert walking.bits() == bits
