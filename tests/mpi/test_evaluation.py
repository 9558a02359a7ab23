"""`validate`, `test`, `predict` and cross-site evaluation of a real run, against the same computed in this process."""

import csv
import json
import sys

import h5py
import numpy as np
import pytest
import test_methods as methods
import torch
import yaml
from torch.nn.functional import cross_entropy

from colearn_hpc.data.shards import ShardDataset

pytestmark = pytest.mark.mpi
MODELS = ("shared", "dc0", "dc1")


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    """A run of two data centers, each of which validates on data of its own."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "tinynet_of_test.py").write_text(methods.NET)
    for k in range(2):
        methods.write_shard(folder / f"dc{k}.h5", seed=k)
        methods.write_shard(folder / f"val-dc{k}.h5", seed=20 + k, examples=13 + 4 * k)
    methods.write_shard(folder / "test.h5", seed=9, examples=31)
    data = {"train": "{center}.h5", "val": "val-{center}.h5", "test": "test.h5"}
    config = {
        "centers": 2,
        "colearning": {"rounds": 2, "local_epochs": 2, "resume_points": False},
        "trainer": {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, "enable_progress_bar": False},
        "model": {
            "class_path": "Classifier",
            "init_args": {"network": "tinynet_of_test.Tiny", "num_classes": 3, "learning_rate": 0.1},
        },
        "data": {
            "class_path": "ShardDataModule",
            "init_args": {key: str(folder / name) for key, name in data.items()} | {"batch_size": 4, "seed": 3},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["fit", "--config", folder / "config.yaml", "--name", "r", "--runs", folder / "runs"]
    launch(2, "-m colearn_hpc", *command, env={"PYTHONPATH": paths(folder)}).ok()
    sys.path.insert(0, str(folder))
    yield folder / "runs" / "r"
    sys.path.remove(str(folder))


def paths(folder) -> str:
    return f"{methods.REPOSITORY}:{folder}"


@pytest.fixture
def colearn(launch, run):
    """``colearn(ranks, *words)``: a command on this run's data; returns what it said."""
    return lambda ranks, *words: launch(ranks, "-m colearn_hpc", *words, env={"PYTHONPATH": paths(run.parents[1])})


def net(run, whose: str) -> torch.nn.Module:
    return methods.shared(run / "shared.ckpt" if whose == "shared" else run / "centers" / whose / "local.ckpt").eval()


def logits_and_labels(run, whose: str, shard: str) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = ShardDataset(run.parents[1] / shard)
    x, y = dataset[list(range(len(dataset)))]
    with torch.no_grad():
        return net(run, whose)(x), y


def oracle(run) -> np.ndarray:
    """val_loss, a row per model, a column per data center."""
    rows = [[cross_entropy(*logits_and_labels(run, m, f"val-dc{k}.h5")).item() for k in range(2)] for m in MODELS]
    return np.array(rows)


def test_the_shared_model_is_the_mean_of_the_local_ones(run):
    mean = torch.stack([methods.weights(net(run, name)).double() for name in MODELS[1:]]).mean(0)
    torch.testing.assert_close(methods.weights(net(run, "shared")), mean.float())
    assert not torch.equal(methods.weights(net(run, "dc0")), methods.weights(net(run, "dc1")))


@pytest.mark.parametrize("ranks", [1, 4])
def test_cross_site(colearn, run, ranks):
    """One process goes through all data; two data centers of two ranks hand each other their models."""
    (run / "cross_site.json").unlink(missing_ok=True)
    said = colearn(ranks, "validate", run, "--cross-site").ok()
    found = json.loads((run / "cross_site.json").read_text())
    assert (found["models"], found["centers"]) == (list(MODELS), ["dc0", "dc1"])
    np.testing.assert_allclose(found["metrics"]["val_loss"], oracle(run), rtol=1e-5)
    assert "cross_site.json" in said and "val_acc: model of" in said


def test_predict_by_one_process_and_by_several(colearn, run, tmp_path):
    logits, _ = logits_and_labels(run, "shared", "test.h5")
    expected = torch.softmax(logits, 1).numpy()
    said = colearn(1, "predict", run, "--out", tmp_path / "mine.csv")
    assert f"predictions for 31 examples in {tmp_path / 'mine.csv'}" in said.ok()
    assert "as data center dc0; COLEARN_CENTER chooses another of dc0, dc1" in said.err
    with (tmp_path / "mine.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header == ["index", "a", "b", "c"] and [line[0] for line in lines] == [str(i) for i in range(31)]
    np.testing.assert_allclose(np.array(lines, dtype=float)[:, 1:], expected, rtol=1e-5)
    colearn(4, "predict", run).ok()  # two ranks in each data center share its 31 examples
    for name in MODELS[1:]:
        with h5py.File(run / "centers" / name / "predictions.h5") as file:
            assert file["index"][...].tolist() == list(range(31))
            assert (file.attrs["center"], list(file.attrs["classes"])) == (name, ["a", "b", "c"])
            np.testing.assert_allclose(file["prediction"][...], expected, rtol=1e-5)


def test_test_compares_the_data_centers(colearn, run):
    loss = cross_entropy(*logits_and_labels(run, "shared", "test.h5")).item()
    said = colearn(2, "test", run).ok()
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("dc")}
    assert {name: float(words[1]) for name, words in lines.items()} == pytest.approx(
        dict.fromkeys(MODELS[1:], loss), abs=1e-4
    )


def test_without_a_checkpoint_it_refuses(colearn, run):
    done = colearn(1, "test", "--config", run / "config.yaml")
    assert done.code == 1 and "test needs a trained model, found none: name a run folder" in done.err
