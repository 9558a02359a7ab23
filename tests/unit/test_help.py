"""Help, completion, and what is said of a mistyped command line."""

import inspect
import os
import subprocess
import sys

import pytest

from colearn_hpc.cli import COMMANDS, fit_help, main
from colearn_hpc.cli.completion import options
from colearn_hpc.cli.options import OPTIONS, SET_BY_US
from colearn_hpc.cli.usage import in_one_line


def test_help_of_fit_without_torch():
    """It is asked for often, and torch takes seconds."""
    code = (
        "import sys; from colearn_hpc.cli import main; main(['fit', '--help']); "
        "print([m for m in ('torch', 'pytorch_lightning', 'jsonargparse', 'mpi4py.MPI') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["the run:", "co-learning (in a file: under `colearning:`):", "model and data:", "more:"]


def test_help_of_fit_names_all_arguments_of_colearning():
    from colearn_hpc import CoLearning

    listed = dict(fit_help.colearning_options())
    names = list(inspect.signature(CoLearning).parameters)
    assert [option.split()[0] for option in listed] == [
        f"--colearning.{name}" for name in names if name not in SET_BY_US
    ]
    assert listed["--colearning.epsilon EPSILON"].startswith("ε of eq. 4")
    assert listed["--colearning.rounds ROUNDS"].endswith("(default: null)")
    assert all("``" not in text and ":class:" not in text for text in listed.values())


def test_help_fits_the_terminal():
    page = fit_help.page("fit", width=60)
    assert max(map(len, page.splitlines())) <= 60
    assert {f"--{option.name}" for option in OPTIONS} <= set(options(page))
    assert "--resume" not in options(fit_help.page("test", 60))


def test_one_rank_prints_the_help(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert main(["fit", "--help"]) == 0
    assert capsys.readouterr().out == ""


PARSER = "Does not validate against any of the Union subtypes\n  "
MODULE = "<class 'pytorch_lightning.core.module.LightningModule'>, <class 'NoneType'>"
WRONG = {
    "method=vanila: must be one of colearning, vanilla; did you mean vanilla?": (
        "Parser key \"method\":\n  Expected a typing.Literal['colearning', 'vanilla']. Got value: vanila"
    ),
    "colearning.rounds=abc: must be a whole number or null": (
        f"Parser key \"colearning.rounds\":\n  {PARSER}Errors:\n    - Expected a <class 'int'>\n"
        "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: abc"
    ),
    "model=Classifer: there is no such class; did you mean Classifier?": (
        f'Parser key "model":\n  {PARSER}Subtypes: [{MODULE}]\n  Errors:\n'
        "    - Expected a dot import path string: Classifer\n  Given value: Classifer"
    ),
    "model=colearn_hpc.models.Clasifier: module 'colearn_hpc.models' has no attribute 'Clasifier'; "
    "did you mean colearn_hpc.models.Classifier?": (
        f'Parser key "model":\n  {PARSER}Subtypes: [{MODULE}]\n  Errors:\n'
        "    - Problem with given class_path 'colearn_hpc.models.Clasifier':\n"
        "        module 'colearn_hpc.models' has no attribute 'Clasifier'\n  Given value: colearn_hpc.models.Clasifier"
    ),
    "model.netwrk: colearn_hpc.models.Classifier has no such argument; did you mean network?": (
        "Parser key \"model\":\n  Errors:\n    - Problem with given class_path 'colearn_hpc.models.Classifier':\n"
        "        Option 'netwrk' is not accepted\n  Given value: NestedArg(key='netwrk', val='x')"
    ),
    "data.batch_size=big: must be a whole number": (
        "Parser key \"data\":\n  Errors:\n    - Problem with given class_path 'colearn_hpc.data.ShardDataModule':\n"
        "        Parser key \"batch_size\":\n          Expected a <class 'int'>. Got value: big\n"
        "    - Expected a <class 'NoneType'>\n  Given value: NestedArg(key='batch_size', val='big')"
    ),
    "colearning.epsilon=abc: must be a number or auto": (
        f"Parser key \"colearning.epsilon\":\n  {PARSER}Errors:\n    - Expected a <class 'float'>. Got value: abc\n"
        "    - Expected a typing.Literal['auto']. Got value: abc\n  Given value: abc"
    ),
    "config=/nowhere/quickstart.yaml: there is no such file; `colearn-hpc configs copy quickstart` brings it": (
        "Parser key \"config\": File does not exist: '/nowhere/quickstart.yaml'"
    ),
    "config=/nowhere/mine.yaml: there is no such file; "
    "`colearn-hpc configs list` names those that come with this package": (
        "Parser key \"config\": File does not exist: '/nowhere/mine.yaml'"
    ),
    "model=torch.nn.Linear: is no LightningModule": (
        f'Parser key "model":\n  {PARSER}Errors:\n    - Import path does not correspond to a subclass of '
        "LightningModule\n    - Expected a <class 'NoneType'>\n  Given value: torch.nn.Linear"
    ),
    "unrecognized arguments: --colearning.epsilonn 3; did you mean colearning.epsilon?": (
        "unrecognized arguments: --colearning.epsilonn 3"
    ),
    "unrecognized arguments: --nosuchthing; `colearn-hpc fit --help` lists what there is": (
        "unrecognized arguments: --nosuchthing"
    ),
    "something else that nobody has thought of": "something else\n  that nobody has\n thought of",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_takes_one_line(line):
    import colearn_hpc.models

    assert colearn_hpc.models.Classifier
    assert in_one_line(WRONG[line], ["colearning.epsilon", "colearning.rounds", "trainer.max_epochs"]) == line


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "script"
    done = subprocess.run(
        [sys.executable, "-m", "colearn_hpc", "completion", "bash"], capture_output=True, text=True, check=True
    )
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("st", {"study", "stop"}),
        ("fit --colearning.eps", {"--colearning.epsilon"}),
        (
            "fit --trainer.acc",
            {"--trainer.accelerator", "--trainer.accelerator.help", "--trainer.accumulate_grad_batches"},
        ),
        ("test --trainer.accel", {"--trainer.accelerator", "--trainer.accelerator.help"}),
        ("data dig", {"digits"}),
        ("data digits --test", {"--test-fraction"}),
        ("launch --centers 5 -- fi", {"fit"}),
        ("launch --centers 5 -- fit --res", {"--resume"}),
        ("fit --config con", set()),  # the shell's own completion of files
    ],
)
def test_completion(script, line, offered):
    words = ["colearn-hpc", *line.split()]
    typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    ask = f"source {script}; {typed}; _colearn_hpc; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_completion_knows_every_command(script):
    assert all(f"    {command})" in script.read_text() for command in COMMANDS)


def test_a_mistyped_command(capsys):
    assert main(["lanch"]) == 2
    assert capsys.readouterr().err == "colearn-hpc: error: no command 'lanch'; did you mean launch?\n"
    assert main(["xyz"]) == 2
    assert "no command 'xyz'; there are fit, validate, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("launch --centrs 5 -- fit", "launch: error: the following arguments are required: --centers; found --centrs"),
        ("launch --centers five -- fit", "must be a whole number of at least 1, found 'five'"),
        ("launch --centers 2", "nothing to launch; e.g. colearn-hpc launch --centers 5 -- fit --config"),
        ("data imagefoldr photos", "did you mean imagefolder?"),
        (
            "data digits --out x --centrs 2",
            "digits: error: unrecognized arguments: --centrs 2; did you mean --centers?",
        ),
        ("data", "required: SOURCE; `colearn-hpc data --help` lists what there is"),
        ("report", "required: run; `colearn-hpc report --help` lists what there is"),
    ],
)
def test_a_mistake_in_another_command_takes_one_line(line, says, capsys):
    with pytest.raises(SystemExit) as left:
        main(line.split())
    assert left.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"colearn-hpc {line.split()[0]}") and says in told


def test_a_configuration_that_does_not_come_with_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "copy", "quickstrt"]) == 1
    assert "there is no quickstrt; did you mean quickstart?" in capsys.readouterr().err
    assert main(["configs", "copy", "xyz"]) == 1
    assert "there are audioset_crnn.yaml, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["--help", "fit --help", "configs list", "explain 86"])
def test_a_reader_that_leaves(command):
    """`| head -1`: no traceback, and no success."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "colearn_hpc", *command.split()],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
