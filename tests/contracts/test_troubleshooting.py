"""Every kind of error has a key, and every key a section that `colearn-hpc explain` prints."""

import ast
import traceback
from pathlib import Path

import pytest

from colearn_hpc.cli import main
from colearn_hpc.cli.explain import sections
from colearn_hpc.errors import DataError, PeerError, RoundTimeoutError
from colearn_hpc.protocol.messages import describe_error

PACKAGE = Path(__file__).parents[2] / "colearn_hpc"


def keys() -> dict[str, str]:
    """Class -> key, of every class that is a ColearnError, its base's where it has none of its own."""
    found = {"ColearnError": ""}
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    for _ in range(5):  # as deep as classes are derived
        for node in classes:
            for base in (base.id for base in node.bases if isinstance(base, ast.Name) and base.id in found):
                own = [
                    line.value.value
                    for line in node.body
                    if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "key"
                ]
                found[node.name] = own[0] if own else found[base]
    return found


def test_every_kind_has_a_section():
    found = keys()
    assert {"DataError", "UsageError", "SubmissionError"} <= set(found)
    without = {name for name, key in found.items() if not key}
    assert without == {"ColearnError", "PeerError"}, "PeerError's text has another error's key"
    assert set(found.values()) - {""} == set(sections()) - {"exit-codes"}


def test_the_message_ends_with_the_key():
    error = DataError("dc1.h5: is missing; copy it.")
    assert describe_error(error) == "dc1.h5: is missing; copy it. (more: colearn-hpc explain data)"
    assert str(error) == "dc1.h5: is missing; copy it."
    assert traceback.format_exception_only(error)[-1] == "(more: colearn-hpc explain data)\n"
    assert describe_error(PeerError("told")) == "told"
    assert describe_error(RoundTimeoutError("late")).endswith("explain timeout)")


@pytest.mark.parametrize("asked", ["data", "86", "137"])
def test_explain(asked, capsys):
    assert main(["explain", asked]) == 0
    text = capsys.readouterr().out
    assert text.strip() == sections()["data" if asked == "data" else "exit-codes"]


def test_explain_without_a_key_lists_them(capsys):
    assert main(["explain"]) == 0
    assert capsys.readouterr().out == f"keys: {', '.join(sections())}\n"


def test_explain_an_unknown_key(capsys):
    assert main(["explain", "dat"]) == 2
    assert capsys.readouterr().err == "colearn-hpc: error: no key 'dat'; did you mean data?\n"
