"""What overlap needs beside MPI: the correction, the settings, what can be told again."""

import pytest
import torch
from torch import nn

from colearn_hpc import CoLearning, OuterSGD
from colearn_hpc.algorithm.overlap import correct
from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.mpi.journal import Journal


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


REFUSED = [
    ({"combine": "predictions"}, 'overlap=True cannot be combined with combine="predictions"'),
    ({"optimizer_state": "average"}, 'overlap=True cannot be combined with optimizer_state="average"'),
    ({"on_failure": "continue_without"}, 'overlap=True cannot be combined with on_failure="continue_without"'),
    ({"outer_optimizer": OuterSGD()}, r"overlap=True cannot be combined with outer_optimizer=OuterSGD\("),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_it_cannot_be_combined_with(settings, message):
    CoLearning(**settings, exchange={"overlap": False})
    with pytest.raises(ConfigurationError, match=message):
        CoLearning(**settings, exchange={"overlap": True})


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_no_truth_value(value):
    with pytest.raises(ConfigurationError, match="exchange: overlap must be true or false"):
        CoLearning(exchange={"overlap": value})


def test_codecs_and_overlap_go_together():
    both = CoLearning(exchange={"codec": "int8", "overlap": True})
    assert (both.codec, both.overlaps) == ("int8", True) and not CoLearning().overlaps


def test_a_gap_in_the_journal_lasts_until_the_next_resume_point():
    journal = Journal()
    assert not journal.whole
    journal.kept = True
    assert journal.whole
    journal.gap = True
    assert not journal.whole
    journal.clear()
    assert journal.whole
