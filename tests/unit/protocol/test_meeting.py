"""The meeting: chair, attendee and news, and thousands of simulated runs on a clock that jumps."""

import heapq
import itertools
import random

import pytest

from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.meeting import FINISHED, Attendee, Chair, GaveUp, NewsBook, ProtocolError
from colearn_hpc.protocol.messages import (
    Absent,
    Arrival,
    Failed,
    LeftOut,
    News,
    Outcome,
    Present,
    Stopping,
    Topic,
    TopicKind,
)

NAMES = ("dc0", "dc1", "dc2")


def round_(index):
    return Topic(TopicKind.ROUND, index)


def arrival(leader, index=0):
    return Arrival(round_(index), Present(f"from {leader}"))


def chair_with(*leaders, index=0, patience=None, may_miss=False):
    chair = Chair(NAMES)
    chair.open(round_(index), 100.0, patience, may_miss)
    for leader in leaders:
        chair.receive(leader, arrival(leader, index))
    return chair


# --- the chair ------------------------------------------------------------------------------------------


def test_all_members_get_the_one_outcome():
    chair = chair_with(0, 2)
    assert chair.due(101.0) is None and chair.missing == {1}
    chair.receive(1, arrival(1))
    outcome = chair.due(102.0)
    assert outcome == Outcome(round_(0), tuple(map(arrival, range(3)))) and outcome.present == (0, 1, 2)
    assert chair.outbox() == [(0, outcome), (1, outcome), (2, outcome)] and chair.outbox() == []
    assert chair.messages == []


def test_who_comes_ahead_is_kept_for_the_next_meeting():
    chair = Chair(NAMES)
    chair.receive(1, arrival(1))
    chair.open(round_(0), 0.0, None, False)
    assert chair.missing == {0, 2}


def test_without_patience_it_waits_for_ever():
    assert chair_with(0, 1).due(1e9) is None


def test_it_gives_up_where_nobody_can_be_done_without():
    chair = chair_with(0, patience=5.0)
    assert chair.due(105.0) is None
    assert chair.due(105.1) == GaveUp(round_(0), frozenset({1, 2}))
    assert chair.outbox() == [] and chair.members == {0, 1, 2}
    chair.open(Topic(TopicKind.FAILURE), 106.0, None, False)  # it is idle again


def left_out():
    """A chair that has gone on from round 0 without dc1."""
    chair = chair_with(0, 2, patience=5.0, may_miss=True)
    outcome = chair.due(105.1)
    assert outcome == Outcome(round_(0), (arrival(0), None, arrival(2))) and outcome.present == (0, 2)
    assert chair.outbox() == [(1, LeftOut(round_(0))), (0, outcome), (2, outcome)]
    assert chair.members == {0, 2}
    return chair


def test_who_was_left_out_is_not_waited_for():
    chair = left_out()
    chair.receive(1, arrival(1))
    chair.open(Topic(TopicKind.MEAN, 0), 106.0, 5.0, False)  # it is back at the next round's end, not before
    for leader in (0, 2):
        chair.receive(leader, arrival(leader))
    assert chair.due(106.0).present == (0, 2)


@pytest.mark.parametrize("brought", [Present("from 1"), Absent("out of luck", "from 1")])
def test_who_is_back_listens_to_the_round_and_is_a_member_again(brought):
    chair = left_out()
    chair.open(round_(1), 107.0, None, True)
    for leader in (0, 2):
        chair.receive(leader, arrival(leader, 1))
    chair.receive(1, Arrival(round_(0), brought))
    outcome = chair.due(107.0)
    assert outcome.arrivals[1] == Arrival(round_(1), Absent("missed round 0", "from 1"))
    assert chair.messages == ["round 1: dc1 is back; it missed round 0"]
    assert chair.members == {0, 1, 2}


@pytest.mark.parametrize("brought", [Failed("KeyError"), Stopping("a signal")])
def test_a_failure_or_a_stop_of_who_is_back_stays_what_it_is(brought):
    chair = left_out()
    chair.open(round_(1), 107.0, None, True)
    for leader in (0, 2):
        chair.receive(leader, arrival(leader, 1))
    chair.receive(1, Arrival(round_(0), brought))
    assert chair.due(107.0).arrivals[1].brought == brought


def test_the_run_ends_without_who_is_silent():
    chair = left_out()
    assert chair.close() == {1}
    assert chair.outbox() == [(1, Outcome(FINISHED, (None, None, None)))]
    assert chair.arrived({1}) == set()
    chair.receive(1, arrival(1))
    assert chair.arrived({1}) == {1}


def test_one_meeting_at_a_time():
    chair = chair_with(0)
    with pytest.raises(ProtocolError, match="the meeting round 0 is open, and round 1 would begin"):
        chair.open(round_(1), 0.0, None, False)
    assert chair.missing == {1, 2}
    with pytest.raises(ProtocolError, match="no meeting is open"):
        Chair(NAMES).due(0.0)


# --- the attendee ---------------------------------------------------------------------------------------


def attendee(patience=5.0, index=1):
    one = Attendee(index)
    assert one.arrive(round_(0), Present(), 100.0, patience) == Arrival(round_(0), Present())
    return one


def due(one, now, heard=None, waits_here=False):
    return one.due(now, now if heard is None else heard, waits_here)


def test_the_outcome_ends_the_wait():
    one = attendee()
    assert due(one, 101.0) is None
    outcome = Outcome(round_(3), (None, None, None))
    one.receive(outcome)
    assert due(one, 1e9) is outcome
    with pytest.raises(ProtocolError, match="no meeting is awaited"):
        due(one, 1e9)


def test_it_waits_for_ever_without_patience():
    assert due(attendee(patience=None), 1e9, heard=0.0) is None


def test_it_gives_up_a_chair_that_has_not_come():
    """Each half a second later than the one before: the first speaks first."""
    for index in (1, 2):
        one, limit = attendee(index=index), 105.0 + 0.5 * index
        assert due(one, limit) is None
        assert due(one, limit + 0.1) == GaveUp(round_(0), frozenset({0}))
        one.arrive(Topic(TopicKind.FAILURE), Failed("text"), 110.0, 1.0)  # it is idle again


def test_a_chair_that_waits_too_gives_up_first():
    one = attendee()
    limit = 110.5 + pacing.GRACE
    assert due(one, limit, waits_here=True) is None
    assert due(one, limit + 0.1, waits_here=True) == GaveUp(round_(0), frozenset({0}))


def test_who_was_left_out_waits_as_long_as_the_chair_is_heard_of():
    one = attendee()
    one.receive(LeftOut(round_(0)))
    assert due(one, 1000.0) is None
    assert due(one, 1000.0, heard=1000.0 - pacing.SILENCE - 5.0) is None
    assert due(one, 1000.0, heard=999.9 - pacing.SILENCE - 5.0) == GaveUp(round_(0), frozenset({0}))


def test_who_hears_it_before_it_comes_waits_too():
    one = Attendee(1)
    one.receive(LeftOut(round_(0)))
    one.arrive(round_(0), Present(), 100.0, 5.0)
    assert due(one, 1000.0) is None
    one.receive(Outcome(round_(1), (None, None, None)))
    assert due(one, 1000.0).topic == round_(1)
    one.arrive(round_(2), Present(), 1001.0, 5.0)  # it is in again
    assert isinstance(due(one, 1010.0), GaveUp)


def test_who_comes_after_the_end_hears_it_at_once():
    one = Attendee(1)
    one.receive(Outcome(FINISHED, (None, None, None)))
    one.arrive(round_(5), Present(), 100.0, None)
    assert due(one, 100.0).topic == FINISHED


def test_one_wait_at_a_time():
    with pytest.raises(ProtocolError, match="the meeting round 0 is awaited, and round 1 would begin"):
        attendee().arrive(round_(1), Present(), 101.0, None)


# --- news -----------------------------------------------------------------------------------------------


def test_news_say_where_the_missing_are():
    news = NewsBook(0, NAMES, 100.0)
    assert news.not_at(round_(0)) == {1, 2}
    assert news.receive(1, News("waiting", round_(0)), 103.0) == ""
    assert news.receive(2, News("round 0, epoch 1, batch 5 of 9"), 104.0) == ""
    assert news.waits_at(1, round_(0)) and not news.waits_at(2, round_(0)) and news.not_at(round_(0)) == {2}
    assert news.when(2) == 104.0
    assert news.text({2}, 110.0) == "dc2 (round 0, epoch 1, batch 5 of 9, 6 s ago)"
    assert news.text({1, 2}, 200.0) == (
        "dc1 (silent since 97 s, last: waiting), dc2 (silent since 96 s, last: round 0, epoch 1, batch 5 of 9)"
    )
    assert news.text(set(), 200.0) == "the first leader"
    assert news.gave_up(round_(0), {2}, 30.0, 105.0) == (
        "round 0: dc2 (round 0, epoch 1, batch 5 of 9, 1 s ago) did not arrive within 30 s (round_timeout); look at "
        'its log, allow more time, or set on_failure="continue_without"'
    )


def test_a_restart_is_shown_once():
    news = NewsBook(0, NAMES, 0.0)
    restarting = News("restarting (1 of 3 in this round): KeyError")
    assert news.receive(1, restarting, 1.0) == "dc1: restarting (1 of 3 in this round): KeyError"
    assert news.receive(1, restarting, 2.0) == ""


def test_who_met_has_gone_on():
    news = NewsBook(0, NAMES, 0.0)
    news.receive(1, News("waiting", round_(0)), 1.0)
    news.met(Outcome(round_(0), (arrival(0), arrival(1), None)), 2.0)
    assert not news.waits_at(1, round_(0)) and news.text({1}, 3.0) == "dc1 (went on from round 0, 1 s ago)"
    news.receive(1, News("waiting", round_(0)), 4.0)  # on its way since before the meeting ended
    assert not news.waits_at(1, round_(0)) and news.when(1) == 2.0


def test_the_first_of_those_who_wait_speaks():
    assert NewsBook(0, NAMES, 0.0).speaks({1, 2})
    assert NewsBook(1, NAMES, 0.0).speaks({0})
    assert not NewsBook(2, NAMES, 0.0).speaks({0})
    assert NewsBook(2, NAMES, 0.0).speaks({0, 1, 2})


# --- simulated runs -------------------------------------------------------------------------------------


class Simulation:
    """A run of several data centers that do nothing but meet at rounds' ends. Links keep order; the clock jumps.

    Args:
        seed: draws how long everything takes, who is silent for a while, and when the chair dies.
        deadly: the chair dies.
    """

    def __init__(self, seed, deadly=False):
        self.random = random.Random(seed)
        count = self.random.randint(2, 6)
        self.rounds = self.random.randint(1, 12)
        self.patience = self.random.choice([2.0, 5.0] if deadly else [None, 2.0, 5.0])
        self.dies = self.random.uniform(0.0, 8.0) if deadly else float("inf")
        names = [f"dc{k}" for k in range(count)]
        self.chair, self.attendees = Chair(names), [Attendee(k) for k in range(count)]
        self.now, self.heard = 0.0, 0.0
        self.at, self.waits, self.ended = [0] * count, [False] * count, [""] * count
        self.chair_waits_at = [None] * count  # as far as each has heard
        self.outcomes, self.left_out = {}, 0
        self._events, self._number, self._last = [], itertools.count(), {}

    def run(self):
        for k in range(len(self.at)):
            self._later(self._work(k), self._arrive, k)
        while self._events:
            self.now, _, what, arguments = heapq.heappop(self._events)
            if self.now < self.dies or what != self._chair_looks:
                what(*arguments)
        return self

    def _work(self, k):
        silent = k and self.random.random() < 0.1
        return self.random.choice([6.0, 30.0]) if silent else self.random.uniform(0.1, 2.0)

    def _later(self, seconds, what, *arguments):
        heapq.heappush(self._events, (self.now + seconds, next(self._number), what, arguments))

    def _send(self, link, what, *arguments):
        """A link takes its time, and keeps order."""
        when = max(self._last.get(link, 0.0), self.now + self.random.uniform(0.0, 0.5)) + 1e-9
        self._last[link] = when
        self._later(when - self.now, what, *arguments)

    def _arrive(self, k):
        if k == 0 and self.now >= self.dies:
            return
        self.waits[k] = True
        topic, brought = round_(self.at[k]), Present((k, self.at[k]))
        if k == 0:
            self.chair.receive(0, Arrival(topic, brought))
            self.chair.open(topic, self.now, self.patience, True)
            for other in range(1, len(self.at)):
                self._send(("from chair", other), self._hears_news, other, topic)
            self._later(0.0, self._chair_looks)
            self._later((self.patience or 0.0) + 0.01, self._chair_looks)
        else:
            message = self.attendees[k].arrive(topic, brought, self.now, self.patience)
            self._send(("to chair", k), self._chair_hears, k, message)
            self._later(0.0, self._looks, k)

    def _chair_hears(self, k, message):
        if self.now < self.dies:
            self.chair.receive(k, message)
            self._chair_looks()

    def _chair_looks(self):
        if self.waits[0] and not self.ended[0]:
            found = self.chair.due(self.now)
            assert not isinstance(found, GaveUp), "it can be done without anybody"
            if found is not None:
                self.left_out += found.arrivals.count(None)
                self._goes_on(0, found)
        for k, message in self.chair.outbox():
            if k:
                self._send(("from chair", k), self._hears, k, message)

    def _hears_news(self, k, topic):
        self.heard, self.chair_waits_at[k] = self.now, topic

    def _hears(self, k, message):
        self.heard = self.now
        self.attendees[k].receive(message)
        if self.waits[k]:
            self._looks(k, again=False)

    def _looks(self, k, again=True):
        if not self.waits[k] or self.ended[k]:
            return
        heard = self.now if self.now < self.dies and not self.ended[0] else min(self.heard, self.dies)
        waits_here = self.chair_waits_at[k] == round_(self.at[k])
        found = self.attendees[k].due(self.now, heard, waits_here)
        if isinstance(found, GaveUp):
            self.ended[k] = "gave up"
        elif found is not None:
            self._goes_on(k, found)
        elif again and self.patience is not None:
            self._later(1.0, self._looks, k)

    def _goes_on(self, k, outcome):
        self.waits[k] = False
        if outcome.topic == FINISHED:
            self.ended[k] = "left out"
            return
        assert self.outcomes.setdefault(outcome.topic.round, outcome) == outcome, "two outcomes of one meeting"
        assert k in outcome.present, "an outcome for one who was not there"
        self.at[k] = outcome.topic.round + 1
        if self.at[k] < self.rounds:
            self._later(self._work(k), self._arrive, k)
            return
        self.ended[k] = "finished"
        if k == 0:
            self.chair.close()
            for silent, message in self.chair.outbox():
                self._send(("from chair", silent), self._hears, silent, message)


def test_simulated_runs():
    """One outcome per meeting, for those who were there; the first data center's rounds are all there is."""
    left_out = returned = 0
    for seed in range(2000):
        found = Simulation(seed).run()
        assert found.ended[0] == "finished" and sorted(found.outcomes) == list(range(found.rounds)), seed
        for index, outcome in found.outcomes.items():
            assert outcome.topic == round_(index)
            for k, one in enumerate(outcome.arrivals):
                if one is None:
                    continue
                if isinstance(one.brought, Present):
                    assert one.topic == round_(index) and one.brought.content == (k, index), seed
                else:
                    returned += 1
                    assert one.brought.content[0] == k and one.brought.content[1] < index, seed
        if found.patience is None:
            assert found.left_out == 0 and set(found.ended) == {"finished"}, seed
        assert set(found.ended) <= {"finished", "left out"}, seed  # nobody gives up a chair that lives
        left_out += found.left_out
    assert left_out > 1000 and returned > 500


def test_a_dead_chair_is_not_waited_for():
    for seed in range(1000):
        found = Simulation(seed, deadly=True).run()
        assert all(found.ended[1:]), (seed, found.ended)  # nobody waits any more
        if not found.ended[0]:
            assert set(found.ended[1:]) <= {"gave up", "finished"}, seed
