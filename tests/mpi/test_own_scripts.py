"""Scripts of a user's own: what few of them do works as in plain Lightning, or ends all ranks with one sentence."""

import json

import pytest

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("kind", ["joined and ended", "asked and ended"])
def test_who_ends_without_fit_is_named_at_once(launch, tmp_path, kind):
    done = launch(2, "own_script.py", kind, tmp_path, timeout=60)
    assert done.code == 1 and done.orphans == []
    assert done.err.count("colearn-hpc: error:") == 1, done.err
    assert "colearn-hpc: error: data center dc1 (rank 0, on " in done.err
    assert "has ended without taking part in the run" in done.err and "Traceback" not in done.err


def test_a_rank_that_has_not_joined_begins_no_collective(launch, tmp_path):
    done = launch(2, "own_script.py", "fails before it joins", tmp_path, timeout=60)
    assert done.code != 0 and done.orphans == [] and "ZeroDivisionError" in done.err
    assert done.err.count("colearn-hpc: error:") == 1, done.err


@pytest.mark.parametrize(("kind", "times"), [("usual", 1), ("validate first", 3)])
def test_data_are_prepared_once_per_host(launch, tmp_path, kind, times):
    said = launch(2, "own_script.py", kind, tmp_path, timeout=120).ok()
    assert sorted(said.split("\n")[:-1]) == ["dc0: 5 lines, True", "dc1: 5 lines, True"]
    # `validate` has no rounds: there Lightning prepares data in each data center.
    assert len((tmp_path / "calls").read_text().split()) == times


def test_tuners(launch, tmp_path):
    """Each data center finds its own batch size; the rate is the first one's."""
    said = launch(2, "own_script.py", "tuners", tmp_path, timeout=120).ok()
    first, second = sorted(said.split("\n")[:-1])
    assert first.startswith("dc0: batches of 4, lr ") and second.startswith("dc1: batches of 8, lr ")
    assert first.partition("lr ")[2] == second.partition("lr ")[2]
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [0, 1]
