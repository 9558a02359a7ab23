"""What a site remembers of its sums: over any kill the same vector goes to the same roster, or nothing goes."""

import json
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy import kept_sum
from colearn_hpc.privacy.kept_sum import KeptSum, digest_of

ALL = ("a", "b", "c", "d")
LESS = ("a", "b", "c")


def numbers(seed=0, bits=32):
    return np.random.default_rng(seed).integers(-1000, 1000, 100, dtype=f"<i{bits // 8}")


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sum_that_was_cut_off_is_taken_again_with_the_same_vector(tmp_path, bits):
    KeptSum(tmp_path, "a", "run").begin(0, ALL, 0, numbers(bits=bits), (20, 24), 3.0)
    after = KeptSum(tmp_path, "a", "run")  # the process was killed
    found = after.begun(0)
    assert (found.exponents, found.bits, found.factor, found.state.roster) == ((20, 24), bits, 3.0, ALL)
    assert np.array_equal(after.numbers(), numbers(bits=bits)) and after.attempt(0) == 1
    after.begin(0, ALL, 1, after.numbers(), (20, 24), 3.0)
    assert KeptSum(tmp_path, "a", "run").attempt(0) == 2


def test_another_roster_or_another_vector_is_refused(tmp_path):
    KeptSum(tmp_path, "a", "run").begin(0, ALL, 0, numbers(), (20,))
    for roster, vector in ((LESS, numbers()), (ALL, numbers(1)), (LESS, numbers(1))):
        with pytest.raises(PrivacyError, match="difference of the two sums"):
            KeptSum(tmp_path, "a", "run").begin(0, roster, 1, vector, (20,))


def test_rounds_that_were_missed_are_passed_over(tmp_path):
    kept = KeptSum(tmp_path, "a", "run")
    kept.begin(2, ALL, 0, numbers(), (20,))
    assert kept.begun(1) is None and kept.attempt(3) == 0
    kept.begin(5, LESS, 0, numbers(1), (20,))
    assert KeptSum(tmp_path, "a", "run").begun(5).state.roster == LESS


def test_a_run_that_is_set_back_sends_nothing_new(tmp_path):
    kept = KeptSum(tmp_path, "a", "run")
    for round_ in range(3):
        kept.begin(round_, ALL, 0, numbers(round_), (20,))
    kept.begin(1, ALL, 1, numbers(1), (20,))  # the very same sum
    for roster, vector in ((ALL, numbers(9)), (LESS, numbers(1)), (ALL, numbers(2))):
        with pytest.raises(PrivacyError, match="was summed before"):
            kept.begin(1, roster, 1, vector, (20,))


def test_what_another_run_has_left_is_forgotten(tmp_path):
    KeptSum(tmp_path, "a", "old").begin(0, ALL, 0, numbers(), (20,))
    KeptSum(tmp_path, "a", "new").begin(0, LESS, 0, numbers(), (20,))


def test_what_cannot_be_read_sends_nothing(tmp_path):
    KeptSum(tmp_path, "a", "run").begin(0, ALL, 0, numbers(), (20,))
    (tmp_path / "sum-round000000.bin").write_bytes(b"other")
    with pytest.raises(PrivacyError, match="is not the vector that was sent"):
        KeptSum(tmp_path, "a", "run").numbers()
    (tmp_path / "sum.json").write_text("{")
    with pytest.raises(PrivacyError, match="says which vectors were sent to whom"):
        KeptSum(tmp_path, "a", "run")


def test_it_is_on_disk_before_it_is_sent(tmp_path, monkeypatch):
    """To whom the vector goes first: numbers that were sent without it could be sent to others."""
    written = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: written.append(to.name) or replace(self, to))
    KeptSum(tmp_path, "a", "run").begin(0, ALL, 0, numbers(), (20,))
    assert written == ["sum.json", "sum-round000000.bin"]
    assert json.loads((tmp_path / "sum.json").read_text())["state"]["vector"] == digest_of(numbers())
    assert (tmp_path / "sum-round000000.bin").stat().st_mode & 0o077 == 0, "for its user alone"


def test_each_chunk_is_on_disk_before_it_is_sent(tmp_path, monkeypatch):
    """... and no later one has to be: writing overlaps the wire."""
    monkeypatch.setattr(kept_sum, "_PIECE", 40)
    may_go_on, sync = threading.Semaphore(0), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: may_go_on.acquire() and sync(number))
    kept = KeptSum(tmp_path, "a", "run")
    kept.begin(0, ALL, 0, numbers(), (20,), ahead=True)
    for piece in range(1, 6):
        may_go_on.release()
        kept.wait(10 * piece)
        on_disk = np.fromfile(tmp_path / ".sum-round000000.bin.tmp", "<i4")
        assert np.array_equal(on_disk[: 10 * piece], numbers()[: 10 * piece])
    assert KeptSum(tmp_path, "a", "run").numbers() is None, "killed here, it would have to train to the same numbers"
    may_go_on.release(10)
    kept.wait()
    assert np.array_equal(KeptSum(tmp_path, "a", "run").numbers(), numbers())


def test_a_full_disk_sends_nothing(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    kept = KeptSum(tmp_path, "a", "run")
    monkeypatch.setattr(os, "fdatasync", full)
    kept.begin(0, ALL, 0, numbers(), (20,), ahead=True)
    with pytest.raises(PrivacyError, match="No space left"):
        kept.wait(1)


def test_the_secret_of_masks_is_kept_for_one_sum(tmp_path):
    secret = KeptSum(tmp_path, "a", "run").secret(b"this sum")
    assert KeptSum(tmp_path, "a", "run").secret(b"this sum") == secret and len(secret) == 32
    assert KeptSum(tmp_path, "a", "run").secret(b"another") != secret
    assert (tmp_path / "sum-key.json").stat().st_mode & 0o077 == 0, "for its user alone"


def test_the_very_same_may_go_out_once_more_under_the_same_masks(tmp_path):
    KeptSum(tmp_path, "a", "run").begin(0, ALL, 2, numbers(), (20,))
    kept = KeptSum(tmp_path, "a", "run")
    kept.begin(0, ALL, 2, numbers(), (20,))
    for roster, scales in ((LESS, (20,)), (ALL, (21,))):
        with pytest.raises(PrivacyError):
            kept.begin(0, roster, 2, numbers(), scales)
    with pytest.raises(PrivacyError, match="attempt 1 of round 0 was made"):
        kept.begin(0, ALL, 1, numbers(), (20,))


def test_killed_between_the_numbers_and_the_state(tmp_path):
    """The round before can still be taken again."""
    kept = KeptSum(tmp_path, "a", "run")
    kept.begin(0, ALL, 0, numbers(), (20,))
    before = (tmp_path / "sum.json").read_bytes()
    first = (tmp_path / "sum-round000000.bin").read_bytes()
    kept.begin(1, ALL, 0, numbers(1), (20,))
    assert not (tmp_path / "sum-round000000.bin").exists()
    (tmp_path / "sum.json").write_bytes(before)
    (tmp_path / "sum-round000000.bin").write_bytes(first)
    after = KeptSum(tmp_path, "a", "run")
    assert np.array_equal(after.numbers(), numbers())
    after.begin(0, ALL, 1, after.numbers(), (20,))
    after.begin(1, LESS, 0, numbers(2), (20,))
    assert np.array_equal(KeptSum(tmp_path, "a", "run").numbers(), numbers(2))


def test_a_vector_on_another_scale_is_the_same_vector(tmp_path):
    kept = KeptSum(tmp_path, "a", "run")
    kept.begin(0, ALL, 0, numbers(), (20,), vector="v")
    with pytest.raises(PrivacyError, match="train on before the next sum"):
        kept.begin(1, LESS, 0, 2 * numbers(), (21,), vector="v")
    with pytest.raises(PrivacyError, match="begun with other numbers"):
        kept.begin(0, ALL, 1, 2 * numbers(), (21,), vector="v")


class Lies(RuleBasedStateMachine):
    """Kills at any moment, any roster, any round, retrained models: no vector is ever seen with two rosters, and no two
    vectors of one round are seen."""

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.kept = KeptSum(self.folder, "a", "run")
        self.seen = {}  # digest -> rosters
        self.rounds = {}  # round -> digests

    @rule()
    def killed(self):
        self.kept = KeptSum(self.folder, "a", "run")

    @rule(
        round_=st.integers(0, 4),
        roster=st.sampled_from([ALL, LESS, ("a", "b", "d")]),
        attempt=st.integers(0, 5),
        seed=st.integers(0, 3),
        again=st.booleans(),
    )
    def sums(self, round_, roster, attempt, seed, again):
        stored = again and self.kept.begun(round_) is not None
        vector = self.kept.numbers() if stored else numbers(seed)
        try:
            self.kept.begin(round_, roster, attempt, vector, (20,))
        except PrivacyError:
            return
        self.seen.setdefault(digest_of(vector), set()).add(roster)
        self.rounds.setdefault(round_, set()).add((digest_of(vector), roster))

    @invariant()
    def holds(self):
        assert all(len(rosters) == 1 for rosters in self.seen.values())
        assert all(len(sums) == 1 for sums in self.rounds.values())


def test_no_vector_is_seen_with_two_rosters():
    run_state_machine_as_test(Lies, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))
