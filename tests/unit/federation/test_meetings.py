"""The coordinator's meetings, without a wire: who is told what, when sites are killed, corrected, left out and back."""

import random
import sqlite3

import pytest

from colearn_hpc.federation.coordinator.meetings import BeginAgain, Meetings, Refused
from colearn_hpc.federation.coordinator.store import Store
from colearn_hpc.protocol.messages import Absent, Arrival, Outcome, Present, Topic, TopicKind

START, RUN_ID = Topic(TopicKind.START), Topic(TopicKind.RUN_ID)
NAMES = ("lyon", "kiel", "oslo")


def round_(i, kind=TopicKind.ROUND):
    return Topic(kind, i)


class Run:
    """A run's meetings; ``killed`` gives it a new coordinator with the same disk."""

    def __init__(self, folder, patience=None, may_miss=False):
        self.folder, self.settings = folder, (patience, may_miss)
        self.store = None
        self.killed()

    def killed(self):
        if self.store is not None:
            self.store.close()
        self.store = Store(self.folder / "state", "run", "digest")
        self.meetings = Meetings(NAMES, self.store, *self.settings)

    def ask(self, site, topic, content=None, session="", now=0.0):
        return self.meetings.ask(site, Arrival(topic, Present(content)), session or f"session {site}", now)

    def due(self, now=0.0):
        return {site: answer for site, (_, answer) in self.meetings.due(now).items()}

    def meet(self, topic, *sites, now=0.0, content=None):
        """All come; returns what each is told."""
        for k in sites or range(len(NAMES)):
            assert self.ask(k, topic, content, now=now) is None
        return self.due(now)

    def begin(self):
        self.meet(START, content="same")
        for k in range(len(NAMES)):
            self.ask(k, RUN_ID, f"id of {k}")
        self.due()
        return self


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_all_are_told_one_outcome(run):
    told = run.meet(START, content="same")
    assert set(told) == {0, 1, 2} and len(set(map(id, told.values()))) == 1 and told[0].present == (0, 1, 2)


def test_nobody_is_told_before_all_are_there(run):
    assert run.ask(0, START) is None and run.ask(2, START) is None
    assert run.due() == {} and run.meetings.awaited == {1}


def test_who_comes_again_is_told_what_it_was_told(run):
    run.begin()
    told = run.meet(round_(0), content=1)
    run.killed()
    assert run.ask(1, round_(0), content="another process", session="new") == told[1]
    assert run.meetings.run_id == "id of 0"


def test_arrivals_do_not_survive_and_are_brought_again(run):
    run.begin()
    run.ask(0, round_(0))
    run.killed()
    assert set(run.meet(round_(0))) == {0, 1, 2}


def test_who_has_left_is_waited_for(run):
    run.begin()
    run.ask(0, round_(0))
    run.meetings.withdraw(0, "session 0")
    run.ask(1, round_(0))
    run.ask(2, round_(0))
    assert run.due() == {} and run.meetings.awaited == {0}
    run.meetings.withdraw(1, "an old session")
    assert run.meetings.awaited == {0}


def test_a_site_that_is_corrected_before_round_0_begins_anew(run):
    for k, content in enumerate("aab"):
        run.ask(k, START, content)
    assert set(run.due()) == {0, 1, 2}
    assert isinstance(run.ask(0, START, "a"), Outcome)  # the same process, whose answer was lost
    for k in range(3):
        assert run.ask(k, START, "a", session=f"new {k}") is None
    assert set(run.due()) == {0, 1, 2}


def test_who_waits_further_on_is_told_to_begin_again(run):
    for k, content in enumerate("aab"):
        run.ask(k, START, content)
    run.due()
    run.ask(0, Topic(TopicKind.DIFFERENCE, detail="start"), "a")
    assert run.ask(2, START, "a", session="new") is None
    assert isinstance(run.due()[0], BeginAgain)


def test_a_site_that_is_killed_at_the_start_is_told_again_what_all_agreed_on(run):
    told = run.meet(START, content="same")
    assert run.ask(1, START, "same", session="new") == told[1]


def test_a_site_that_runs_something_else_later_is_refused(run):
    run.begin()
    assert isinstance(run.ask(1, START, "other", session="new"), Refused)
    assert isinstance(run.ask(1, START, "same", session="new"), Outcome)


def test_the_run_begins_without_patience(tmp_path):
    run = Run(tmp_path, patience=5.0)
    run.ask(0, START)
    assert run.due(now=1e9) == {}


def test_patience_ends_the_others_processes(tmp_path):
    run = Run(tmp_path, patience=5.0).begin()
    run.ask(0, round_(0), now=100.0)
    assert run.due(now=104.0) == {}
    told = run.due(now=106.0)
    assert set(told) == {0} and "kiel, oslo did not come within 5 s" in told[0].why
    assert set(run.meet(round_(0), now=200.0)) == {0, 1, 2}  # they are started again


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_any_site_may_be_left_out_and_comes_back(tmp_path, absent):
    run = Run(tmp_path, patience=5.0, may_miss=True).begin()
    others = [k for k in range(3) if k != absent]
    for k in others:
        run.ask(k, round_(0))
    told = run.due(now=6.0)
    assert set(told) == set(others) and told[others[0]].present == tuple(others)
    run.killed()
    assert set(run.meet(round_(0, TopicKind.MEAN), *others)) == set(others)
    # It comes to the end of the round that it has missed, and waits for the end of the others' round.
    assert run.ask(absent, round_(0)) is None
    assert set(run.meet(round_(0, TopicKind.REPORT), *others)) == set(others)
    told = run.meet(round_(1), *others)
    assert set(told) == {0, 1, 2}
    assert told[absent].arrivals[absent].brought == Absent("missed round 0", None)
    assert told[absent].topic == round_(1)
    # Killed, it comes again from its old point, and is told the same.
    run.killed()
    assert run.ask(absent, round_(0), session="new") == told[absent]
    assert set(run.meet(round_(1, TopicKind.MEAN))) == {0, 1, 2}


@pytest.mark.parametrize("kind", [TopicKind.MEAN, TopicKind.REPORT])
def test_a_site_that_dies_in_mid_round_is_left_out_of_it(tmp_path, kind):
    run = Run(tmp_path, patience=5.0, may_miss=True).begin()
    run.meet(round_(0))
    if kind is TopicKind.REPORT:
        run.meet(round_(0, TopicKind.MEAN))
    run.ask(0, round_(0, kind))
    run.ask(2, round_(0, kind))
    assert set(run.due(now=6.0)) == {0, 2}
    # Its old process, slow but alive, cannot go on; a new one comes to the round's end again.
    assert isinstance(run.ask(1, round_(0, kind)), BeginAgain)
    assert run.ask(1, round_(0), session="new") is None
    told = run.meet(round_(1), 0, 2)
    assert told[1].topic == round_(1) and isinstance(told[1].arrivals[1].brought, Absent)


@pytest.mark.parametrize("waits", [True, False])
def test_who_comes_after_the_end_is_led_through_the_last_round(tmp_path, waits):
    run = Run(tmp_path, patience=5.0, may_miss=True).begin()
    for k in (0, 1):
        run.ask(k, round_(0))
    run.due(now=6.0)
    for topic in (round_(0, TopicKind.MEAN), round_(1), round_(1, TopicKind.MEAN)):
        run.meet(topic, 0, 1, content=topic.round)
    if waits:
        run.ask(2, round_(0), "late")
    run.meetings.finish()
    told = run.due()[2] if waits else run.ask(2, round_(0), "late")
    assert told.topic == round_(1) and told.present == (0, 1, 2)
    assert told.arrivals[2].brought == Absent("missed round 0", "late")
    assert run.ask(2, round_(1, TopicKind.MEAN)).arrivals[0].brought == Present(1)  # what the others had decided
    assert run.store.round_present(2, 1) == (0, 1, 2) and run.store.round_present(0, 1) == (0, 1)
    # Killed, it comes again from its old point; and to what the others never came, there is nothing to be said.
    run.killed()
    assert run.ask(2, round_(0), "late", session="new") == told
    assert run.ask(2, round_(1, TopicKind.REPORT), session="new").topic.kind is TopicKind.FINISHED


def test_a_full_disk_tells_nobody_anything(run, monkeypatch):
    run.begin()
    for k in range(3):
        run.ask(k, round_(0))
    with monkeypatch.context() as full:
        full.setattr(run.store, "conclude", lambda *_, **__: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError):
                run.due()
    assert run.store.told(0, round_(0)) is None
    assert set(run.due()) == {0, 1, 2}


@pytest.mark.exhaustive(sample=20)
@pytest.mark.parametrize("seed", range(2000))
def test_killed_at_any_moment_all_hear_the_same(tmp_path, seed):
    """Sites and coordinator are killed at random; every site hears, at every topic, what the others hear."""
    draw, run = random.Random(seed), Run(tmp_path)
    topics = [START, RUN_ID, *(Topic(kind, i) for i in range(3) for kind in (TopicKind.ROUND, TopicKind.MEAN))]
    at, starts, heard = [0, 0, 0], [0, 0, 0], [{}, {}, {}]
    content = {START: "same"}
    for _ in range(2000):
        if min(at) == len(topics):
            break
        k = draw.randrange(3)
        match draw.randrange(12):
            case 0:
                run.killed()
            case 1:  # it goes on from an older point
                run.meetings.withdraw(k, f"{k}.{starts[k]}")
                starts[k] += 1
                at[k] = draw.randrange(at[k] + 1)
            case _:
                if at[k] < len(topics):
                    topic = topics[at[k]]
                    brought = content.get(topic, f"{k} at {topic}")
                    answer = run.ask(k, topic, brought, session=f"{k}.{starts[k]}")
                    told = run.due() | ({} if answer is None else {k: answer})
                    for site, outcome in told.items():
                        if (
                            isinstance(outcome, Outcome)
                            and at[site] < len(topics)
                            and topics[at[site]] == outcome.topic
                        ):
                            assert heard[site].setdefault(outcome.topic, outcome) == outcome
                            at[site] += 1
    assert min(at) == len(topics)
    assert heard[0] == heard[1] == heard[2]
