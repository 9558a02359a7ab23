"""Parameters that are frozen, unfrozen or added while a run is under way."""

import json

import pytest

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def results(launch, tmp_path_factory):
    out = launch(2, "freezing.py", tmp_path_factory.mktemp("freezing")).ok()
    return json.loads(out.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "case",
    [
        "frozen in mid-round",
        "frozen at a round's start",
        "unfrozen in mid-round",
        "unfrozen at a round's start",
        "to and fro",
        "int8",
    ],
)
def test_the_shared_model_holds_the_mean_of_all_that_was_trained(results, case):
    assert results[case] == []


def test_data_centers_that_train_different_parameters_are_refused(results):
    assert "freeze and unfreeze the same parameters everywhere" in results["in one data center only"]


def test_a_change_in_the_middle_of_an_epoch_is_refused(results):
    said = results["in the middle of an epoch"]
    assert said.startswith("refused: ") and "parameter net.0.bias was frozen, unfrozen or added in the middle" in said
