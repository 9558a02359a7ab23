"""A site leaves a run for good, and another joins it, between rounds: at the coordinator, without a wire."""

import random
from dataclasses import replace

import pytest
from certificates import Consortium

from colearn_hpc.errors import FederationError
from colearn_hpc.federation.agreement import Member
from colearn_hpc.federation.coordinator.meetings import BeginAgain, Meetings, Refused
from colearn_hpc.federation.coordinator.store import Store, joining
from colearn_hpc.protocol.messages import Arrival, Present, Topic, TopicKind

START, RUN_ID = Topic(TopicKind.START), Topic(TopicKind.RUN_ID)
KINDS = (TopicKind.ROUND, TopicKind.MEAN, TopicKind.REPORT)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """lyon, kiel, oslo."""
    return Consortium(tmp_path_factory.mktemp("consortium")).federation


def without(federation, *names):
    """The same, after some have left."""
    sites = [replace(one, may=(), left=True) if one.name in names else one for one in federation.sites]
    return replace(federation, sites=tuple(sites))


def plus(federation, name):
    """The same, with one more at the end."""
    number = len(federation.sites)
    return replace(federation, sites=(*federation.sites, Member(name, f"sha256:{number:064x}")))


class Run:
    """A run's meetings; ``killed`` gives it a new coordinator with the same disk, perhaps another federation.yaml."""

    def __init__(self, folder, federation, patience=None, may_miss=False):
        self.folder, self.federation, self.settings = folder, federation, (patience, may_miss)
        self.store = None
        self.killed()

    def killed(self, federation=None):
        if self.store is not None:
            self.store.close()
        self.federation = federation or self.federation
        self.store = Store(self.folder / "state", "gut", self.federation.digest())
        said = self.store.adopt(self.federation)
        self.meetings = Meetings(self.federation.names, self.store, *self.settings)
        return said

    def ask(self, site, topic, content="same", session="", now=0.0):
        return self.meetings.ask(site, Arrival(topic, Present(content)), session or f"session {site}", now)

    def due(self, now=0.0):
        return {site: answer for site, (_, answer) in self.meetings.due(now).items()}

    def meet(self, topic, *sites, now=0.0):
        for k in sites:
            assert self.ask(k, topic, now=now) is None, topic
        return self.due(now)

    def begin(self, *sites):
        self.meet(START, *sites)
        return self.meet(RUN_ID, *sites)

    def round(self, i, *sites, until=TopicKind.REPORT):
        for kind in KINDS[: KINDS.index(until) + 1]:
            told = self.meet(Topic(kind, i), *sites)
            assert set(told) == set(sites), told
        return told


@pytest.fixture
def run(tmp_path, first):
    run = Run(tmp_path, first)
    run.begin(0, 1, 2)
    for i in range(3):
        run.round(i, 0, 1, 2)
    return run


def test_one_leaves_and_is_never_waited_for_again(run, first):
    said = run.killed(without(first, "oslo"))
    assert said == "left for good: oslo; in force from round 3 on, when all have confirmed it"
    assert set(run.meet(START, 0, 1)) == {0, 1}
    assert set(run.meet(RUN_ID, 0, 1)) == {0, 1}
    assert run.meetings.run_id == "same"
    told = run.round(3, 0, 1)
    assert told[0].present == (0, 1) and len(told[0].arrivals) == 3
    assert run.killed() == ""  # the same file
    assert run.round(4, 0, 1)[0].present == (0, 1)


def test_who_has_no_resume_point_learns_the_runs_id(run, first):
    run.killed(plus(without(first, "oslo"), "rome"))
    run.meet(START, 0, 1, 3)
    for k, said in ((0, "another"), (1, "same"), (3, "")):
        assert run.ask(k, RUN_ID, said) is None
    told = run.due()[3]
    assert {one.brought.content for one in told.arrivals if one is not None} == {"same"} == {run.meetings.run_id}


def test_all_confirm_that_one_joins(run, first):
    assert "joins: rome; in force from round 3 on" in run.killed(plus(first, "rome"))
    assert run.meet(START, 0, 1, 3) == {} and run.meetings.awaited == {2}
    assert run.ask(2, START) is None and set(run.due()) == {0, 1, 2, 3}


def test_leaving_and_joining_at_once(run, first):
    run.killed(plus(without(first, "oslo"), "rome"))
    assert set(run.begin(0, 1, 3)) == {0, 1, 3}
    assert run.ask(3, joining(3)) is None and run.due() == {}
    # What they were told before, they are told again; rome was not there.
    assert run.ask(0, Topic(TopicKind.REPORT, 2), session="new").present == (0, 1, 2)
    told = run.meet(joining(3), 0, 1)
    assert set(told) == {0, 1, 3} and told[3].present == (0, 1, 3)
    run.killed()
    assert run.ask(3, joining(3), session="killed") == told[3]
    assert run.round(3, 0, 1, 3)[3].present == (0, 1, 3)


@pytest.mark.parametrize("until", [TopicKind.ROUND, TopicKind.MEAN])
def test_a_round_whose_end_has_begun_is_ended_without_who_has_left(tmp_path, first, until):
    run = Run(tmp_path, first)
    run.begin(0, 1, 2)
    run.round(0, 0, 1, 2, until=until)
    run.killed(plus(without(first, "oslo"), "rome"))
    assert run.store.standing.from_round == 1
    run.begin(0, 1, 3)
    assert run.ask(3, joining(1)) is None
    rest = KINDS[KINDS.index(until) + 1 :]
    for kind in rest:
        told = run.meet(Topic(kind, 0), 0, 1)
        assert set(told) == {0, 1} and told[0].present == (0, 1), kind
    assert set(run.meet(joining(1), 0, 1)) == {0, 1, 3}


def test_who_was_left_out_confirms_too_and_comes_back(tmp_path, first):
    run = Run(tmp_path, first, patience=5.0, may_miss=True)
    run.begin(0, 1, 2)
    run.round(0, 0, 1, 2)
    for k in (0, 1):
        run.ask(k, Topic(TopicKind.ROUND, 1))
    assert set(run.due(now=6.0)) == {0, 1}
    run.killed(plus(first, "rome"))
    assert run.meet(START, 0, 1, 3) == {} and run.meetings.awaited == {2}
    assert run.ask(2, START) is None and set(run.due()) == {0, 1, 2, 3}
    assert set(run.meet(RUN_ID, 0, 1, 2, 3)) == {0, 1, 2, 3}
    for kind in KINDS[1:]:
        run.meet(Topic(kind, 1), 0, 1)
    assert run.ask(2, Topic(TopicKind.ROUND, 1)) is None  # it waits for the end of the others' round
    run.ask(3, joining(2))
    assert set(run.meet(joining(2), 0, 1)) == {0, 1, 3}
    told = run.meet(Topic(TopicKind.ROUND, 2), 0, 1, 3)
    assert set(told) == {0, 1, 2, 3} and told[2].arrivals[2].brought.why == "missed round 1"


def test_before_all_have_confirmed_it_may_be_corrected(run, first):
    """Somebody has other settings than the others; the newcomer never comes, and is taken off again."""
    run.killed(plus(without(first, "oslo"), "rome"))
    for k, content in ((0, "a"), (1, "a"), (3, "b")):
        run.ask(k, START, content)
    assert set(run.due()) == {0, 1, 3}
    assert run.ask(3, START, "a", session="corrected") is None
    gone = without(plus(without(first, "oslo"), "rome"), "rome")
    assert "left for good: rome" in run.killed(gone)
    assert set(run.begin(0, 1)) == {0, 1}
    assert run.round(3, 0, 1)[0].present == (0, 1)
    assert isinstance(run.ask(0, START, "other", session="later"), Refused)  # from here on it is settled


def test_what_cannot_be_this_runs_roster(run, first):
    for other, why in (
        (replace(first, sites=first.sites[1:]), "keeps its place"),
        (replace(first, sites=tuple(reversed(first.sites))), "keeps its place"),
        (without(first, "lyon", "kiel", "oslo"), "nobody could go on"),
        (plus(without(first, "lyon", "kiel", "oslo"), "rome"), "nobody could go on"),
    ):
        with pytest.raises(FederationError, match=why):
            run.store.after(other)
    run.killed(without(first, "oslo"))
    with pytest.raises(FederationError, match="oslo has left for good; invite it by another name"):
        run.store.after(first)
    run.meetings.finish()
    with pytest.raises(FederationError, match="rome cannot join: the run's last round is done"):
        run.store.after(plus(without(first, "oslo"), "rome"))


def test_before_the_run_has_begun_it_may_be_any(tmp_path, first):
    run = Run(tmp_path, first)
    run.meet(START, 0, 1, 2)
    run.killed(replace(first, sites=tuple(reversed(first.sites))))
    assert run.store.standing.from_round == 0 and not run.store.standing.newcomers
    assert set(run.begin(0, 1, 2)) == {0, 1, 2}


class Site:
    """A site's process after process, as far as it comes to meetings; its resume points are written late."""

    def __init__(self, index, draw):
        self.index, self.draw = index, draw
        self.point, self.starts, self.heard = None, 0, {}
        self.script, self.at, self.digest = [], 0, ""

    def start(self, run):
        self.starts += 1
        self.digest, now = run.federation.digest(), run.store.standing
        joined = now.joined.get(self.index)
        begins = self.point if self.point is not None else 0 if joined is None else joined
        joins = {now.from_round} if now.from_round in now.joined.values() else set()
        joins |= {joined} if self.point is None and joined is not None else set()
        self.script = [START, RUN_ID]
        for i in range(begins, LAST + 1):
            self.script += [joining(i)] if i in joins else []
            self.script += [Topic(kind, i) for kind in KINDS] if i < LAST else []
        self.at = 0

    def hears(self, outcome):
        topic = self.script[self.at]
        assert outcome.topic == topic
        came = tuple(one for one in outcome.arrivals if one is not None)  # sites that joined since were not there
        assert self.heard.setdefault((self.digest if topic.round is None else "", topic), came) == came
        self.at += 1
        if topic.kind in (TopicKind.REPORT, TopicKind.JOINING) and self.draw.random() < 0.7:
            self.point = topic.round + 1 if topic.round is not None else int(topic.detail.split()[1])

    @property
    def done(self):
        return bool(self.script) and self.at == len(self.script)


LAST = 4  # rounds


@pytest.mark.exhaustive(sample=20)
@pytest.mark.parametrize("seed", range(3000))
def test_killed_at_any_moment_around_changes(tmp_path, first, seed):
    """Sites and coordinator are killed at random, and the roster changes twice at random moments. Each round is of one
    roster; all who take part hear the same of it; who has left is not waited for; nobody is kept waiting."""
    draw = random.Random(seed)
    second = plus(without(first, "oslo"), "rome")
    third = draw.choice([plus(second, "bern"), plus(without(second, "rome"), "bern"), without(second, "lyon")])
    rosters = [first, second, third]
    changes = sorted(draw.randrange(1, 60) for _ in range(2))
    run, sites = Run(tmp_path, first), {k: Site(k, draw) for k in range(5)}
    for step in range(4000):
        if len(rosters) > 1 and step >= changes[3 - len(rosters)] and run.meetings.run_id:
            rosters.pop(0)
            run.killed(rosters[0])
            for site in sites.values():
                site.script = []  # asked to stop
        active = run.federation.active
        if len(rosters) == 1 and all(sites[k].done for k in active):
            break
        k = draw.choice(active)
        site = sites[k]
        match draw.randrange(14):
            case 0:
                run.killed()
            case 1:
                run.meetings.withdraw(k, f"{k}.{site.starts}")
                site.start(run)
            case _ if not site.script:
                site.start(run)
            case _ if not site.done:
                topic = site.script[site.at]
                content = {START: site.digest}.get(topic, f"{k} at {topic}")
                answer = run.ask(k, topic, content, session=f"{k}.{site.starts}")
                for other, told in (run.due() | ({} if answer is None else {k: answer})).items():
                    if isinstance(told, BeginAgain):
                        sites[other].start(run)
                    elif not sites[other].done and sites[other].script[sites[other].at] == told.topic:
                        sites[other].hears(told)
    else:
        raise AssertionError({k: (s.script[s.at :][:1], s.point) for k, s in sites.items()})
    heard = {}
    for site in sites.values():
        for key, came in site.heard.items():
            assert heard.setdefault(key, came) == came
    rounds = [heard["", Topic(TopicKind.ROUND, i)] for i in range(LAST)]
    who = [tuple(int(one.brought.content.split()[0]) for one in arrivals) for arrivals in rounds]
    allowed = [(0, 1, 2), second.active, third.active]
    places = [allowed.index(one) for one in who]
    assert places == sorted(places), who
