"""The conversation over a site and meetings that are told what to answer."""

import math

import pytest
import torch

from colearn_hpc.errors import (
    ABORT_CODE,
    CenterBrokenError,
    ConfigurationError,
    FingerprintError,
    Interrupted,
    LeftOut,
    PeerError,
    RoundTimeoutError,
)
from colearn_hpc.protocol import conversation as conversation_module
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.conversation import Conversation, is_after_the_end, is_everywhere
from colearn_hpc.protocol.meeting import FINISHED
from colearn_hpc.protocol.messages import (
    Absent,
    Arrival,
    Failed,
    Outcome,
    Present,
    Stopping,
    Topic,
    TopicKind,
    describe_elsewhere,
    describe_error,
)

NAMES = ("dc0", "dc1", "dc2")
MORE_IN_DC0 = "more in dc0's own output and log; share_tracebacks: true tells all"
ROUND, START = Topic(TopicKind.ROUND, 3), Topic(TopicKind.START)


class FakeSite:
    """One rank of a data center; ``others`` bring what they are told to bring, and ``told`` is what the leader says."""

    def __init__(self, name="dc0", rank=0, others=(), told=None):
        self.name, self.host, self.rank, self.size = name, "host0", rank, 1 + len(others)
        self.broken, self.others, self.told = "", list(others), told
        self.meanwhile = None
        self.words, self.sent = [], []
        self.regroups = lambda content: [content, *self.others]

    def gather(self, content):
        return None if self.rank else [content, *self.others]

    def bcast(self, content):
        return self.told if self.rank else content

    def largest(self, *numbers):
        return list(numbers)

    def call_leader(self, text):
        self.sent.append(text)

    def calls(self):
        words, self.words = self.words, []
        return words

    def break_(self, why):
        self.broken = why

    def regroup(self, content, patience=None):
        return self.regroups(content)


class GivenUp(BaseException):
    """What stands for the end of the process."""


class FakeMeetings:
    """The other data centers: they bring what they are told to bring, to the topic that this one comes to."""

    def __init__(self, others=(), index=0):
        self.index, self.names = index, NAMES[: 1 + len(others)]
        self.others, self.replays, self.meanwhile, self.stop_asked = list(others), False, None, ""
        self.separate, self.may_preside, self.roster, self.from_round = False, None, tuple(range(len(self.names))), None
        self.somebody_joins, self.joined = False, None
        self.came, self.said, self.asked, self.code = [], [], [], None
        self.silent, self.fails = [], None

    def meet(self, topic, brought, patience, may_miss):
        self.came.append((topic, brought, patience, may_miss))
        if self.fails is not None:
            raise self.fails
        arrivals = [one if isinstance(one, Arrival | None) else Arrival(topic, one) for one in self.others]
        arrivals.insert(self.index, Arrival(topic, brought))
        return Outcome(topic, tuple(arrivals))

    def tell(self, text, now=False):
        self.said.append(text())

    def listen(self):
        pass

    def ask_to_stop(self, reason):
        self.asked.append(reason)

    def finish(self, patience):
        return self.silent

    def give_up(self, code):
        self.code = code
        raise GivenUp


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    monkeypatch.setattr(conversation_module.time, "sleep", lambda seconds: None)


def talk(*others, site=None, index=0, **settings):
    return Conversation(site or FakeSite(), FakeMeetings(others, index), **settings)


# --- meetings ---------------------------------------------------------------------------------------------


def test_each_learns_what_every_other_brings():
    said = talk(Present("one"), Present("two"), patience=5.0)
    found = said.meet(START, "zero")
    assert found.contents == {0: "zero", 1: "one", 2: "two"} and found.present == (0, 1, 2)
    assert said.between.came == [(START, Present("zero"), 5.0, False)]
    assert not said.waiting and said.can_begin_again


def test_a_rank_that_does_not_lead_is_told():
    outcome = Outcome(START, (Arrival(START, Present("zero")),))
    said = talk(site=FakeSite(rank=1, told=outcome))
    assert said.meet(START, "one").contents == {0: "zero"} and said.between.came == []


def test_only_at_a_rounds_end_somebody_may_be_missed():
    said = talk(None, Absent("missed round 2", "two"), may_miss=True)
    found = said.arrive(3, "zero")
    assert found.brought == (Present("zero"), Absent("did not arrive in time"), Absent("missed round 2", "two"))
    assert found.contents == {0: "zero"} and found.present == (0, 2)
    said.meet(START)
    assert [(topic, may_miss) for topic, *_, may_miss in said.between.came] == [(ROUND, True), (START, False)]


def test_from_arrival_to_the_mean_the_others_count_on_it():
    said = talk(Present())
    said.arrive(3, None)
    assert not said.can_begin_again
    said.settled()
    assert said.can_begin_again


def test_who_only_listens_says_why():
    said = talk(Present("one"))
    assert said.arrive(3, "zero", absent="out of luck").brought[0] == Absent("out of luck", "zero")


# --- what becomes of it -----------------------------------------------------------------------------------


def test_a_failure_ends_all_with_one_message():
    said = talk(Failed("KeyError: 'x'"), Present())
    with pytest.raises(PeerError, match=r"^data center dc1: KeyError: 'x'$"):
        said.meet(START)
    assert said.verdict == "data center dc1: KeyError: 'x'"


def test_each_failure_is_told_once_with_those_that_have_it():
    said = talk(Failed("disk full"), Failed("disk full"), index=1)
    with pytest.raises(PeerError, match=r"^data centers dc0, dc2: disk full$"):
        said.meet(START)
    said = talk(Failed("disk full"), Failed("no memory"))
    with pytest.raises(PeerError, match=r"^data center dc1: disk full\ndata center dc2: no memory$"):
        said.meet(START)


def test_a_failure_of_all_names_nobody():
    said = talk(Failed("no data"), site=FakeSite(others=[(START, Failed("no data"))]))
    with pytest.raises(PeerError, match=r"^no data$"):
        said.meet(START)


def test_a_failure_wins_over_a_stop():
    with pytest.raises(PeerError, match="KeyError"):
        talk(Stopping("SIGTERM"), Failed("KeyError")).meet(START)


def test_a_stop_wins_over_different_topics():
    others = Arrival(START, Stopping("a signal")), Arrival(START, Stopping("SIGTERM at data center dc2 (host2)"))
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM at data center dc2 \(host2\)"):
        talk(*others).meet(ROUND)


def test_different_topics_are_named():
    with pytest.raises(
        PeerError, match=r"different points of the run \(dc0: round 3, dc1: start\); please report this"
    ):
        talk(Arrival(START, Present())).meet(ROUND)


def test_who_comes_after_the_end_was_left_out():
    said = talk(Present(), site=FakeSite(rank=1, told=Outcome(FINISHED, (None, None))))
    with pytest.raises(LeftOut, match=r"have finished the run without this one"):
        said.meet(ROUND)


# --- inside a data center ---------------------------------------------------------------------------------


def brought(mine, *others):
    """What the leader takes to the meeting."""
    said = Conversation(FakeSite(others=others), meetings := FakeMeetings())
    with pytest.raises((PeerError, Interrupted)):
        said._meet(*mine, patience=None)
    return meetings.came[0][:2]


def test_a_rank_that_failed_speaks_for_its_data_center():
    failed = (Topic(TopicKind.FAILURE), Failed("KeyError"))
    assert brought((START, Present()), failed, failed) == failed
    other = (Topic(TopicKind.FAILURE), Failed("disk full"))
    assert brought(failed, other, (START, Stopping("a signal")))[1] == Failed("KeyError\ndisk full")


def test_the_most_telling_reason_to_stop():
    found = brought((START, Stopping("a signal")), (ROUND, Stopping("SIGTERM at data center dc0 (host0)")))
    assert found == (Topic(TopicKind.STOP), Stopping("SIGTERM at data center dc0 (host0)"))


def test_ranks_at_different_topics():
    topic, found = brought((START, Present()), (ROUND, Present()))
    assert topic.kind is TopicKind.FAILURE and "(rank 0: start, rank 1: round 3)" in found.text


# --- decisions --------------------------------------------------------------------------------------------


def test_the_presiding_leader_alone_decides():
    asked = []

    def decision():
        asked.append(1)
        return "decided"

    assert talk(Present()).decide(START, decision) == "decided" and asked == [1]
    assert talk(Present("theirs"), index=1).decide(START, decision) == "theirs"
    other_rank = FakeSite(rank=1, told=Outcome(START, (Arrival(START, Present("told")),)))
    assert talk(site=other_rank).decide(START, decision) == "told" and asked == [1]


@pytest.mark.parametrize(
    ("others", "may", "decided"),
    [
        ([Present("first"), Present("last")], None, "first"),
        ([Present("first"), Present("last")], frozenset({1, 2}), "mine"),
        ([None, Present("last")], None, "mine"),
        ([None, Present("last")], frozenset({0, 2}), "last"),
        ([None, Present("last")], frozenset({0}), "mine"),
    ],
    ids=["the first", "the first that may", "the first is left out", "one that may", "nobody who may is there"],
)
def test_separate_data_centers_each_bring_what_they_would_decide(others, may, decided):
    said = talk(*others, index=1)
    said.between.separate, said.between.may_preside = True, may
    assert said.presides and said.decide(START, lambda: "mine") == decided
    assert said.between.came[0][1] == Present("mine")


def test_a_separate_data_center_that_failed_in_a_meeting_ends_by_itself():
    """Its others do not wait for it there, so it need not end them."""
    said = talk(Present(), site=FakeSite(others=[]))
    said.between.separate, said.between.fails = True, ValueError("the coordinator refuses")
    with pytest.raises(ValueError, match="refuses") as error:
        said.meet(START)
    assert said.waiting
    said.between.fails = None
    said.fail(error.value, "the coordinator refuses")
    assert said.between.came[-1][1] == Failed("the coordinator refuses") and error.value.everywhere


def test_what_is_told_from_memory_is_not_decided_again():
    said = talk(Present())
    said.between.replays = True
    said.decide(START, lambda: pytest.fail("asked again"))
    assert said.between.came[0][1] == Present(None)


# --- stops and progress -----------------------------------------------------------------------------------


def test_a_stop_leaves_the_run():
    said = talk(Present())
    said.stops.reason = "SIGUSR1 at data center dc0 (host0)"
    with pytest.raises(Interrupted, match="SIGUSR1 at data center dc0"):
        said.stop()
    assert said.between.came == [(Topic(TopicKind.STOP), Stopping(said.stops.reason), None, False)]


def test_a_signal_is_passed_on_once():
    said = talk(Present())
    said.stops.signal = lambda: "SIGTERM"
    assert said.stops.poll() == said.stops.poll() == "SIGTERM at data center dc0 (host0)"
    assert said.between.asked == ["SIGTERM at data center dc0 (host0)"] and said.stops.agreed()


def test_a_rank_tells_its_leader_and_the_leader_the_others():
    rank = talk(site=FakeSite(rank=1))
    rank.stops.signal = lambda: "SIGTERM"
    rank.stops.poll()
    assert rank.site.sent == ["SIGTERM at data center dc0 (host0)"] and rank.between.asked == []
    leader = talk()
    leader.site.words = list(rank.site.sent)
    assert leader.stops.poll() == leader.between.asked[0] == rank.site.sent[0]


def test_progress_is_told_by_leaders():
    calls = []
    said = talk(Present(), meanwhile=lambda: calls.append(1))
    said.progress(lambda: "round 3", now=True)
    assert said.between.said == ["round 3"] and calls == [1]
    rank = talk(site=FakeSite(rank=1))
    rank.progress(lambda: pytest.fail("no leader"), now=True)


def test_between_two_looks_only_time_passes():
    calls = []
    said = talk(Present(), meanwhile=lambda: calls.append(1))
    said.next_look = math.inf
    said.progress(lambda: pytest.fail("too early"))
    assert calls == [1]


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("x"), ConfigurationError("rounds must be positive")])
def test_a_failure_is_told_and_marked(error):
    said = talk(Present(), site=FakeSite(others=["a rank noticed"]))
    said.site.regroups = lambda content: [("", ""), content]
    said.site.gather = lambda content: [content]
    said.fail(error)
    assert is_everywhere(error) and error.everywhere
    (topic, failed, patience, may_miss), *others = said.between.came
    assert topic.kind is TopicKind.FAILURE and (patience, may_miss) == (pacing.GRACE, False) and not others
    ours = isinstance(error, ConfigurationError)
    assert failed.text == (describe_error(error) if ours else f"KeyError ({MORE_IN_DC0})")
    assert str(error) in said.site.broken  # inside the data center all of it is told


def test_the_cause_is_told_and_not_what_noticed_it():
    said = talk(Present(), site=FakeSite())
    said.site.regroups = lambda content: [content, ("KeyError: 'x'", "KeyError at a.py:3")]
    said.fail(CenterBrokenError("another rank failed"))
    assert said.between.came[0][1] == Failed(f"KeyError at a.py:3 ({MORE_IN_DC0})")


def test_what_an_exception_says_is_told_where_that_is_wanted():
    for said in (talk(Present(), share_tracebacks=True), Conversation(FakeSite(), FakeMeetings())):
        assert said.told("KeyError: 'x'", "KeyError at a.py:3") == "KeyError: 'x'"


def row():
    raise KeyError("patient 4711")


def test_other_organisations_hear_class_file_and_line():
    with pytest.raises(KeyError) as found:
        row()
    line = row.__code__.co_firstlineno + 1
    assert describe_elsewhere(found.value) == f"KeyError at test_conversation.py:{line}"
    assert "patient 4711" in describe_error(found.value)
    with pytest.raises(RuntimeError) as found:  # the user's line, not the library's
        torch.ones(2).reshape(3)
    assert describe_elsewhere(found.value).startswith("RuntimeError at test_conversation.py:")
    ours = ConfigurationError("rounds=0")
    assert describe_elsewhere(ours) == f"rounds=0 ({ours.more})"


def test_what_all_ranks_raise_is_not_told():
    said = talk(Present())
    said.fail(FingerprintError("different").on_all_ranks())
    assert said.between.came == [] and said.site.broken == ""


def test_who_cannot_be_told_is_ended(capfd):
    said = talk(Present())
    said.between.fails = RoundTimeoutError("nobody came")
    error = KeyError("x")
    with pytest.raises(GivenUp):
        said.fail(error, "out of memory")
    assert said.between.code == ABORT_CODE == 86 and not is_everywhere(error)
    assert capfd.readouterr().err == "colearn-hpc: error: data center dc0 (host0): out of memory\n"


def test_after_a_timeout_there_is_no_meeting(capfd):
    said = talk(Present())
    with pytest.raises(GivenUp):
        said.fail(RoundTimeoutError("dc1 did not arrive"))
    assert said.between.came == [] and said.between.code == ABORT_CODE
    assert (
        capfd.readouterr().err
        == "colearn-hpc: error: data center dc0 (host0): dc1 did not arrive (more: colearn-hpc explain timeout)\n"
    )


def test_after_an_error_in_the_middle_of_a_meeting_there_is_no_other(capfd):
    """The chair would still wait at the first one."""
    said = talk(Present())
    said.between.fails = error = ConfigurationError("what is done meanwhile failed")
    with pytest.raises(ConfigurationError):
        said.meet(START)
    assert not said.can_begin_again
    with pytest.raises(GivenUp):
        said.fail(error)
    assert [topic for topic, *_ in said.between.came] == [START] and said.between.code == ABORT_CODE
    said = "data center dc0 (host0): what is done meanwhile failed (more: colearn-hpc explain configuration)"
    assert capfd.readouterr().err == f"colearn-hpc: error: {said}\n"


def test_regrouped_ranks_count_their_calls_anew():
    said = talk(site=FakeSite(others=["other"]))
    said.stops.due = True
    assert said.regroup("mine") == ["mine", "other"] and not said.stops.due


# --- the end ----------------------------------------------------------------------------------------------


def test_the_run_ends_without_who_is_silent(caplog):
    said = talk(Present())
    said.finish()
    assert said.between.code is None
    said.between.silent = ["dc1"]
    with pytest.raises(GivenUp):
        said.finish()
    assert said.between.code == 0 and "the run is finished without dc1, which is still silent" in caplog.text


@pytest.mark.parametrize(("site", "index"), [(FakeSite(rank=1), 0), (FakeSite(), 1)])
def test_only_the_presiding_leader_ends_the_silent(site, index):
    said = talk(Present(), site=site, index=index)
    said.between.silent = ["dc1"]
    said.finish()
    assert said.between.code is None


# --- before round 0 ---------------------------------------------------------------------------------------

FINGERPRINT = {"torch version": "2.13.0", "CoLearning(rounds)": "3", "CoLearning(decay)": "0.25"}


class Fingerprints(FakeMeetings):
    """Data centers with fingerprints of their own: first their digests, then all of it."""

    def __init__(self, *fingerprints):
        super().__init__(fingerprints)
        self.fingerprints, self.digests = fingerprints, []

    def meet(self, topic, brought, patience, may_miss):
        if topic.kind is not TopicKind.DIFFERENCE:
            digests = []
            for fingerprint in self.fingerprints:
                other = Conversation(FakeSite(), meetings := FakeMeetings())
                other.compare(topic, fingerprint)
                digests.append(meetings.came[0][1])
            self.others = digests
        else:
            self.others = [Present([f"{key} = {value}" for key, value in one.items()]) for one in self.fingerprints]
        return super().meet(topic, brought, patience, may_miss)


def test_equal_fingerprints_take_one_meeting():
    said = Conversation(FakeSite(), Fingerprints(FINGERPRINT, FINGERPRINT))
    said.compare(START, FINGERPRINT)
    assert [topic for topic, *_ in said.between.came] == [START]
    assert len(said.between.came[0][1].content) == 64  # not the fingerprint, which may be long


def test_the_first_difference_is_named():
    other = FINGERPRINT | {"CoLearning(rounds)": "4", "CoLearning(decay)": "0.5"}
    said = Conversation(FakeSite(), Fingerprints(FINGERPRINT, other))
    with pytest.raises(FingerprintError) as error:
        said.compare(START, FINGERPRINT)
    assert str(error.value) == (
        "the data centers do not run the same thing: dc0 has `CoLearning(rounds) = 3`, dc2 has `CoLearning(rounds) = "
        "4`; use the same code, configuration and package versions everywhere"
    )
    assert is_everywhere(error.value)
    assert said.between.came[1][0] == Topic(TopicKind.DIFFERENCE, detail="start")


def test_what_one_has_and_the_other_has_not():
    said = Conversation(FakeSite(), Fingerprints(FINGERPRINT | {"shuffle": "True"}))
    with pytest.raises(FingerprintError, match=r"dc0 has `\(nothing\)`, dc1 has `shuffle = True`"):
        said.compare(START, FINGERPRINT)


def test_ranks_of_a_data_center_that_differ():
    said = talk(Present(), site=FakeSite(others=["mine", "other"]))
    with pytest.raises(FingerprintError, match=r"^mine is not other\n") as error:
        said.agree("mine", lambda mine, other: f"{mine} is not {other}")
    assert not is_everywhere(error.value) and said.between.came == []
    talk(site=FakeSite(rank=1)).agree("theirs", lambda mine, other: pytest.fail("the leader compares"))


def test_an_error_in_the_handling_of_a_known_one_is_known_too():
    """Lightning calls user code for an error: a logger's ``finalize`` that fails there takes the first one's place."""

    def raised(**marks):
        try:
            try:
                first = ValueError("in training")
                for name, value in marks.items():
                    setattr(first, name, value)
                raise first
            except ValueError:
                raise KeyError("in finalize")  # noqa: B904
        except KeyError as error:
            return error

    assert is_everywhere(raised(everywhere=True)) and not is_after_the_end(raised(everywhere=True))
    assert is_after_the_end(raised(everywhere=True, after_the_end=True))
    assert not is_everywhere(raised()) and not is_after_the_end(raised())
