"""Every command line that the documentation shows is one: the commands' own parsers take it."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import types
from argparse import ArgumentError

import documents
import pytest
from documents import ROOT, CommandLine

from colearn_hpc.cli import COMMANDS, LIGHTNING
from colearn_hpc.cli.parsing import Parser

# Words that stand for a value of the reader's own.
STANDS_FOR = {"SOURCE": "digits", "CODE": "85", "PORT": "9000", "N": "2", "K": "2", "L": "2"}
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


class ParsedError(Exception):
    """The parser has taken the line; the command is not to run."""


@pytest.fixture
def parse_only(monkeypatch):
    """The commands' own parsers, but they end where they have parsed."""
    parse = Parser.parse_args

    def stop(self, *arguments, **more):
        parse(self, *arguments, **more)
        raise ParsedError

    monkeypatch.setattr(Parser, "parse_args", stop)


@pytest.fixture(scope="module")
def lightning():
    """``lightning(command)``: the parser that ``fit`` or an evaluation makes for itself."""
    from colearn_hpc.cli import evaluate, fit

    made = {}

    def parser(command):
        if command not in made:

            def keep(self, parser, args):
                made[command] = parser
                raise ParsedError

            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ParsedError):
                patch.setattr(fit.ColearnCLI, "parse_arguments", keep)
                fit.ColearnCLI(fit.Session()) if command == "fit" else evaluate.EvaluationCLI(
                    fit.Session(), evaluate.Asked()
                )
        return made[command]

    return parser


@pytest.fixture(autouse=True)
def code_of_the_reader(monkeypatch):
    """What docs/extending.md has a reader write into ``my_code.py``."""
    module = types.ModuleType("my_code")
    monkeypatch.setitem(sys.modules, "my_code", module)
    schedule = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    exec(schedule[1], module.__dict__)


def wrong(words: list[str], whole: bool, lightning) -> str:
    """What a command says of its command line; nothing where it takes it."""
    if not words or words[0].startswith("-"):
        return "" if words in (["--help"], ["--version"]) else f"no command: {words}"
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        return f"no command {command!r}"
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            if COMMANDS[command][0] in LIGHTNING:
                parse_lightning(command, rest, lightning(command))
            else:
                importlib.import_module(f"colearn_hpc.cli.{COMMANDS[command][0]}").main(rest)
        except ParsedError:
            pass
        except ArgumentError as error:
            return str(error)
        except SystemExit as left:
            if left.code and (whole or "required" not in said.getvalue()):
                return said.getvalue()
    # What is launched, and what `again` is asked about, is a command line too.
    if command == "launch" and "--" in rest and (inner := rest[rest.index("--") + 1 :]) and inner[0] in COMMANDS:
        return wrong(inner, whole, lightning)
    if command == "again" and "--" in rest:
        return wrong(["fit", *rest[rest.index("--") + 1 :]], whole, lightning)
    return ""


def parse_lightning(command, rest, parser) -> None:
    """A configuration that is not here, for it is the reader's own, is the quickstart's."""
    from colearn_hpc.cli import evaluate

    if command != "fit":
        _, rest = evaluate.read(command, rest)
    if not {"-h", "--help", "--help.trainer"} & set(rest):
        at = [k + 1 for k, word in enumerate(rest) if word == "--config"]
        for k in at:
            rest = [*rest[:k], rest[k] if (ROOT / rest[k]).exists() else QUICKSTART, *rest[k + 1 :]]
        parser.parse_args([command, *([] if at else ["--config", QUICKSTART]), *rest])


def lines(paths) -> dict[tuple[tuple[str, ...], bool], CommandLine]:
    """Each different one, with one place where it stands."""
    return {(one.words, one.whole): one for path in paths for one in documents.command_lines(path)}


def test_every_command_line_is_one(parse_only, lightning, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = lines(documents.documents())
    assert len(found) > 100 and {line.words[0] for line in found.values()} >= {"fit", "launch", "serve", "study"}
    against = []
    for line in found.values():
        words = [STANDS_FOR.get(word, word) for word in line.words]
        if problem := wrong(words, line.whole, lightning):
            against.append(f"{line.where}: colearn-hpc {' '.join(line.words)}: {' '.join(problem.split())[:300]}")
    assert against == []


@pytest.mark.parametrize(
    ("text", "words", "whole"),
    [
        ("    colearn-hpc data check d  # a comment\n", "data check d", True),
        ("```bash\ncolearn-hpc report \\\n  runs/a | tee b\n```\n", "report runs/a", True),
        ("Say `colearn-hpc fit\n--resume`.\n", "fit --resume", False),
        ("    srun bash -c 'X=1 exec colearn-hpc fit …'\n", "fit", False),
        ("    mpirun -n 4 colearn-hpc doctor : -n 2 colearn\n", "doctor", True),
    ],
)
def test_what_counts_as_a_command_line(text, words, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (page := tmp_path / "page.md").write_text(text)
    (line,) = documents.command_lines(page)
    assert (" ".join(line.words), line.whole) == (words, whole)


@pytest.mark.parametrize(
    "line",
    [
        "lanch --centers 2 -- fit",
        "launch --centrs 2 -- fit",
        "launch --centers 2 -- fit --colearning.epsilonn 3",
        "fit --config configs/quickstart.yaml --resumes",
        "test runs/NAME --trainer.devicez 1",
        "data digit --out d",
        "report",
        "serve",
        "again x",
    ],
)
def test_a_wrong_one_is_found(line, parse_only, lightning, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert wrong(line.split(), True, lightning)


def test_the_block_of_a_batch_script_is_the_scripts():
    """What docs/tutorials/slurm.md has a reader edit is there to be edited."""
    script = (ROOT / "slurm" / "colearn.sbatch").read_text()
    page = (ROOT / "docs" / "tutorials" / "slurm.md").read_text()
    shown = re.findall(r"^    (#+SBATCH --[\w-]+=|[A-Z]+=)", page, re.MULTILINE)
    assert len(shown) > 6
    assert [line for line in shown if not re.search(rf"^{re.escape(line)}", script, re.MULTILINE)] == []


def test_a_change_to_a_file():
    assert documents.changed("a\nb\nc\n", " a\n-b\n+x\n+y\n c\n") == "a\nx\ny\nc\n"
    for twice in ("b\nb\n", "a\n"):
        with pytest.raises(ValueError, match="times in the file"):
            documents.changed(twice, "-b\n")


def test_a_page_as_a_script(tmp_path):
    (page := tmp_path / "page.md").write_text(
        '```python title="a.py"\nx = 1\n```\n```python\nnot run\n```\n```diff title="a.py"\n-x = 1\n+x = 2\n```\n'
        "```bash\npython a.py\ncolearn-hpc launch --centers 2 -- fit --config c.yaml\n```\n"
    )
    told = documents.script(page)
    assert "not run" not in told and told.count("cat > a.py") == 2
    assert re.search(r"python a.py\n.* fit --config c.yaml --colearning.rounds=2\n", told)
