"""What comes after `fit`, in one process: command lines, files of predictions, exported models, matrices."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colearn_hpc.cli import cross_site, evaluate, export, main
from colearn_hpc.cli.predictions import as_csv, columns_of, joined
from colearn_hpc.errors import CheckpointError, ConfigurationError
from colearn_hpc.studies.cross_site import cross_site_blocks
from colearn_hpc.studies.run_folder import RunFolder

# --- the command line -----------------------------------------------------------------------------------


def test_a_run_folder_brings_its_configuration_and_its_model():
    asked, rest = evaluate.read("test", ["runs/a/b", "--data.test", "mine.h5"])
    assert (asked.run, asked.centers, asked.cross_site) == (Path("runs/a/b"), False, False)
    pairs = dict(zip(rest[::2], rest[1::2], strict=True))
    assert pairs["--config"] == "runs/a/b/config.yaml" and pairs["--ckpt_path"] == "runs/a/b/shared.ckpt"
    assert (pairs["--runs"], pairs["--name"]) == ("runs/a", "b")
    assert rest[-2:] == ["--data.test", "mine.h5"]  # the user's own comes last, and wins


def test_without_a_run_folder_the_command_line_stays():
    given = ["--config", "c.yaml", "--ckpt_path", "m.ckpt", "--centers=2"]
    asked, rest = evaluate.read("predict", [*given, "--out", "p.csv"])
    assert (asked.run, asked.out, asked.centers, rest) == (None, "p.csv", True, given)


def test_options_of_one_command_are_none_of_another():
    assert evaluate.read("test", ["runs/a", "--out", "x"])[1][-2:] == ["--out", "x"]  # which Lightning refuses
    assert evaluate.read("predict", ["runs/a", "--cross-site"])[1][-1] == "--cross-site"
    assert evaluate.read("validate", ["runs/a", "--cross-site"])[0].cross_site


@pytest.mark.parametrize(
    ("files", "said"), [(None, "there is no such run folder"), ((), "holds no config.yaml"), (("config.yaml",), "")]
)
def test_what_is_no_run_folder(tmp_path, files, said):
    for name in files or ():
        (tmp_path / name).touch()
    run = tmp_path if files is not None else tmp_path / "none"
    found = evaluate.missing(evaluate.Asked(run))
    assert said in found and bool(found) == bool(said)


# --- predictions ----------------------------------------------------------------------------------------


def test_shares_of_ranks_become_one_by_place():
    shares = [
        {"index": np.array([0, 2, 4]), "p": np.array([0.0, 0.2, 0.4])},
        {"index": np.array([1, 3, 0]), "p": np.array([0.1, 0.3, 0.0])},  # filled up with the first example
    ]
    whole = joined(shares)
    assert whole["index"].tolist() == [0, 1, 2, 3, 4] and whole["p"].tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    unknown = joined([{"index": np.array([-1, -1]), "p": np.array([5.0, 3.0])}])
    assert unknown["p"].tolist() == [5.0, 3.0]


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (torch.zeros(3, 2), {"prediction"}),
        ({"mask": torch.zeros(3, 1, 4, 4), "name": ["a", "b", "c"]}, {"mask", "name"}),
        ((torch.zeros(3), torch.zeros(3, 2, dtype=torch.bfloat16)), {"prediction_0", "prediction_1"}),
    ],
)
def test_what_predict_step_may_return(outputs, names):
    found = columns_of(outputs)
    assert found.keys() == names and {len(column) for column in found.values()} == {3}


@pytest.mark.parametrize("outputs", [None, torch.tensor(1.0), {"a": torch.zeros(3), "b": torch.zeros(2)}, {}, object()])
def test_what_has_no_row_for_each_example_is_refused(outputs):
    with pytest.raises(ConfigurationError, match="no row per example"):
        columns_of(outputs)


def test_a_csv_names_classes():
    whole = {"index": np.arange(2), "prediction": np.array([[0.1, 0.9], [0.7, 0.3]]), "name": np.array(["a", "b,c"])}
    header, *lines = csv.reader(as_csv(whole, ["ill", "well"]).splitlines())
    assert header == ["index", "ill", "well", "name"] and lines[1] == ["1", "0.7", "0.3", "b,c"]
    assert as_csv({"p": np.zeros((1, 3))}, ["ill", "well"]).startswith("p_0,p_1,p_2\n")
    with pytest.raises(ConfigurationError, match=r"use --out FILE\.h5"):
        as_csv({"mask": np.zeros((1, 2, 2))}, [])


# --- export ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"network.a.weight": weight, "network.b.weight": weight, "scale": torch.ones(1)}  # a and b are tied
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"width": 3}}, tmp_path / "shared.ckpt")
    return tmp_path


def test_export_as_safetensors(run, capsys):
    assert main(["export", str(run), "--to", str(run / "new" / "model.safetensors"), "--prefix", "network."]) == 0
    assert "model.safetensors: 2 tensors, 12 numbers" in capsys.readouterr().out
    found = load_file(run / "new" / "model.safetensors")
    assert found.keys() == {"a.weight", "b.weight"} and found["b.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_export_as_checkpoint_and_state_dict(run):
    export.export(run, run / "model.ckpt")
    export.export(run, run / "model.pt")
    whole, state = (torch.load(run / name, weights_only=True) for name in ("model.ckpt", "model.pt"))
    assert whole["hyper_parameters"] == {"width": 3} and whole["state_dict"].keys() == state.keys()


@pytest.mark.parametrize(
    ("to", "prefix", "said"),
    [
        ("model.onnx", "", r"a model is written as \.ckpt, \.pt, \.safetensors"),
        ("model.ckpt", "network.", r"--prefix goes with \.pt and \.safetensors"),
        ("model.pt", "net.", r"no tensor's name begins with it; there are network\.a\.weight"),
    ],
)
def test_what_cannot_be_exported(run, to, prefix, said):
    with pytest.raises(ConfigurationError, match=said):
        export.export(run, run / to, prefix)
    assert not (run / to).exists()


def test_export_without_a_model(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "m.pt")]) == 2
    assert "holds no shared.ckpt: it is no run folder" in capsys.readouterr().err
    (tmp_path / "shared.ckpt").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="cannot be read"):
        export.export(tmp_path, tmp_path / "m.pt")


# --- cross-site -----------------------------------------------------------------------------------------

COLUMNS = {
    "lyon": {"shared": {"val_acc": 0.9, "val_loss": 0.3}, "lyon": {"val_acc": 0.95, "val_loss": 0.2}},
    "paris": {"shared": {"val_acc": 0.8, "val_loss": 0.5}, "lyon": {"val_loss": 0.7}},
}


def test_a_row_per_model_and_a_column_per_data_center(tmp_path):
    found = cross_site.matrix(["shared", "lyon"], COLUMNS)
    assert found["metrics"]["val_acc"] == [[0.9, 0.8], [0.95, None]]
    text = cross_site.as_text(found)
    assert "val_loss: model of  on lyon  on paris" in text and "0.9500         —" in text
    cross_site.write(tmp_path, found)
    main_metric, others = cross_site_blocks(RunFolder(tmp_path))
    assert main_metric.rows[1] == ["lyon", "0.9500", "—"] and main_metric.best == {(1, 1), (0, 2)}
    (losses,) = others.blocks
    assert losses.best == {(1, 1), (0, 2)}  # the least


def test_a_damaged_matrix_is_named(tmp_path):
    assert cross_site_blocks(RunFolder(tmp_path)) == []
    for content in ("{", "[]", json.dumps({"models": ["a"], "centers": ["b"], "metrics": {"m": [[1, 2]]}})):
        (tmp_path / "cross_site.json").write_text(content)
        run = RunFolder(tmp_path)
        assert cross_site_blocks(run) == [] and "no cross-site evaluation can be read" in run.problems[0]


def test_models_of_different_rounds_are_refused():
    with pytest.raises(CheckpointError, match="lyon: 6 local epochs, paris: 3 local epochs"):
        cross_site._check_same_round({"lyon": 5, "paris": 2})
