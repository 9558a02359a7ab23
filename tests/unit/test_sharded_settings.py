"""A model in shards refuses what it cannot be averaged with, and names what to use instead."""

from types import SimpleNamespace

import pytest

from colearn_hpc import CoLearning
from colearn_hpc.algorithm.kept_model import LatestMean
from colearn_hpc.algorithm.local_correction import FedProx
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer.sharded import check_settings


class FSDPStrategy:
    """Only its name is asked for."""


class WholeFiles:
    """A strategy that was told to write one file for all ranks."""

    _save_distributed_checkpoint = False


CASES = [
    ({"combine": "predictions"}, 'combine="predictions" cannot be combined with FSDPStrategy; use combine="weights"'),
    (
        {"exchange": {"overlap": True}},
        'exchange={"overlap": True} cannot be combined with FSDPStrategy; use a mean at the round\'s end',
    ),
    (
        {"optimizer_state": "average"},
        'optimizer_state="average" cannot be combined with FSDPStrategy; use "reset" or "keep"',
    ),
    (
        {"on_failure": "continue_without"},
        'on_failure="continue_without" cannot be combined with FSDPStrategy; use on_failure="stop"',
    ),
    (
        {"exchange": {"sums": "fixed32"}},
        'exchange={"sums": "fixed32"} cannot be combined with FSDPStrategy; use "float64"',
    ),
    ({"local_correction": FedProx()}, "local_correction cannot be combined with FSDPStrategy; use none"),
    ({"kept_model": LatestMean()}, "kept_model cannot be combined with FSDPStrategy; use none"),
    ({"local_layers": "batch_norm"}, "local_layers cannot be combined with FSDPStrategy; use none"),
    ({"exchange": {"fragments": 4}}, 'exchange={"fragments": 4} cannot be combined with FSDPStrategy; use none'),
    (
        {"exchange": {"lanes": 2}},
        'exchange={"lanes": 2} cannot be combined with FSDPStrategy; use no lanes: shards are lanes',
    ),
]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=lambda value: str(value)[:40])
def test_refused_with_shards(arguments, said):
    with pytest.raises(ConfigurationError) as error:
        check_settings(SimpleNamespace(strategy=FSDPStrategy()), CoLearning(**arguments).settings)
    assert str(error.value) == said


def test_one_file_for_all_ranks_is_refused():
    said = "save_distributed_checkpoint=False cannot be combined with WholeFiles"
    with pytest.raises(ConfigurationError, match=said):
        check_settings(SimpleNamespace(strategy=WholeFiles()), CoLearning().settings)


@pytest.mark.parametrize("arguments", [{}, {"exchange": {"lanes": 1}}, {"exchange": {"codec": "int8"}}], ids=str)
def test_what_goes_with_shards(arguments):
    check_settings(SimpleNamespace(strategy=FSDPStrategy()), CoLearning(**arguments).settings)
