"""No dependency without a line in docs/dependencies.md, and none imported before it is needed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def required() -> set[str]:
    """Every package that setup.py names, in lower case."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
    given = {k.arg: k.value for k in call.keywords if k.arg in ("install_requires", "extras_require")}
    base, extras = ast.literal_eval(given["install_requires"]), ast.literal_eval(given["extras_require"])
    return {Requirement(text).name.lower() for part in (base, *extras.values()) for text in part}


def test_every_dependency_is_explained():
    rows = re.findall(r"^\| ([\w-]+) \|.*\| [\d.]+ / [\d.]+ \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.M)
    assert required() - {name.lower() for name in rows} == set()
    assert {"matplotlib", "torch", "pytest"} <= required()


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import colearn_hpc", ["rich", "matplotlib", "jinja2"]),
        ("from colearn_hpc.cli import main; main(['--help'])", ["rich", "matplotlib", "jinja2"]),
        ("from colearn_hpc.cli.launch import main", ["rich", "matplotlib", "jinja2"]),
        ("import colearn_hpc.cli.watch", ["matplotlib", "jinja2", "numpy"]),
    ],
)
def test_libraries_of_reports_come_with_reports_alone(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"
