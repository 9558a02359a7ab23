"""One vector is never summed with two rosters, over any kills and any lies."""

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.roster import RosterState

SITES = ("a", "b", "c", "d")
ALL, LESS = SITES, SITES[:3]


def test_a_round_in_order():
    state = RosterState().begin("a", ALL, "v", 0)
    assert (state.phase, state.roster) == ("sending", ALL)
    state = state.finish().next_round()
    assert (state.round, state.phase, state.roster, state.attempt) == (1, "open", (), -1)
    assert state.begin("a", LESS, "w", 0).roster == LESS


def test_again_with_the_same_roster_and_vector():
    state = RosterState().begin("a", ALL, "v", 0)
    assert state.begin("a", ALL, "v", 1).attempt == 1


def test_nothing_is_redone_among_the_survivors():
    """The difference of the two sums would be the lost site's vector."""
    state = RosterState().begin("a", ALL, "v", 0)
    with pytest.raises(PrivacyError, match="summed over a, b, c, d, and would be summed over a, b, c: the difference"):
        state.begin("a", LESS, "v", 1)


def test_nothing_is_redone_with_another_vector():
    with pytest.raises(PrivacyError, match="with another vector"):
        RosterState().begin("a", ALL, "v", 0).begin("a", ALL, "w", 1)


def test_a_void_round_does_not_free_its_vector():
    state = RosterState().begin("a", ALL, "v", 0).give_up().next_round()
    with pytest.raises(PrivacyError, match=r"this vector was sent to the sum over a, b, c, d, .* train on"):
        state.begin("a", LESS, "v", 0)
    assert state.begin("a", LESS, "w", 0).phase == "sending"


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda s: s.begin("a", ALL, "v", 0), "attempt 0 of round 0 was made"),
        (lambda s: s.begin("a", ("a", "b"), "v", 1), "needs 3 or more different sites"),
        (lambda s: s.begin("a", ("b", "c", "d"), "v", 1), "site a is not in the roster"),
        (lambda s: s.next_round(), "round 0 is sending; next_round comes where it is summed or void"),
        (lambda s: s.finish().finish(), "round 0 is summed; finish comes where it is sending"),
        (lambda s: s.finish().give_up(), "give_up comes where it is open or sending"),
        (lambda s: s.finish().begin("a", ALL, "v", 1), "begin comes where it is open or sending"),
    ],
)
def test_moves_that_are_none(move, message):
    with pytest.raises(PrivacyError, match=message):
        move(RosterState().begin("a", ALL, "v", 0))


def test_it_survives_being_written_down():
    state = RosterState().begin("a", ALL, "v", 0).finish().next_round().begin("a", LESS, "w", 3)
    assert RosterState.from_state_dict(json.loads(json.dumps(state.state_dict()))) == state


class KillsAndLiars(RuleBasedStateMachine):
    """A site that is told anything at any time, and dies at any time; it writes down its state before it acts."""

    def __init__(self):
        super().__init__()
        self.disk = json.dumps(RosterState().state_dict())
        self.state = RosterState()
        self.seen = {}  # vector -> rosters with which the world saw it
        self.of_round = {}  # round -> rosters

    def move(self, wanted):
        """Make a move if it is allowed; returns whether."""
        try:
            new = wanted(self.state)
        except PrivacyError:
            return False
        self.disk = json.dumps(new.state_dict())
        self.state = new
        return True

    def send(self, roster, vector):
        self.seen.setdefault(vector, set()).add(roster)
        self.of_round.setdefault(self.state.round, set()).add(roster)

    @rule(
        roster=st.sampled_from([ALL, LESS, ("a", "b", "d"), ("a", "c"), ("b", "c", "d"), ("a", "a", "b")]),
        vector=st.sampled_from("uv"),
        attempt=st.integers(-1, 2),
        dies=st.booleans(),
    )
    def told_to_send(self, roster, vector, attempt, dies):
        if self.move(lambda state: state.begin("a", roster, vector, attempt)):
            if dies:
                self.killed()
            else:
                self.send(roster, vector)

    @precondition(lambda self: self.state.phase == "sending")
    @rule(roster=st.permutations(SITES).map(lambda names: tuple(names[:3])), same=st.booleans())
    def told_to_redo(self, roster, same):
        """What a liar would try: the same vector among others, with a fresh attempt."""
        chosen, attempt, vector = self.state.roster if same else roster, self.state.attempt + 1, self.state.vector
        if self.move(lambda state: state.begin("a", chosen, vector, attempt)):
            self.send(chosen, vector)

    @rule()
    def told_that_it_is_summed(self):
        self.move(RosterState.finish)

    @rule()
    def told_that_it_is_void(self):
        self.move(RosterState.give_up)

    @rule()
    def told_to_go_on(self):
        self.move(RosterState.next_round)

    @rule()
    def killed(self):
        self.state = RosterState.from_state_dict(json.loads(self.disk))

    @invariant()
    def no_vector_was_seen_with_two_rosters(self):
        assert all(len(rosters) == 1 for rosters in self.seen.values())

    @invariant()
    def no_round_has_two_rosters(self):
        assert all(len(rosters) == 1 for rosters in self.of_round.values())

    @invariant()
    def no_roster_is_too_small(self):
        assert all(len(set(roster)) >= 3 and "a" in roster for rosters in self.seen.values() for roster in rosters)


TestKillsAndLiars = KillsAndLiars.TestCase
TestKillsAndLiars.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
