"""Bad command lines and configurations, on 2 ranks: exit code != 0 everywhere, one clear message, nobody left behind.

What one rank has differently, damaged files and failures in mid-run are in test_errors.py.
"""

import json
from dataclasses import dataclass, field

import pytest

from colearn_hpc.cli import main
from colearn_hpc.cli.data import main as data

pytestmark = pytest.mark.mpi
RANKS = 2
USAGE, FAILED = 2, 1


@dataclass
class Case:
    """Arguments of ``fit`` beside the toy's (None: a case without the toy), and what the message must say."""

    says: str
    arguments: list = field(default_factory=list)
    code: int = FAILED
    toy: bool = True
    yaml: str | None = None  # content of the file that --config names
    versions: dict = field(default_factory=dict)  # rank -> the protocol's version there


def option(text: str, says: str, code: int = FAILED) -> Case:
    return Case(says, [f"--{text}"], code)


def shards(text: str, says: str, code: int = FAILED) -> Case:
    base = ["--model=Classifier", "--model.network=digits_cnn", "--data=ShardDataModule", "--colearning.rounds=1"]
    return Case(says, [*base, "--data.train=FOLDER/{center}.h5", *text.split()], code, toy=False)


def config(yaml: str, says: str, code: int = USAGE) -> Case:
    return Case(says, [], code, toy=False, yaml=yaml)


CASES = {
    # The configuration file
    "no such file": Case(
        "config=/nowhere/x.yaml: there is no such file", ["--config=/nowhere/x.yaml"], USAGE, toy=False
    ),
    "a folder": Case("Path is not a file", ["--config=FOLDER"], USAGE, toy=False),
    "no yaml": config("model: [1\n  x: : y", "no yaml.yaml cannot be read: while parsing"),
    "empty file": config("", "empty file.yaml must hold `setting: value` lines, found nothing"),
    "a list": config("- a\n- b\n", "a list.yaml must hold `setting: value` lines, found a list"),
    "unknown group": config("model: faulty.Plain\ncolearnin:\n  rounds: 2\n", "did you mean colearning.rounds?"),
    "unknown key": config("model: faulty.Plain\ncolearning:\n  round: 2\n", "did you mean colearning.rounds?"),
    "wrong type in a file": config("model: faulty.Plain\ncolearning:\n  rounds: two\n", "rounds=two: must be a whole"),
    # The command line
    "unknown option": option("colearning.epsilom=1", "did you mean colearning.epsilon?", USAGE),
    "unlike any option": option("zzzzz=1", "`colearn-hpc fit --help` lists", USAGE),
    "one word more": Case("unrecognized arguments: extra", ["extra"], USAGE),
    "no model": Case("required: fit.model", ["--colearning.rounds=2"], USAGE, toy=False),
    "no module": Case("model=torch.nn.Linear: is no LightningModule", ["--model=torch.nn.Linear"], USAGE, toy=False),
    "unknown model argument": option("model.depth=3", "model.depth: faulty.Plain has no such argument", USAGE),
    # Co-learning
    "rounds no number": option("colearning.rounds=many", "colearning.rounds=many: must be a whole number", USAGE),
    "rounds 0": option("colearning.rounds=0", "rounds must be a whole number, at least 1"),
    "rounds negative": option("colearning.rounds=-3", "rounds must be a whole number, at least 1"),
    "local epochs 0": option("colearning.local_epochs=0", "local_epochs (T_0) must be a whole number"),
    "epsilon negative": option("colearning.epsilon=-1", "epsilon must be at least 0"),
    "unknown schedule": option("colearning.schedule=clrr", "colearning.schedule=clrr: must be one of clr, elr", USAGE),
    "unknown rule": option("colearning.local_epochs_rule=ilee", "did you mean ile?", USAGE),
    "unknown state policy": option("colearning.optimizer_state=forget", "forget: must be one of", USAGE),
    "overlap without mean": Case(
        'exchange: overlap=True cannot be combined with combine="predictions"',
        ["--colearning.exchange={overlap: true}", "--method=ensemble"],
    ),
    "overlap of momenta": Case(
        'overlap=True cannot be combined with optimizer_state="average"',
        ["--colearning.exchange={overlap: true}", "--colearning.optimizer_state=average"],
    ),
    "overlap with somebody missing": Case(
        'overlap=True cannot be combined with on_failure="continue_without"',
        ["--colearning.exchange={overlap: true}", "--colearning.on_failure=continue_without"],
    ),
    "fragments of momenta": Case(
        "fragments=2 averages one part of the model at a time",
        ["--colearning.exchange={fragments: 2}", "--colearning.optimizer_state=average"],
    ),
    "overlap of what": option("colearning.exchange={overlap: 2}", "exchange: overlap must be true or false; found 2"),
    "no outer optimizer": option("colearning.outer_optimizer=torch.optim.SGD", "SGD: is no OuterOptimizer", USAGE),
    "timeout negative": option("colearning.round_timeout=-1", "round_timeout must be a positive number"),
    "restarts negative": option("colearning.restarts=-1", "restarts must be a whole number, at least 0"),
    "unknown answer to failures": option("colearning.on_failure=pray", "on_failure=pray: must be one of", USAGE),
    "unknown fault": option("inject=[explode@center=dc0]", "cannot be read; write e.g."),
    "unknown method": option("method=vanila", "did you mean vanilla?", USAGE),
    # Data centers
    "no centers": option("centers=0", "centers=0: there must be at least 1 data center"),
    "three centers": option("centers=3", "centers=3 cannot share 2 ranks"),
    "centers no number": option("centers=two", "centers=two: must be a whole number or a list", USAGE),
    "an empty center": option("centers=[1,0,1]", "sizes must be whole numbers of ranks, at least 1 each"),
    "too few in sizes": option("centers=[1]", "centers=[1] needs 1 ranks, found 2"),
    # Folders
    "no name": option("name=", "name '' must be that of a folder"),
    "name is the folder of all": option("name=.", "name '.' must be that of a folder"),
    "name with an escape": option("name=a\x1b[2Jb", "must be that of a folder"),
    "name too long": option(f"name={'a' * 300}", "has 300 characters; use 200 at most"),
    "name leads out": option("name=../../x", "name '../../x' must be that of a folder"),
    "name is absolute": option("name=/tmp/x", "name '/tmp/x' must be that of a folder"),
    "runs cannot be made": option("runs=/proc/nowhere", "choose another --runs"),
    "runs is a file": option("runs=FOLDER/file", "choose another --runs"),
    "no such checkpoint": option("ckpt_path=/nowhere.ckpt", "ckpt_path=/nowhere.ckpt: there is no such file"),
    # The Trainer
    "unknown strategy": option("trainer.strategy=warp", "invalid strategy name"),
    "unknown accelerator": option("trainer.accelerator=abacus", "invalid accelerator name"),
    "unknown precision": option("trainer.precision=17", "trainer.precision=17: must be one of", USAGE),
    "epochs negative": option("trainer.max_epochs=-5", "`max_epochs` must be a non-negative integer"),
    "no duration": option("trainer.max_time=soon", "is not a valid duration"),
    "unknown callback": option("trainer.callbacks=NoSuchCallback", "=NoSuchCallback: there is no such class", USAGE),
    "devices": option("trainer.devices=5", "trainer.devices=5, but data center dc0 has 1"),
    # Data and models
    "missing shards": shards("--data.test=FOLDER/nowhere/test.h5 --data.train=FOLDER/nowhere/{center}.h5", "dc0.h5"),
    "missing test shard": shards("--data.test=FOLDER/nowhere.h5", "nowhere.h5"),
    "no shards named": Case(
        "required: train", ["--model=Classifier", "--model.network=digits_cnn", "--data=ShardDataModule"], USAGE, False
    ),
    "unknown network": shards("--model.network=digits_cmm", "'digits_cmm' is not known; nearest: digits_cnn"),
    "batch 0": shards("--data.batch_size=0", "batch_size"),
    "batch no number": shards("--data.batch_size=big", "data.batch_size=big: must be a whole number", USAGE),
    # Versions, and a run that another configuration has made
    "mixed versions": Case("dc1 has `protocol version = 0`", versions={"1": 0}),
    "resumed wider": Case("the checkpoint is of another model", ["--resume", "--model.width=9", "--name=made"]),
    "resumed by one data center": Case(
        "is a run of data centers dc0, dc1 with 2 ranks, and this is data centers dc0 with 2 ranks",
        ["--resume", "--centers=1", "--name=made"],
    ),
}
TOY = ["--model", "faulty.Plain", "--colearning.rounds=2", "--colearning.local_epochs=2"]


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    """All cases in one launch: each ends its run on all ranks, and the same processes go on to the next one. The first
    one is right, and makes the run that others try to resume."""
    folder = tmp_path_factory.mktemp("inputs")
    assert data(["digits", "--out", str(folder), "--centers", "2"]) == 0
    (folder / "file").touch()
    always = {"--trainer.accelerator": "cpu", "--centers": "2", "--runs": str(folder / "runs")}
    cases = {"made": {"arguments": ["fit", *TOY, "--name=made", *(f"{key}={value}" for key, value in always.items())]}}
    for name, case in CASES.items():
        arguments = [argument.replace("FOLDER", str(folder)) for argument in case.arguments]
        if case.yaml is not None:
            (folder / f"{name}.yaml").write_text(case.yaml)
            arguments.append(f"--config={folder / name}.yaml")
        given = {argument.split("=")[0] for argument in arguments}
        rest = always | {"--name": name.replace(" ", "-")}
        arguments += [f"{key}={value}" for key, value in rest.items() if key not in given]
        cases[name] = {"arguments": ["fit", *(TOY if case.toy else []), *arguments], "versions": case.versions}
    (folder / "cases.json").write_text(json.dumps(cases))
    return folder, launch(RANKS, "exit_codes.py", folder / "cases.json", timeout=480)


@pytest.mark.parametrize("name", CASES)
def test_input(finished, name):
    folder, _ = finished
    codes = {path.stem: path.read_text() for path in (folder / name).glob("*.code")}
    said = "".join(path.read_text() for path in sorted((folder / name).glob("*.err")))
    assert codes == {str(rank): str(CASES[name].code) for rank in range(RANKS)}, said
    assert said.count("colearn-hpc: error:") == 1 and said.count(CASES[name].says) >= 1, said
    assert "Traceback" not in said, said


def test_nobody_left_behind(finished):
    folder, done = finished
    assert (folder / "made" / "0.code").read_text() == "0", (folder / "made" / "0.err").read_text()
    assert done.code != 0 and done.orphans == []


OTHER_COMMANDS = {
    "no command": ([], "usage: colearn-hpc COMMAND"),
    "unknown command": (["fitt"], "no command 'fitt'"),
    "launch without centers": (["launch", "--", "fit"], "--centers"),
    "launch of no center": (
        ["launch", "--centers", "0", "--", "fit"],
        "must be a whole number of at least 1, found '0'",
    ),
    "launch of nothing": (["launch", "--centers", "2"], "nothing to launch"),
    "data of no source": (["data", "digitz", "--out", "x", "--centers", "2"], "digitz"),
    "data for no center": (["data", "digits", "--out", "FOLDER/d", "--centers", "0"], "centers"),
    "data into a file": (["data", "digits", "--out", "FOLDER/file/d", "--centers", "2"], "FOLDER/file"),
    "study of no file": (["study", "run", "/nowhere.yaml"], "cannot be read"),
    "study by no launcher": (["study", "run", "/nowhere.yaml", "--launcher", "pigeon"], "invalid choice: 'pigeon'"),
    "report of no run": (["report", "FOLDER/nowhere"], "nowhere"),
    "study report of no study": (["study", "report", "FOLDER/nowhere"], "nowhere"),
    "watch of no run": (["watch", "FOLDER/nowhere"], "is no run folder"),
    "doctor of what": (["doctor", "--centers", "many"], "whole numbers, as in 5 or [4,4,2]; found 'many'"),
}


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_other_commands(tmp_path, capsys, name):
    """One process, no ranks."""
    (tmp_path / "file").touch()
    arguments, says = OTHER_COMMANDS[name]
    try:
        code = main([argument.replace("FOLDER", str(tmp_path)) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code not in (0, None)
    assert says.replace("FOLDER", str(tmp_path)) in captured.err + captured.out
    assert "Traceback" not in captured.err
