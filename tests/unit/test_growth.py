"""Many leaders: the mean's bits, as many messages as benchmarks/pipeline_model.py counts, its seconds over links."""

import json
from pathlib import Path

import in_memory
import pytest
import torch

from colearn_hpc.algorithm import slices
from colearn_hpc.between import Offer, Vector

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pipeline_model

    return pipeline_model


@pytest.mark.parametrize("centers", [3, 64])
def test_the_mean_of_many(monkeypatch, model, centers):
    monkeypatch.setattr(slices, "CHUNK", 1 << 14)  # several chunks of a small vector
    size = 20_000
    rows = [torch.randn(size, generator=torch.Generator().manual_seed(k)) for k in range(centers)]
    results = [torch.full((size,), torch.nan) for _ in rows]
    offers = [Offer(Vector(row), result, [], size) for row, result in zip(rows, results, strict=True)]
    wire = in_memory.mean(offers, [1.0] * centers)
    total = torch.zeros(size, dtype=torch.float64)
    for row in rows:
        total += row
    assert all(torch.equal(result, (total / centers).float()) for result in results)
    predicted = model.predict(size, centers, model.Link(100))
    assert len(wire.log) == centers * predicted.messages and predicted.messages > 2 * (centers - 1)
    assert sum(len(content) for *_, content in wire.log) == 2 * (centers - 1) * 4 * size


def test_the_model_of_links_is_what_was_measured(model):
    """Five data centers over links of 50, 200 and 1000 Mbit/s, which share this machine's two cores."""
    rows = [row for row in json.loads((RESULTS / "wan.json").read_text())["rows"] if row["codec"] == "fp32"]
    assert {row["Mbit/s"] for row in rows} == {50, 200, 1000}
    for row in rows:
        host = model.Host(cores=2 / row["centers"])
        predicted = model.predict(row["floats"], row["centers"], model.Link(row["Mbit/s"]), host)
        assert predicted.bound == pytest.approx(row["bound (s)"])
        assert predicted.exchange == pytest.approx(row["ours (s)"], rel=0.02)


def test_the_model_of_long_links_is_what_was_measured(monkeypatch, model):
    """Pipelines alone, with what is under way between hosts and with what is on one."""
    rows = json.loads((RESULTS / "growth.json").read_text())["long"]
    assert {row["round trip (ms)"] for row in rows} == {50, 150}
    for ahead, column, within in (
        (model.LONG_LINK, "measured / bound", 0.08),
        (0, "with four chunks / bound", 0.1),
    ):
        monkeypatch.setattr(model, "LONG_LINK", ahead)
        for row in rows:
            link, host = model.Link(row["Mbit/s"], row["round trip (ms)"] / 1e3), model.Host(cores=2 / row["centers"])
            predicted = model.predict(row["floats"], row["centers"], link, host)
            assert predicted.seconds / predicted.bound == pytest.approx(row[column], rel=within)


def test_what_is_under_way_between_hosts_hides_a_long_delay(monkeypatch, model):
    near, far = (model.predict(10**8, 2, model.Link(1000, delay)) for delay in (0, 0.05))
    assert far.seconds == pytest.approx(near.seconds, rel=0.05) == pytest.approx(1.06 * near.bound, rel=0.05)
    monkeypatch.setattr(model, "LONG_LINK", 0)
    assert model.predict(10**8, 2, model.Link(1000, 0.05)).seconds > 2 * near.seconds
