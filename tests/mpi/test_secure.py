"""Means of whole numbers between real processes: masks change no bit, over kills too, and hide what is sent."""

import json

import pytest

pytestmark = pytest.mark.mpi
CASES = ["3:fixed32", "3:fixed32-secure", "5:fixed32", "5:fixed32-secure", "3:examples64", "3:examples64-secure"]


def models(folder, centers=3):
    """Of each rank, without counters of batches, which are its own."""
    found = [json.loads((folder / f"model-{rank}.json").read_text()) for rank in range(centers)]
    return [{name: values for name, values in one.items() if "tracked" not in name} for one in found]


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    launch(5, "secure.py", folder, "-", *CASES, timeout=300).ok()
    return {case: folder / case.replace(":", "-") for case in CASES}


@pytest.mark.parametrize("case", CASES[::2])
def test_secure_is_plain_to_the_bit(runs, case):
    centers = int(case[0])
    plain, secure = models(runs[case], centers), models(runs[f"{case}-secure"], centers)
    assert all(model == plain[0] for model in plain + secure)
    changes = [[line["relative_change"] for line in lines(runs[name])] for name in (case, f"{case}-secure")]
    assert changes[0] == changes[1] and len(changes[0]) == 4


@pytest.mark.exhaustive(sample=0)
def test_sixteen(launch, tmp_path):
    launch(16, "secure.py", tmp_path, "-", "16:fixed32", "16:fixed32-secure", timeout=600).ok()
    assert models(tmp_path / "16-fixed32", 16) == models(tmp_path / "16-fixed32-secure", 16)


@pytest.mark.parametrize("at", ["1:exchange", pytest.param("2:decision", marks=pytest.mark.exhaustive(sample=0))])
def test_killed_and_started_again_with_the_bits_of_the_undisturbed_run(runs, launch, tmp_path, at):
    assert launch(3, "secure.py", tmp_path, at, "3:fixed32-secure").code != 0
    kept = json.loads((tmp_path / "3-fixed32-secure" / "centers" / "dc0" / "sum.json").read_text())
    assert kept["state"]["phase"] == "sending" and kept["state"]["round"] == int(at[0])
    launch(3, "secure.py", tmp_path, "-", "3:fixed32-secure").ok()
    assert models(tmp_path / "3-fixed32-secure") == models(runs["3:fixed32"])
    again = json.loads((tmp_path / "3-fixed32-secure" / "centers" / "dc0" / "sum.json").read_text())
    # The same vector went to the same roster, whatever was trained again.
    rosters, before = again["state"]["rosters"], kept["state"]["rosters"]
    assert len(rosters) == 4 and before.items() <= rosters.items()
    check_recorded(tmp_path / "3-fixed32-secure", secure=True)


def check_recorded(folder, secure):
    for rank in range(3):
        sent = (folder / f"sent-{rank}.bin").read_bytes()
        own = (folder / f"own-{rank}.bin").read_bytes()
        assert len(sent) > 500
        # Eight bytes: two numbers side by side. Zeros are no one's secret.
        shown = {sent[at : at + 8] for at in range(0, len(sent) - 8, 4)} - {bytes(8)}
        mine = {own[at : at + 8] for at in range(0, len(own) - 8, 4)}
        assert bool(shown & mine) == (not secure)


@pytest.mark.parametrize("case", ["3:fixed32", "3:fixed32-secure", "3:examples64-secure"])
def test_a_recorder_finds_nothing_of_a_center_under_masks(runs, case):
    check_recorded(runs[case], secure=case.endswith("secure"))


def test_what_is_measured_on_private_data_stays_home(runs):
    for line in lines(runs["3:examples64-secure"]):
        for center in line["centers"]:
            assert (center["examples"], center["steps"], center["divergence"]) == (0, 0, None)
            assert not center["local_metrics"] and not center["shared_metrics"]
    own = (runs["3:examples64-secure"] / "centers" / "dc1" / "log.txt").read_text()
    assert "round 3, of this data center alone: examples 40, divergence " in own
    assert all(center["divergence"] for line in lines(runs["3:fixed32"]) for center in line["centers"])
