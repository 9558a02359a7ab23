"""Two data centers on text and on sound, through the command line: what is exchanged, and what is not."""

import json
from pathlib import Path

import miniatures
import numpy as np
import pytest
import yaml

from colearn_hpc.cli import main

pytestmark = pytest.mark.mpi
CASES = ("toxic_bigru", "speech_cnn", "audioset_fc")


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory, pytestconfig):
    """All configurations in one launch: starting ranks costs more than training them."""
    folder = tmp_path_factory.mktemp("tasks")
    sources = {
        "toxic": ["toxic", miniatures.toxic(folder / "a"), "--vectors", miniatures.word_vectors(folder / "mini.vec")],
        "speech": ["speech-commands", miniatures.speech_commands(folder / "b")],
        "audioset": ["audioset", miniatures.audioset(folder / "c"), "--train", "balanced"],
    }
    for name, command in sources.items():
        assert main(["data", *map(str, command), "--out", str(folder / "data" / name), "--centers", "2"]) == 0
    options = ["--centers=2", "--colearning.rounds=1", "--colearning.local_epochs=2", "--trainer.accelerator=cpu"]
    options += ["--trainer.num_sanity_val_steps=0", "--trainer.logger=false", "--colearning.resume_points=false"]
    options += ["--data.init_args.batch_size=4", f"--runs={folder / 'runs'}"]
    cases = {}
    for name in CASES:
        text = (pytestconfig.rootpath / "configs" / f"{name}.yaml").read_text()
        config = folder / f"{name}.yaml"
        config.write_text(text.replace("data/", f"{folder}/data/"))
        cases[name] = {"arguments": ["fit", "--config", str(config), *options]}
    (folder / "cases.json").write_text(json.dumps(cases))
    launch(2, "exit_codes.py", folder / "cases.json").ok()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_both_data_centers_end_a_round(finished, name):
    for rank in (0, 1):
        assert (finished / name / f"{rank}.code").read_text() == "0", (finished / name / "0.err").read_text()
    (line,) = (finished / "runs" / name / "rounds.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert [center["name"] for center in record["centers"]] == ["dc0", "dc1"]
    assert all(center["divergence"] > 0 for center in record["centers"])
    metric = {"toxic_bigru": "val_auc", "speech_cnn": "val_acc", "audioset_fc": "val_map"}[name]
    # The same model on the same evaluation data: the data centers must agree to the last bit.
    first, second = (center["shared_metrics"] for center in record["centers"])
    assert metric in first and first == second
    assert sum(center["examples"] for center in record["centers"]) == 2 * _train_examples(finished, name)


def _train_examples(folder, name):
    config = yaml.safe_load((folder / f"{name}.yaml").read_text())
    path = Path(config["data"]["init_args"]["train"]).parent / "dataset.json"
    return sum(center["examples"] for center in json.loads(path.read_text())["centers"])


def test_frozen_word_vectors_are_not_exchanged(finished):
    """BiGRU on 5-dimensional vectors: what travels is the GRU and the last layer, as float32."""
    words, dimensions = np.load(finished / "data" / "toxic" / "embedding.npy").shape
    units, labels = 80, 6
    trained = 2 * 3 * units * (dimensions + units + 2) + 4 * units * labels + labels
    (line,) = (finished / "runs" / "toxic_bigru" / "rounds.jsonl").read_text().splitlines()
    for center in json.loads(line)["centers"]:
        assert trained * 4 <= center["bytes_sent"] < trained * 4 + words * dimensions * 4
