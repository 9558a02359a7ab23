"""What a data center has heard since its last resume point is replayed, and to nobody else."""

from collections import namedtuple

import pytest

from colearn_hpc.protocol.journal import Remembered
from colearn_hpc.protocol.meeting import ProtocolError
from colearn_hpc.protocol.messages import Arrival, Outcome, Present, Topic, TopicKind

ROUND, MEAN, REPORT = (Topic(kind, 1) for kind in (TopicKind.ROUND, TopicKind.MEAN, TopicKind.REPORT))
Facts = namedtuple("Facts", "change")


class Offer:
    """The memory in which a mean is put."""

    def __init__(self, follows=False):
        self.result, self.follows = None, follows

    def keep(self):
        return [self.result]

    def take_over(self, kept):
        self.result = kept[0]


class Inner:
    """The other data centers; counts how often they are asked."""

    index, names, carries, separate, may_preside = 1, ("dc0", "dc1"), True, False, None
    roster, from_round, somebody_joins, joined = (0, 1), None, False, None
    stop_asked = "SIGTERM"

    def __init__(self):
        self.asked, self.meanwhile = [], None

    def meet(self, topic, brought, patience, may_miss):
        self.asked.append(str(topic))
        return Outcome(topic, (Arrival(topic, Present(len(self.asked))), Arrival(topic, brought)))

    def begin_mean(self, offer, present):
        self.asked.append("a mean")
        return UnderWay(offer, len(self.asked))

    def __getattr__(self, name):
        return lambda *arguments: self.asked.append((name, *arguments))


class UnderWay:
    def __init__(self, offer, number):
        self.offer, self.number, self.advanced = offer, number, 0

    def advance(self):
        self.advanced += 1

    def finish(self, *how):
        self.offer.result = f"mean {self.number}"
        return Facts(self.number)


def remembered():
    journal = Remembered(Inner())
    journal.remembers = True
    return journal


def meet(journal, topic=ROUND):
    return journal.meet(topic, Present("mine"), 5.0, False)


def take_mean(journal):
    mean = journal.begin_mean(offer := Offer(), (0, 1))
    return mean.finish(), offer


def test_what_was_heard_is_told_again_in_order():
    journal = remembered()
    assert journal.complete and not journal.replays
    heard = [meet(journal), take_mean(journal)[0], meet(journal, MEAN)]
    journal.replay()
    inner, journal._inner.asked = list(journal._inner.asked), []
    assert inner == ["round 1", "a mean", "round 1: mean"] and journal.replays
    again = [meet(journal)]
    facts, offer = take_mean(journal)
    assert [*again, facts, meet(journal, MEAN)] == heard and offer.result == "mean 2"
    assert journal._inner.asked == [] and not journal.replays
    meet(journal, REPORT)
    assert journal._inner.asked == ["round 1: report"]


def test_it_is_told_again_as_often_as_it_fails():
    journal = remembered()
    heard = meet(journal), meet(journal, MEAN)
    for _ in range(2):
        journal.replay()
        assert meet(journal) == heard[0]
    journal.stop_replay()
    assert not journal.replays and journal.complete
    journal.replay()
    assert (meet(journal), meet(journal, MEAN)) == heard
    assert journal._inner.asked == ["round 1", "round 1: mean"]


@pytest.mark.parametrize("first", [meet, take_mean])
def test_another_order_is_refused(first):
    journal = remembered()
    first(journal)
    journal.replay()
    with pytest.raises(ProtocolError, match=r"came to `round 1: report` where it had come to `(round 1|a mean)`"):
        meet(journal, REPORT)
    journal.replay()
    if first is meet:
        with pytest.raises(ProtocolError, match="came to `a mean` where it had come to `round 1` before"):
            take_mean(journal)


def test_a_mean_told_again_needs_nothing_to_pass():
    journal = remembered()
    take_mean(journal)
    journal.replay()
    journal.begin_mean(Offer(), (0, 1)).advance()
    assert journal._inner.asked == ["a mean"]


def test_a_mean_under_way_passes_messages():
    mean = remembered().begin_mean(Offer(), (0, 1))
    mean.advance()
    assert mean._inner.advanced == 1


def test_one_mean_is_kept_and_not_copied():
    journal = remembered()
    _, offer = take_mean(journal)
    journal.replay()
    _, told = take_mean(journal)
    assert told.result is offer.result and journal.complete
    journal.begin_mean(Offer(), (0, 1))
    assert not journal.complete  # its memory serves the next mean


def test_several_means_of_a_round_are_kept():
    journal = remembered()
    offers = [take_mean(journal)[1]]
    journal.begin_mean(offer := Offer(follows=True), (0, 1)).finish()
    journal.replay()
    told = [take_mean(journal)[1] for _ in range(2)]
    assert journal.complete and [one.result for one in told] == [one.result for one in [*offers, offer]]


def test_a_resume_point_makes_it_complete_again():
    journal = remembered()
    take_mean(journal)
    take_mean(journal)
    assert not journal.complete
    journal.forget()
    assert journal.complete
    journal.replay()
    assert not journal.replays


def test_a_mean_is_told_where_it_was_begun():
    """With overlap there are meetings while it is under way; a full disk may have kept the resume point away."""
    journal = remembered()
    mean = journal.begin_mean(Offer(), (0, 1))
    meet(journal)
    assert not journal.complete  # it cannot be told yet
    facts = mean.finish()
    assert journal.complete
    journal.replay()
    told = journal.begin_mean(offer := Offer(), (0, 1))
    meet(journal)
    assert told.finish() == facts and offer.result == "mean 1" and not journal.replays


def test_a_mean_begun_before_the_last_resume_point():
    journal = remembered()
    mean = journal.begin_mean(Offer(), (0, 1))
    journal.forget()
    meet(journal)
    assert journal.complete  # nothing of it was heard yet
    mean.finish()
    assert not journal.complete  # the point asks for a mean that the others have done with
    journal.forget()
    assert journal.complete
    take_mean(journal)
    assert journal.complete


def test_until_a_restart_may_want_it_nothing_is_written_down():
    journal = Remembered(Inner())
    meet(journal)
    take_mean(journal)
    assert not journal.complete
    journal.replay()
    assert not journal.replays


def test_all_else_is_passed_on():
    journal, call = remembered(), lambda: None
    journal.meanwhile = call
    assert journal._inner.meanwhile is journal.meanwhile is call
    assert (journal.index, journal.names, journal.carries, journal.stop_asked) == (1, ("dc0", "dc1"), True, "SIGTERM")
    journal.broadcast([1])
    journal.tell("text", True)
    journal.listen()
    journal.ask_to_stop("why")
    journal.finish(5.0)
    with pytest.raises(RuntimeError, match="giving up ends the process"):
        journal.give_up(86)
    assert journal._inner.asked == [
        ("broadcast", [1]),
        ("tell", "text", True),
        ("listen",),
        ("ask_to_stop", "why"),
        ("finish", 5.0),
        ("give_up", 86),
    ]
