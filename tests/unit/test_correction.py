"""What overlap needs beside MPI: the correction, the settings, what can be replayed."""

import pytest
import torch
from torch import nn

from colearn_hpc import CoLearning
from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.coded_steps import Coded
from colearn_hpc.algorithm.encoding import Plain
from colearn_hpc.algorithm.overlap import correct
from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.algorithm.slice_sums import Squares
from colearn_hpc.between import MeanFacts, Offer, Vector
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.journal import Remembered
from colearn_hpc.protocol.meeting import ProtocolError
from colearn_hpc.protocol.messages import Arrival, Outcome, Present, Topic, TopicKind
from colearn_hpc.protocol.settings import codec_name


def test_the_correction():
    """w + (mean - sent) in the parameters, in several blocks; the module's own buffers, whatever the mean says."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(700, 400), nn.BatchNorm1d(400))
    model = FlatModel.of(net)
    sent, mean = torch.randn(model.size), torch.randn(model.size)
    now, p = model.pack(), model.parameter_size
    assert p > 1 << 18 and model.size > p
    expected = now[:p] + (mean[:p] - sent[:p])
    correct(model, sent, mean)
    assert torch.equal(sent[:p], expected) and torch.equal(sent[p:], now[p:])
    assert torch.equal(model.pack(), now), "the module itself is not touched"


def test_the_correction_of_a_model_that_was_not_trained_on():
    net = nn.Linear(5, 3)
    model = FlatModel.of(net)
    sent, mean = model.pack(), torch.randn(model.size)
    correct(model, sent, mean)
    torch.testing.assert_close(sent, mean)


@pytest.mark.parametrize("sizes", [(7, 8), (8, 7), (7, 7)])
def test_a_model_that_changed_meanwhile(sizes):
    model = FlatModel.of(nn.Linear(7, 1))
    with pytest.raises(ValueError, match=r"8 elements now, and \d were sent"):
        correct(model, torch.zeros(sizes[0]), torch.zeros(sizes[1]))


def test_half_precision_is_corrected_in_single():
    net = nn.Linear(3, 2).bfloat16()
    model = FlatModel.of(net)
    now, mean = model.pack(), torch.full((model.size,), 1e-3)
    sent = torch.zeros(model.size)
    correct(model, sent, mean)
    assert sent.dtype == torch.float32 and torch.equal(sent, now + mean)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_no_truth_value(value):
    with pytest.raises(ConfigurationError, match="exchange: overlap must be true or false"):
        CoLearning(exchange={"overlap": value})


def test_codecs_and_overlap_go_together():
    both = CoLearning(exchange={"codec": "int8", "overlap": True}).settings
    assert (codec_name(both), both.overlap) == ("int8", True) and not CoLearning().settings.overlap


# --- what can be replayed after a restart -------------------------------------------------------------

ROUND = Topic(TopicKind.ROUND, 1)
MEAN = Topic(TopicKind.MEAN, 1)


class Between:
    """Between this data center and one that brings the same; a mean is twice the vector. Counts what it is asked."""

    index, names, carries, tells, separate, may_preside = 0, ("dc0", "dc1"), True, False, False, None
    roster, from_round, somebody_joins, joined = (0, 1), None, False, None

    def __init__(self):
        self.asked, self.agreed = 0, {}

    def meet(self, topic, brought, patience, may_miss):
        self.asked += 1
        return Outcome(topic, (Arrival(topic, brought), Arrival(topic, Present(self.asked))))

    def begin_mean(self, offer, present):
        self.asked += 1
        return Doubled(offer, self.asked)


class Doubled:
    def __init__(self, offer, number):
        self.offer, self.number = offer, number

    def advance(self):
        pass

    def finish(self, idle=None):
        source, encoding = self.offer.source, self.offer.encoding
        torch.mul(source.read(0, source.size, self.offer.result), 2, out=self.offer.result)
        if isinstance(encoding, Coded):
            encoding.prepare(source.size)
            encoding.pending.fill_(self.number)
        return MeanFacts(self.number, Squares(), finite=True, distance=0.0)


@pytest.fixture
def journal():
    journal = Remembered(Between())
    journal.remembers = True
    return journal


def meet(journal, topic=ROUND, content=None):
    return journal.meet(topic, Present(content), None, False)


def offer(value, encoding=None):
    source = Vector(torch.full((3,), value))
    return Offer(source, torch.empty(3), [1.0, 1.0], 3, encoding=encoding or Plain())


def take(journal, offer):
    return journal.begin_mean(offer, (0, 1)).finish()


def test_a_gap_in_the_journal_lasts_until_the_next_resume_point(journal):
    assert not Remembered(Between()).complete, "nothing is written down"
    assert journal.complete
    under_way = journal.begin_mean(offer(1.0), (0, 1))
    journal.forget()  # a resume point with a mean under way
    assert journal.complete
    under_way.finish()
    assert not journal.complete, "the others have done with it, and who begins again would ask for it"
    journal.forget()
    assert journal.complete


def test_only_the_last_mean_can_be_told_again(journal):
    take(journal, offer(1.0))
    assert journal.complete
    journal.begin_mean(offer(2.0), (0, 1))
    assert not journal.complete, "its vector is the next one's memory"
    journal.forget()
    assert journal.complete


def test_what_was_heard_is_told_again_in_order(journal):
    """... as often as it takes, and the others are not asked."""
    heard = [meet(journal, content="a"), take(journal, offer(1.0)), meet(journal, MEAN)]
    for _ in range(2):
        journal.replay()
        assert journal.replays
        mine = offer(5.0)
        told = [meet(journal, content="b"), take(journal, mine), meet(journal, MEAN)]
        assert told == heard and mine.result.tolist() == [2.0] * 3
        assert not journal.replays
    assert journal._inner.asked == 3
    assert meet(journal).arrivals[1].brought.content == 4, "from here on it is asked"


def test_a_resume_point_makes_it_forget(journal):
    meet(journal)
    journal.forget()
    meet(journal, MEAN)
    journal.replay()
    assert meet(journal, MEAN).arrivals[1].brought.content == 2 and not journal.replays


def test_without_restarts_nothing_is_written_down():
    journal = Remembered(Between())
    meet(journal)
    take(journal, offer(1.0))
    journal.replay()
    assert not journal.replays


def test_a_failure_ends_the_telling(journal):
    meet(journal)
    journal.replay()
    journal.stop_replay()
    assert not journal.replays and meet(journal).arrivals[1].brought.content == 2


@pytest.mark.parametrize("ask", [lambda j: meet(j, MEAN), lambda j: take(j, offer(1.0))])
def test_who_comes_elsewhere_is_told_nothing(journal, ask):
    meet(journal)
    journal.replay()
    with pytest.raises(ProtocolError, match=r"this data center came to .* had come to `round 1` before"):
        ask(journal)


def test_error_feedback_is_told_again(journal):
    """What is pending when the mean comes is the residual after the commit: that is before the restart."""
    before, after = (Coded(codec_of("int8")) for _ in range(2))
    take(journal, offer(1.0, before))
    before.commit()
    assert before.residual.tolist() == [1.0] * 3
    journal.replay()
    take(journal, offer(1.0, after))
    after.commit()
    assert after.residual.tolist() == [1.0] * 3
