"""What a user can get wrong, on 4 ranks: exit code != 0 on all, one message, nobody left behind, soon."""

import json
import re
import shutil
import signal
from dataclasses import dataclass, field

import h5py
import numpy as np
import pytest

from colearn_hpc.cli.data import main as data

pytestmark = pytest.mark.mpi
RANKS = 4
TOY = ["--model", "faulty.Plain", "--colearning.rounds", "2", "--colearning.local_epochs", "2"]


@dataclass
class Case:
    """A command line, what one rank has differently, the exit code, and what the one message must say."""

    says: str
    arguments: list = field(default_factory=lambda: list(TOY))
    code: int = 1
    count: str | None = "4"
    extra: dict = field(default_factory=dict)
    centers: dict = field(default_factory=dict)


LYON = {"0": "lyon", "1": "lyon", "2": "tokyo"}
CASES = {
    "ranks do not divide": Case("centers=3 cannot share 4 ranks equally", count="3"),
    "sizes do not add up": Case("needs 10 ranks, found 4", count="[4,4,2]"),
    "some ranks without a name": Case("2 ranks in lyon; ", count=None, centers=LYON),
    "names against number": Case(
        "COLEARN_CENTER declares lyon (3 ranks), tokyo (1 rank)", count="2", centers=LYON | {"3": "lyon"}
    ),
    "other number on one rank": Case("the ranks were given different settings", extra={"2": ["--centers", "2"]}),
    "other setting on one rank": Case(
        "dc0 has `CoLearning(rounds) = 2`, dc2 has `CoLearning(rounds) = 3`", extra={"2": ["--colearning.rounds", "3"]}
    ),
    "other model on one rank": Case(
        "dc0 has `parameter net.0.weight = (5, 6) float32 trainable`, dc3 has `parameter net.0.weight = (7, 6)",
        extra={"3": ["--model.width", "7"]},
    ),
    "nan": Case(
        "round 0: NaN or Inf in the model of data center dc1 (net.0.weight)", arguments=[*TOY, "--model.fault=nan"]
    ),
    "scheduler against schedule": Case('CoLearning(schedule="none")', arguments=[*TOY, "--model.fault=scheduler"]),
    "bad value on one rank": Case("epsilon", code=2, extra={"1": ["--colearning.epsilon=small"]}),
    "module that ends the process": Case(
        "leaving.py:5 calls sys.exit() when it is imported", code=2, extra={"1": ["--model=leaving.Model"]}
    ),
    "a data center without a batch": Case(
        "data center dc1 has nothing to train on", extra={"1": ["--trainer.limit_train_batches=0"]}
    ),
    "a data center without a step": Case(
        "data center dc3 has nothing to train on", extra={"3": ["--trainer.max_steps=0"]}
    ),
    "impossible setting": Case(
        "decay (r of eq. 3) must be in (0, 1], found 1.5", arguments=[*TOY, "--colearning.decay=1.5"]
    ),
    "devices against ranks": Case(
        "trainer.devices=3, but data center dc0 has 4", arguments=[*TOY, "--trainer.devices=3"], count="1"
    ),
    "nothing ends the run": Case("nothing ends this run", arguments=["--model=faulty.Plain"]),
    "nothing ends it on one rank": Case("data center dc2: nothing ends", extra={"2": ["--colearning.rounds", "null"]}),
    "one rank resumes": Case(
        "--resume differs between the ranks (False on rank 0; True on rank 1)",
        code=2,
        extra={"1": ["--ckpt_path", "last"]},
    ),
    "unknown module": Case(
        "model=nosuch.Module: No module named 'nosuch'", arguments=["--model=nosuch.Module"], code=2
    ),
    "resume and overwrite": Case("exclude each other", arguments=[*TOY, "--resume", "--overwrite"]),
    "run exists": Case("holds a run already; continue it with --resume"),
    "damaged resume points": Case(
        "dc0: resume-round000001-epoch000002.ckpt; dc1: resume", arguments=[*TOY, "--resume"]
    ),
}


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _not_hdf5(path):
    path.write_bytes(b"these are no shards")


def _other_version(path):
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99


def _other_length(path):
    with h5py.File(path, "a") as file:
        y, attributes = file["y"][:], dict(file["x"].attrs)
        del file["x"]
        file.create_dataset("x", data=np.zeros((len(y) + 1, 1, 8, 8), np.uint8)).attrs.update(attributes)


def _empty(path):
    with h5py.File(path, "a") as file:
        for key in ("x", "y"):
            shape, dtype = (0, *file[key].shape[1:]), file[key].dtype
            del file[key]
            file.create_dataset(key, shape=shape, dtype=dtype)


DAMAGES = {
    "no shard": lambda path: path.unlink(),
    "truncated shard": _truncated,
    "no HDF5": _not_hdf5,
    "other version": _other_version,
    "other length": _other_length,
    "empty shard": _empty,
}


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    """All cases in one launch: starting four ranks costs more than failing. Each case ends its run on all ranks, so
    the same processes can go on to the next one; that they can is a part of the test."""
    folder = tmp_path_factory.mktemp("errors")
    runs = ["--runs", str(folder / "runs"), "--trainer.accelerator", "cpu"]
    cases = {}
    for name, case in CASES.items():
        counted = ["--centers", case.count] if case.count else []
        where = ["--name", "used" if name in ("run exists", "damaged resume points") else name.replace(" ", "-")]
        cases[name] = {
            "arguments": ["fit", *case.arguments, *runs, *where, *counted],
            "extra": case.extra,
            "centers": case.centers,
        }
    used = folder / "runs" / "used"
    for center in ("dc0", "dc1", "dc3"):
        (used / "centers" / center).mkdir(parents=True)
        (used / "centers" / center / "resume-round000001-epoch000002.ckpt").touch()
    assert data(["digits", "--out", str(folder / "digits"), "--centers", "4"]) == 0
    for name, damage in DAMAGES.items():
        shutil.copytree(folder / "digits", folder / name.replace(" ", "-"))
        damage(folder / name.replace(" ", "-") / "dc2.h5")
        cases[name] = {"arguments": ["fit", *shards(folder / name.replace(" ", "-")), *runs, "--name", name]}
    (folder / "cases.json").write_text(json.dumps(cases))
    return folder, launch(RANKS, "exit_codes.py", folder / "cases.json", timeout=480)


def shards(folder):
    digits = [f"--data.train={folder}/{{center}}.h5", f"--data.test={folder}/test.h5"]
    short = ["--colearning.rounds=1", "--colearning.local_epochs=1", "--centers=4"]
    return ["--model=Classifier", "--model.network=digits_cnn", "--data=ShardDataModule", *digits, *short]


def message(folder, name, code):
    """The one message of a case, after the checks that every error must pass."""
    codes = {path.stem: path.read_text() for path in (folder / name).glob("*.code")}
    said = "".join(path.read_text() for path in sorted((folder / name).glob("*.err")))
    assert codes == {str(rank): str(code) for rank in range(RANKS)}, said
    # The launcher sends TERM when the first rank has left; who is still ending keeps its code.
    assert {path.read_text() for path in (folder / name).glob("*.term")} == {str(signal.SIG_IGN)}
    assert said.count("colearn-hpc: error:") == 1, said
    return said


def the_error(said):
    """What follows the one "error:", without the warnings of other ranks after it."""
    return said.partition("colearn-hpc: error:")[2].partition("\ncolearn-hpc:")[0]


@pytest.mark.parametrize("name", CASES)
def test_error(finished, name):
    folder, _ = finished
    said = message(folder, name, CASES[name].code)
    assert the_error(said).count(CASES[name].says) == 1, said
    assert "Traceback" not in said
    assert not (folder / "runs" / name.replace(" ", "-") / "shared.ckpt").exists()


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_shard_of_one_center(finished, name):
    folder, _ = finished
    said = message(folder, name, 1)
    assert "dc2.h5" in said and "Traceback" not in said, said


def test_nobody_left_behind(finished):
    _, done = finished
    assert done.code != 0 and done.orphans == []


def test_exception_in_a_users_step(launch, tmp_path):
    """One rank fails in mid-epoch while the others train: a real launch of its own, ended by the launcher."""
    where = ["--centers", "4", "--runs", str(tmp_path), "--trainer.accelerator=cpu"]
    case = {"raise": {"arguments": ["fit", *TOY, "--model.fault=raise", *where]}}
    (tmp_path / "cases.json").write_text(json.dumps(case))
    done = launch(RANKS, "exit_codes.py", tmp_path / "cases.json", timeout=120)
    assert done.code != 0 and done.orphans == []
    said = message(tmp_path, "raise", 1)
    assert the_error(said).startswith(" data center dc1: RuntimeError at faulty.py:")  # who, and where
    assert "the same error came back at the same batch" in the_error(said)  # it was given one more chance
    own = (tmp_path / "raise" / "1.err").read_text()
    assert "RuntimeError: the user's code failed here" in own and "in training_step" in own
    assert said.count("the user's code failed here") == own.count("the user's code failed here")
    log = (tmp_path / "run" / "centers" / "dc1" / "log.txt").read_text()
    assert "failed" in log and "RuntimeError: the user's code failed here" in log
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_a_trainer_that_does_not_know_its_data_center(launch, tmp_path):
    """Only one data center has the mistake; the other must not wait for it."""
    done = launch(3, "one_trainer.py", tmp_path, 1, 2, 1, timeout=120)
    assert done.code != 0 and done.orphans == []
    said = "data center dc0 has 2 ranks, but this Trainer's world has 1; pass **DataCenterEnvironment(...)."
    assert said in done.err


def test_a_trainer_that_takes_all_devices(launch, tmp_path):
    """As Lightning's own choice on a machine with several GPUs: one world of DDP over all data centers' ranks."""
    done = launch(2, "one_trainer.py", tmp_path, 2, 1, 1, timeout=120)
    assert done.code != 0 and done.orphans == []
    assert re.search(r"data center dc\d has 1 ranks, but this Trainer's world has \d; pass \*\*DataCenterEn", done.err)
