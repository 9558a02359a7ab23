"""Studies made by hand: no training, no MPI."""

from pathlib import Path

import pytest
import yaml
from handmade import write_run

from colearn_hpc.studies.grid import expand
from colearn_hpc.studies.runner import write_plan
from colearn_hpc.studies.study_file import read_study

BASE = {
    "centers": 5,
    "model": {"class_path": "Classifier", "init_args": {"network": "digits_cnn", "learning_rate": 0.05}},
    "data": {"class_path": "ShardDataModule", "init_args": {"train": "data/{center}.h5", "batch_size": 32}},
    "colearning": {"rounds": 8, "local_epochs": 3, "epsilon": 0.018},
}
STUDY = {
    "name": "toy",
    "title": "A toy <study> & more",
    "config": "base.yaml",
    "centers": 5,
    "epochs": 6,
    "trials": 2,
    "arms": ["clr+ile", "elr+fle", "vanilla"],
}


@pytest.fixture
def study_file(tmp_path):
    """Write a study file with changes; None removes a key."""

    def write(**changes) -> Path:
        content = {key: value for key, value in (STUDY | changes).items() if value is not None}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
        path = tmp_path / "study_file.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def study_folder(tmp_path, study_file):
    """A whole study's folder, every run finished."""
    study = read_study(study_file())
    plans, out = expand(study), tmp_path / "out"
    write_plan(out, study, plans)
    best = {"clr+ile": 0.95, "elr+fle": 0.91, "vanilla": 0.97}
    for plan in plans:
        pooled = {"centers": 1, "examples": 300, "method": "vanilla", "sent": 0} if plan.arm == "vanilla" else {}
        write_run(out / "runs" / plan.name, (0.7, best[plan.arm] + 0.01 * plan.seed), **pooled)
    return out
