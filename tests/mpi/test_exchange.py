"""Waiting, failing and averaging between real processes."""

import re

import pytest

pytestmark = pytest.mark.mpi


def test_one_center_is_plain_lightning(launch, tmp_path):
    """K = 1 with the schedule left to the optimizer, on two hosts: the same bits with and without the callback."""
    out = launch(2, "plain.py", tmp_path).ok()
    assert sorted(out.splitlines()) == ["rank 0: 2 rounds, equal", "rank 1: 2 rounds, equal"]


def test_waiting_leaves_the_core_free(launch):
    done = launch(3, "waiting.py", 6)
    shares = dict(re.findall(r"(dc\d) ([\d.]+) %", done.ok()))
    assert float(shares["dc0"]) < 5 and float(shares["dc1"]) < 5, shares
    # One of those who wait speaks for all, and names the one that is awaited.
    assert re.search(r"round 0: waiting for dc2 \(went on from start, \d+ s ago\) since \d+ s", done.err), done.err


def test_timeout_ends_all(launch):
    done = launch(3, "trouble.py", "timeout", timeout=60)
    assert done.code != 0 and done.orphans == []
    assert re.search(r"round 0: (dc0 \(.*\), )?dc2 \(.*\) did not arrive within 1 s \(round_timeout\)", done.err)


def test_a_mean_that_stands_still(launch):
    """... because a data center vanished after the meeting: the others say for whom they wait, and end."""
    done = launch(3, "trouble.py", "stall", timeout=60)
    assert done.code == 86 and done.orphans == []
    assert re.search(r"the mean stands still: nothing was exchanged with dc2 for 1 s\n", done.err), done.err
    assert re.search(r"error: data center dc[01] .*nothing was exchanged with dc2 for 2 s; is the network", done.err)


def test_failure_while_the_others_are_busy(launch):
    """They cannot come to the meeting: after a grace period the one that failed ends everyone."""
    done = launch(3, "trouble.py", "busy", timeout=60)
    assert done.code != 0 and done.orphans == []
    assert done.err.count("colearn-hpc: error: data center dc1") == 1 and "KeyError: 'lost'" in done.err


def test_failure_of_the_decision(launch):
    done = launch(3, "trouble.py", "decision", timeout=60)
    assert (
        done.code == 0
        and done.out.count("data center dc0: ZeroDivisionError at trouble.py:") == 2
        and done.out.count("ZeroDivision") == 3
    )


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(("centers", "ranks_per_center"), [(2, 1), (5, 1), (3, 2), (2, 3), (1, 2)])
def test_mean(launch, centers, ranks_per_center):
    """Sizes around every boundary of the chunks, weights, several dtypes, lanes; the same bits on all ranks."""
    ranks = centers * ranks_per_center
    assert launch(ranks, "mean.py", ranks_per_center, timeout=120).ok().count("all equal") == ranks


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(("ranks", "seed"), [(2, 0), (3, 1), (5, 2)])
def test_mean_on_all_paths(launch, ranks, seed):
    assert launch(ranks, "paths.py", seed, timeout=200).ok().count("all paths equal") == ranks


def test_uncaught_exception_in_a_users_script(launch):
    """No Trainer, no handler, the others in a collective: the interpreter's hook ends them all."""
    done = launch(2, "trouble.py", "uncaught", timeout=60)
    assert done.code != 0 and done.orphans == [] and "the script failed" in done.err
