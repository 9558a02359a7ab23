"""Sums of whole numbers between sites that share no MPI world: masks change no bit, over kills too, and hide what is
sent from the coordinator; who is lost in the middle of a sum makes the round void, and never a second roster."""

import json
import math
from collections import Counter

import pytest
from federated import Consortium
from walking import PROGRAMS, Walk

from colearn_hpc.federation.wire import CHUNK

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]
NAMES = ("dc0", "dc1", "dc2")
ROUNDS, SIZE = 4, 600_001  # three chunks
CASES = {
    "fixed32": {"sums": "fixed32"},
    "examples32": {"sums": "fixed32", "weighting": "examples"},
    "examples64": {"sums": "fixed64", "weighting": "examples"},
}


def lines(folder):
    """Of the rounds that came to their end; one that was killed may have written a line twice."""
    return list(dict.fromkeys((folder / "rounds").read_text().splitlines()))


def ends(folder):
    return (folder / "done").read_text()


@pytest.fixture(scope="module")
def world(launch, tmp_path_factory):
    """``world(case)``: the folders of 3 data centers in one MPI world, with bare numbers."""
    found = {}

    def of(case):
        if case not in found:
            found[case] = tmp_path_factory.mktemp(f"world-{case}")
            launch(3, "summing.py", found[case], ROUNDS, SIZE, 0, json.dumps(CASES[case] | {"centers": 3})).ok()
        return found[case]

    return of


@pytest.fixture
def walk(tmp_path, under_way):
    """``walk(settings)``: sites with their coordinator, which is curious; ended after the test."""

    def begin(settings, names=NAMES, rounds=ROUNDS, size=SIZE, pause=0.0, only=None, **agreed):
        consortium = Consortium(tmp_path / "run", names, **agreed)
        consortium.program = [str(PROGRAMS / "curious.py"), str(consortium.folder)]
        consortium.serve()
        chosen = settings | {"on_failure": agreed.get("on_failure", "stop")}

        def arguments(name, folder):
            mine = chosen | (only or {}).get(name, {})
            return [folder, rounds, size, pause, json.dumps(mine), consortium.path, name]

        walking = Walk(consortium, "summing.py", arguments)
        under_way.append(walking)
        return walking

    return begin


def folders(walking, names=NAMES):
    return [walking.consortium.folder / f"at-{name}" for name in names]


def same_bits(walking, world):
    """Shared models, eq. 4, and each one's own divergence, as in one MPI world."""
    for here, there in zip(folders(walking), [world / name for name in NAMES], strict=True):
        assert ends(here) == ends(there), walking.said()
        assert lines(here) == lines(there)
    return True


@pytest.mark.parametrize("case", ["fixed32", pytest.param("examples64", marks=pytest.mark.exhaustive(sample=0))])
def test_secure_is_plain_is_one_mpi_world_to_the_bit_over_kills_too(world, walk, case):
    """A site dies in the middle of an exchange and the coordinator too; the same vector goes out once more."""
    secure = CASES[case] | {"secure": True}
    walking = walk(secure, only={"dc1": {"kill_at": 1}})
    walking.wait(lambda: (folders(walking)[1] / "struck").exists())
    walking.consortium.kill()
    walking.consortium.serve()
    walking.wait(walking.done)
    assert same_bits(walking, world(case))
    assert nothing_shown(walking, 8 if case == "examples64" else 4)
    state = json.loads((folders(walking)[1] / "sum.json").read_text())["state"]
    assert len(state["rosters"]) == ROUNDS and set(map(tuple, state["rosters"].values())) == {NAMES}


def test_plain_sums_are_one_mpi_world_to_the_bit(world, walk):
    walking = walk(CASES["examples32"])
    walking.wait(walking.done, restart=False)
    assert same_bits(walking, world("examples32"))
    assert not nothing_shown(walking)


@pytest.mark.exhaustive(sample=0)
@pytest.mark.parametrize("sites", [5, 16])
def test_more_sites(launch, walk, tmp_path, sites):
    names = tuple(f"dc{k}" for k in range(sites))
    launch(
        sites, "summing.py", tmp_path / "world", 2, 50_001, 0, json.dumps({"sums": "fixed32", "centers": sites})
    ).ok()
    walking = walk({"sums": "fixed32", "secure": True}, names, 2, 50_001)
    walking.wait(walking.done, patience=500)
    for name in names:
        assert ends(walking.consortium.folder / f"at-{name}") == ends(tmp_path / "world" / name)


def nothing_shown(walking, width=4):
    """Whether an exact search finds nothing of any site in what the coordinator saw."""
    for index, folder in enumerate(folders(walking)):
        records = (walking.consortium.folder / f"seen-{index}.bin").read_bytes()
        # What goes out once more is the same to the byte, and counts once.
        seen = b"".join({records[at : at + 4000] for at in range(0, len(records), 4000)})
        assert len(seen) == 4000 * ROUNDS * -(-(SIZE + SIZE // 10 + 1) * width // CHUNK)
        own = (folder / "own.bin").read_bytes()
        assert len(own) > 10_000
        # Eight bytes: two numbers side by side, or one. Zeros are no one's secret.
        shown = {seen[at : at + 8] for at in range(0, len(seen) - 8, 4)} - {bytes(8)}
        if shown & {own[at : at + 8] for at in range(0, len(own) - 8, 4)}:
            return False
        if not looks_random(seen):
            return False
    return True


def looks_random(content: bytes) -> bool:
    """Chi-square over bytes: 255 degrees of freedom; random ones pass 400 once in 10⁸ times."""
    expected = len(content) / 256
    return sum((count - expected) ** 2 / expected for count in Counter(content).values()) < 400


def test_who_is_lost_in_the_middle_of_a_sum_makes_the_round_void_for_all(walk):
    """Its rows have gone out in part: the others would show its vector if they were summed without it."""
    names = (*NAMES, "dc3")
    walking = walk(
        {"sums": "fixed32", "secure": True},
        names,
        rounds=7,
        pause=0.3,
        only={"dc2": {"kill_at": 1}},
        on_failure="continue_without",
        round_timeout=3.0,
    )
    walking.wait(lambda: (folders(walking)[2] / "struck").exists(), restart=False)
    others = [folder for folder in folders(walking, names) if folder.name != "at-dc2"]
    walking.wait(lambda: all(len(lines(folder)) >= 3 for folder in others), restart=False)
    for folder in others:
        written = lines(folder)
        assert written[1].startswith("1 void nan the round is void: dc2 left while its sum was taken")
        assert "void" not in written[0] + written[2], walking.said()
        rosters = json.loads((folder / "sum.json").read_text())["state"]["rosters"]
        assert sorted(map(len, list(rosters.values())[:3])) == [3, 4, 4]  # round 1's vector went to the four alone
    walking.wait(walking.done)  # it is started again, and given the shared model that it has missed
    assert len(walking.bits(*names)) == 1, walking.said()
    back = lines(folders(walking)[2])
    assert any("missed round 1" in line for line in back)
    assert math.isfinite(float.fromhex(back[-1].split()[1]))


def test_a_site_that_trains_to_something_else_sends_what_it_had_sent(walk):
    """As on GPUs: the retrained model has other bits, and the vector on its disk is what goes out."""
    walking = walk({"sums": "fixed32", "secure": True, "wanders": True}, only={"dc0": {"kill_at": 2}})
    walking.wait(walking.done)
    assert len(walking.bits()) == 1, walking.said()
    assert (folders(walking)[0] / "struck").exists()
    kept = [json.loads((folder / "sum.json").read_text())["state"]["rosters"] for folder in folders(walking)]
    assert [len(rosters) for rosters in kept] == [ROUNDS] * 3  # no second vector in any round
