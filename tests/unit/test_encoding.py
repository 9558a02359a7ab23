"""A new kind of encoding is a new object: the pipeline knows none of them."""

import ast
import math
from pathlib import Path

import in_memory
import pytest
import torch
from made_up import PARAMETERS, models, offer_of, whole

from colearn_hpc.algorithm import slices
from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.coded_steps import Coded
from colearn_hpc.algorithm.encoding import Plain, WholeNumbers
from colearn_hpc.algorithm.fixed_point import decode, decode_near_zero, encode, scales_for, steps_of
from colearn_hpc.algorithm.shared_model import FlatEntry, relative_change, weighted_mean
from colearn_hpc.mpi import pipeline


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 16)


KINDS = ["plain", "bf16", "int8", "fixed32", "fixed64"]


def offers_of(kind, previous, rows, weights):
    found = []
    for row in rows:
        if kind.startswith("fixed"):
            encoding, vector = whole(row, previous, len(rows), int(kind[5:]))
        else:
            encoding, vector = (Plain() if kind == "plain" else Coded(codec_of(kind))), row.clone()
        found.append(offer_of(encoding, vector, previous, weights))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centers", [2, 3, 5])
def test_all_get_the_same_mean(kind, centers):
    previous, rows = models(centers)
    offers = offers_of(kind, previous, rows, [1.0] * centers)
    in_memory.mean(offers, [1.0] * centers)
    exact = weighted_mean(rows, [1.0] * centers)
    assert all(torch.equal(offer.result, offers[0].result) for offer in offers)
    bound = {"plain": 0.0, "bf16": 3e-4, "int8": 5e-4, "fixed32": 1e-6, "fixed64": 3e-7}[kind]
    assert float((offers[0].result - exact).abs().max()) <= bound


@pytest.mark.parametrize("kind", ["plain", "fixed32"])
def test_every_center_learns_how_far_its_model_was(kind):
    """... with whole numbers by itself: no other one is told."""
    previous, rows = models(3)
    offers = offers_of(kind, previous, rows, [1.0] * 3)
    wire = in_memory.Wire()
    pipelines = []
    for rank, offer in enumerate(offers):
        pipelines.append(pipeline.Pipeline(in_memory.Leaders(3, rank, wire), offer, [1.0] * 3))
    for _ in range(1000):
        done = [made.advance() for made in pipelines]
        if all(done):
            break
    mean = offers[0].result[:PARAMETERS]
    for k, made in enumerate(pipelines):
        told = sum(other.distances[k] for other in pipelines)
        expected = relative_change(rows[k][:PARAMETERS], mean) * float(mean.double().norm())
        assert math.isclose(math.sqrt(told + made.own_distance), expected, rel_tol=1e-3)
        assert (told == 0) == (kind == "fixed32") and (made.own_distance == 0) == (kind == "plain")


def test_parts_of_a_vector_have_the_bits_of_the_whole():
    """Lanes: each carrier takes the mean of its stretch."""
    previous, rows = models(3)
    offers = offers_of("fixed32", previous, rows, [1.0] * 3)
    in_memory.mean(offers, [1.0] * 3)
    parts = offers_of("fixed32", previous, rows, [1.0] * 3)
    for place in (slice(0, 432), slice(432, 1000)):
        in_memory.mean([offer.part(place) for offer in parts], [1.0] * 3)
    assert torch.equal(parts[0].result, offers[0].result)


def test_who_gives_nothing_gets_the_mean():
    previous, rows = models(3)
    weights = [1.0, 0.0, 1.0]
    offers = []
    for k, row in enumerate(rows):
        encoding, numbers = whole(row, previous, 2)
        if k == 1:
            encoding = WholeNumbers(previous, encoding.scales, 1.0, 2.0, None)
            numbers.fill_(-1)
        offers.append(offer_of(encoding, numbers, previous, weights))
    in_memory.mean(offers, weights)
    exact = weighted_mean([rows[0], rows[2]], [1.0, 1.0])
    assert all(float((offer.result - exact).abs().max()) < 1e-6 for offer in offers)


def test_a_variance_is_never_rounded_below_zero():
    previous = torch.tensor([1e-3, 100.0])
    entries = [FlatEntry("var", 0, 2)]
    rows = [torch.tensor([1e-30, 50.0]), torch.tensor([0.0, 50.0])]
    scales = scales_for(entries, [50.0], 32, 2)
    numbers = [torch.empty(2, dtype=torch.int32) for _ in rows]
    assert all(encode(row, previous, scales, 1.0, q) for row, q in zip(rows, numbers, strict=True))
    total = sum(numbers)
    assert float(decode(total, previous, scales, 2.0, torch.empty(2))[0]) != 0.0
    assert decode_near_zero(total, previous, scales, 2.0, torch.empty(2)).tolist() == [0.0, 50.0]
    assert torch.allclose(steps_of(numbers[0], scales, 1.0).float(), rows[0] - previous, atol=1e-4)


def test_the_pipeline_asks_nobody_what_it_is():
    """No branch by kind: it names no kind, and asks no object for its class."""
    tree = ast.parse(Path(pipeline.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & {"isinstance", "type", "Plain", "Coded", "WholeNumbers", "MaskedNumbers", "codec"}
