"""Mean AUC, mean average precision and d′ against scikit-learn and against hand-made values."""

import math

import pytest
import torch
from metric_rank import rank_scores
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import multiprocessing
from torchmetrics.classification import MultilabelAUROC, MultilabelAveragePrecision

from colearn_hpc.models.ranking import RankingMetrics, dprime


def values(probabilities, target, batch=4):
    metric = RankingMetrics(target.shape[1])
    for p, y in zip(probabilities.split(batch), target.split(batch), strict=True):
        metric.update(p, y)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, 5, generator=generator)
    # Rounded, so that there are ties.
    return (probabilities * 20).round() / 20, (torch.rand(50, 5, generator=generator) < 0.3).to(torch.int8)


def test_means_are_the_macro_averages_of_scikit_learn_and_torchmetrics(scores):
    p, y = scores
    got = values(p, y)
    assert got["auc"] == pytest.approx(roc_auc_score(y, p, average="macro"))
    assert got["map"] == pytest.approx(average_precision_score(y, p, average="macro"))
    assert got["auc"] == pytest.approx(MultilabelAUROC(5)(p, y.long()).item())
    assert got["map"] == pytest.approx(MultilabelAveragePrecision(5)(p, y.long()).item())


@pytest.mark.parametrize("constant", [0, 1])
def test_a_class_without_positives_or_negatives_is_left_out(scores, constant):
    p, y = scores
    y[:, 2] = constant
    others = [0, 1, 3, 4]
    got = values(p, y)
    assert got["auc"] == pytest.approx(roc_auc_score(y[:, others], p[:, others], average="macro"))
    assert got["map"] == pytest.approx(average_precision_score(y[:, others], p[:, others], average="macro"))
    # What the mask is for: the library's macro average is another number here.
    assert abs(MultilabelAUROC(5)(p, y.long()).item() - got["auc"]) > 0.01


def test_ignored_entries_count_for_nothing(scores):
    p, y = scores
    y[::3] = -1
    y[7, 2] = -1
    want = [roc_auc_score(y[y[:, c] >= 0, c], p[y[:, c] >= 0, c]) for c in range(5)]
    assert values(p, y)["auc"] == pytest.approx(sum(want) / 5)


def test_nothing_to_rank_is_nan():
    got = values(torch.rand(4, 2), torch.zeros(4, 2))
    assert all(math.isnan(value) for value in got.values())
    assert all(math.isnan(value) for value in values(torch.rand(4, 2), torch.full((4, 2), -1)).values())


@pytest.mark.parametrize(
    ("auc", "published"),
    # Tables of the AudioSet literature, whose d′ and AUC are both rounded to three digits.
    [(0.964, 2.536), (0.960, 2.471), (0.968, 2.612), (0.5, 0.0)],
)
def test_dprime_against_published_pairs(auc, published):
    assert dprime(torch.tensor(auc)).item() == pytest.approx(published, abs=0.02)


def test_dprime_of_a_perfect_ranking_is_finite():
    assert dprime(torch.tensor(1.0)).item() == pytest.approx(6.7225, abs=1e-3)
    assert dprime(torch.tensor(0.0)).item() == pytest.approx(-6.7225, abs=1e-3)


def test_reset_forgets(scores):
    p, y = scores
    metric = RankingMetrics(5)
    metric.update(1 - p, y)
    metric.reset()
    metric.update(p, y)
    assert metric.compute()["auc"].item() == pytest.approx(roc_auc_score(y, p, average="macro"))
    assert not metric.state_dict() and not list(metric.buffers())


def test_exact_over_ranks_of_which_one_has_nothing(tmp_path, scores):
    p, y = scores
    results = multiprocessing.get_context("spawn").SimpleQueue()
    shares = [(p, y), (p[:0], y[:0])]
    multiprocessing.spawn(rank_scores, args=(f"file://{tmp_path}/store", shares, results), nprocs=2)
    for _ in range(2):
        assert results.get() == pytest.approx(values(p, y))
