"""DP-SGD in data centers of several ranks, with rounds between them, and a kill."""

import json

import pytest
from opacus.accountants import RDPAccountant

pytestmark = pytest.mark.mpi
RANKS, STEPS = 4, 12  # 3 rounds of one local epoch of 4 steps


def found(folder):
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def undisturbed(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    launch(RANKS, "private.py", folder, "known", 0).ok()
    return found(folder)


def test_all_ranks_have_the_same_bits(undisturbed):
    assert all(rank["weights"] == undisturbed[0]["weights"] for rank in undisturbed)


def test_a_round_is_averaged_under_the_names_of_the_module(undisturbed):
    assert {tuple(rank["names"]) for rank in undisturbed} == {
        ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")
    }


def test_every_rank_counts_every_step_once(undisturbed):
    accountant = RDPAccountant()
    accountant.history = [(1.0, 8 / 32, STEPS)]
    for rank in undisturbed:
        assert rank["steps"] == STEPS
        assert rank["epsilon"] == pytest.approx(accountant.get_epsilon(1e-2), abs=1e-9)


def test_killed_in_mid_epoch_and_resumed_has_the_same_bits_and_spends_the_same(undisturbed, launch, tmp_path):
    assert launch(RANKS, "private.py", tmp_path, "known", 6).code != 0
    launch(RANKS, "private.py", tmp_path, "resume", 0).ok()
    assert found(tmp_path) == undisturbed


def test_starts_and_data_centers_have_keys_of_their_own(undisturbed, launch, tmp_path):
    launch(RANKS, "private.py", tmp_path, "own", 0).ok()
    keys = [rank["key"] for rank in found(tmp_path)]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert not set(keys) & {rank["key"] for rank in undisturbed}
    assert found(tmp_path)[0]["weights"] != undisturbed[0]["weights"]
