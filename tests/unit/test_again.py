"""Whether a batch job starts its run again, and where that run is."""

import json

import pytest

from colearn_hpc.cli import main
from colearn_hpc.cli.run_folder import run_folder


@pytest.fixture
def again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda code: main(["again", str(code), "--", "--name", "x"]) == 0


def point(folder, center, name):
    path = folder / "runs" / "x" / "centers" / center / f"resume-{name}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_not_after_an_error_or_the_end(again, tmp_path, code):
    assert not again(code) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("code", [85, 86, 137, 14])  # 14: Open MPI's, of ranks whose peer was killed
def test_as_long_as_any_data_center_gets_on(again, tmp_path, capfd, code):
    for number in range(4):
        point(tmp_path, f"dc{number % 2}", f"round{number:06d}")
        assert again(code)
    assert again(code) and not again(code)
    assert "runs/x: 2 starts in a row wrote no new resume point" in capfd.readouterr().err


def test_a_run_that_never_writes_one(again):
    """Two starts in all."""
    assert again(137) and not again(137)


def test_what_was_counted_is_forgotten_at_the_end(again, tmp_path):
    assert again(86) and not again(0)
    assert not list((tmp_path / "runs" / "x").iterdir())
    assert again(86)


@pytest.mark.parametrize("damage", ["", "[]", '{"resume_points": 3}', json.dumps({"resume_points": []})])
def test_a_damaged_memory_is_none(again, tmp_path, damage):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "starts.json").write_text(damage)
    assert again(86) and not again(86)


def test_a_folder_that_cannot_be_written(again, tmp_path, capfd):
    (tmp_path / "runs").write_text("a file")
    assert not again(86)
    assert "runs/x/starts.json cannot be written" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fit", "folder"),
    [
        ([], "runs/run"),
        (["--name", "a"], "runs/a"),
        (["--name=a", "--runs=/scratch"], "/scratch/a"),
        (["--config", "c.yaml"], "elsewhere/c"),
        (["--config=c.yaml", "--name", "a", "--model.pause=3"], "elsewhere/a"),
        (["--name", "a", "--config", "c.yaml"], "elsewhere/c"),
        (["--config", "missing.yaml"], "runs/run"),
        (["--config", "list.yaml", "--name"], "runs"),
    ],
)
def test_the_run_folder_is_the_one_that_fit_takes(tmp_path, monkeypatch, fit, folder):
    """The later word wins, as in `fit`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("name: c\nruns: elsewhere\ncenters: 5\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert str(run_folder(fit)) == folder
