"""Who may import whom (the table of CONTRIBUTING.md), function-level imports included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "colearn_hpc"
ROOT = {"errors", "faults", "_version", "_torchmetrics", "_torchvision"}  # open to every room
MAY_IMPORT = {
    "algorithm": {"algorithm"},
    "mpi": {"mpi", "algorithm"},
    "privacy": {"privacy", "algorithm"},
    "trainer": {"trainer", "mpi", "privacy", "algorithm"},
    "data": {"data"},
    "models": {"models"},
    "studies": {"studies"},
    "cli": {"cli", "studies", "trainer", "mpi", "privacy", "algorithm", "data", "models"},
}
FORBIDDEN_LIBRARIES = {
    "algorithm": {"mpi4py", "pytorch_lightning", "lightning", "lightning_fabric", "h5py"},
    "privacy": {"mpi4py", "pytorch_lightning", "lightning", "lightning_fabric", "h5py"},
    "trainer": {"mpi4py"},
    "data": {"mpi4py"},
    "models": {"mpi4py"},
    "studies": {"mpi4py", "torch", "pytorch_lightning"},
    "cli": {"mpi4py"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at any level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        return  # the package's own face: names, version, errors
    room = parts[0]
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("colearn_hpc.")}
    allowed = MAY_IMPORT[room] | ROOT
    unknown = {r for r in rooms if not (PACKAGE / r).exists() and not (PACKAGE / f"{r}.py").exists()}
    assert rooms - allowed - unknown == set(), f"{room} may not import {rooms - allowed - unknown}"
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not libraries & FORBIDDEN_LIBRARIES.get(room, set())


def test_only_mpi_imports_mpi4py():
    users = {path.relative_to(PACKAGE).parts[0] for path in MODULES if any("mpi4py" in n for n in imported(path))}
    assert users == {"mpi"}


def test_the_walk_sees_function_level_imports(tmp_path):
    """A contract that cannot fail is none."""
    file = tmp_path / "hidden.py"
    file.write_text("def f():\n    from mpi4py import MPI\n    return MPI\n")
    assert imported(file) == {"mpi4py.MPI"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import colearn_hpc", ["mpi4py", "torch", "pytorch_lightning"]),
        ("import colearn_hpc.algorithm.local_epochs", ["mpi4py", "pytorch_lightning"]),
        ("from colearn_hpc import CoLearning; CoLearning(rounds=1)", ["mpi4py.MPI"]),
        ("from colearn_hpc.cli import main; main(['--help'])", ["mpi4py", "torch", "numpy"]),
        ("from colearn_hpc.cli.launch import main", ["mpi4py", "torch", "numpy"]),
    ],
)
def test_imports_are_lazy(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_files_stay_small():
    """Over 400 lines a file is split, or explains itself in its first lines."""
    long = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_public_names_resolve():
    import colearn_hpc

    for name in colearn_hpc.__all__:
        assert getattr(colearn_hpc, name) is not None
