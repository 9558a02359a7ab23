"""Masks change no bit of a mean; and a recorder of all that is sent finds no site's vector in it."""

import random
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from secure_means import Models, taken

from colearn_hpc.algorithm import slices
from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.mpi import pipeline


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 32)


SITES = [3, 5, 16]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("sites", SITES)
def test_secure_is_plain_to_the_bit_in_any_order(sites, bits):
    models = Models.made_up(sites, size=1500)
    plain, _, _ = taken(models, secure=False, bits=bits)
    shuffled = random.Random(sites)
    for secure in (False, True):
        means, _, _ = taken(models, secure, bits, order=lambda _: shuffled.sample(range(sites), sites))
        assert all(torch.equal(mean, plain[0]) for mean in means)
    exact = weighted_mean(models.rows, [1.0] * sites)
    assert float((plain[0] - exact).abs().max()) < 1e-6


def test_masks_cost_no_bytes():
    models = Models.made_up(5, size=1500)
    sizes = [sum(len(content) for *_, content in taken(models, secure)[2].log) for secure in (False, True)]
    assert sizes[0] == sizes[1] == 2 * 4 * 1500 * 4  # 2 (K - 1) float32 of the vector, over all sites


# --- the recorder -------------------------------------------------------------------------------------


@cache
def recorded(secure):
    """(models, whole numbers, rows that were sent as bytes, one site's rows as numbers by place)."""
    models = Models.made_up(5, size=40_000, seed=7)
    slices.SLICE = 512
    _, numbers, wire = taken(models, secure)
    rows = b"".join(content for _, _, tag, content in wire.log if tag == pipeline._TO_OWNER)
    return models, numbers, rows


def windows(vector, length=8):
    """Eight bytes at a time, and where they begin: two numbers that lie side by side."""
    content = vector.numpy().tobytes()
    return {content[start : start + length] for start in range(0, len(content) - length, length)}


@pytest.mark.parametrize("secure", [False, True])
def test_an_exact_search_finds_whole_numbers_only_without_masks(secure):
    models, numbers, rows = recorded(secure)
    sent = {rows[start : start + 8] for start in range(0, len(rows) - 8, 4)}
    for own, row in zip(numbers, models.rows, strict=True):
        found = len(windows(own) & sent)
        assert found > 10_000 if not secure else found == 0
        # Weights and steps never travel, not even without masks.
        assert not windows(row) & sent and not windows(row - models.previous) & sent


@pytest.mark.parametrize("secure", [False, True])
def test_every_value_of_a_byte_is_as_frequent_only_with_masks(secure):
    _, _, rows = recorded(secure)
    p = chisquare(np.bincount(np.frombuffer(rows, np.uint8), minlength=256)).pvalue
    assert p > 1e-9 if secure else p < 1e-100


@pytest.mark.parametrize("secure", [False, True])
def test_what_is_sent_correlates_with_the_site_only_without_masks(secure):
    """Also its size: a step's norm is not in it."""
    models = Models.made_up(3, size=30_000, seed=9)
    for scale in (1.0, 3.0):
        models.rows[0] = models.previous + scale * (models.rows[0] - models.previous)
        _, numbers, wire = taken(models, secure)
        sent = [np.frombuffer(c, np.int32) for k, to, tag, c in wire.log if (k, to, tag) == (0, 1, pipeline._TO_OWNER)]
        sent = np.concatenate(sent).astype(np.float64)
        # Of each chunk of three slices site 0 sends the middle one to site 1.
        places, start = [], 0
        for first, last in ((0, models.parameters), (models.parameters, 30_000)):
            for start in range(first, last, 96):
                length = min(96, last - start)
                low, high = start - (-length // 3), start - (-length * 2 // 3)
                places += range(low, high)
        own = numbers[0].numpy()[places].astype(np.float64)
        assert len(own) == len(sent)
        correlation = abs(np.corrcoef(own, sent)[0, 1])
        size = np.sqrt(np.mean(sent**2)) / (2**32 / np.sqrt(12))
        if secure:
            assert correlation < 6 / np.sqrt(len(own)) and abs(size - 1) < 0.03
        else:
            assert correlation > 0.99 and size < 0.1
