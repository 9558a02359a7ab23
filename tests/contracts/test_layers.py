"""Who may import whom (the table of CONTRIBUTING.md), by room and by file; function-level imports included."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import colearn_hpc

PACKAGE = Path(__file__).parents[2] / "colearn_hpc"
MODULES = sorted(PACKAGE.rglob("*.py"))
# To every room without an entry in CLOSED.
OPEN = {"errors", "faults", "_lightning", "_version", "_quick_imports", "_torchvision"}

# Rooms and top-level files -> what of the package they may import besides themselves and what is open.
MAY_IMPORT = {
    "algorithm": set(),
    "protocol": set(),
    "between": {"algorithm", "protocol"},
    "privacy": {"algorithm"},
    "mpi": {"algorithm", "protocol", "between"},
    "federation": {"algorithm", "protocol", "between", "privacy"},
    "join": {"between", "mpi", "federation"},
    "trainer": {"algorithm", "protocol", "between", "join", "privacy"},
    "data": set(),
    "models": set(),
    "studies": set(),
    "cli": {
        *("algorithm", "protocol", "between", "join", "mpi", "federation", "trainer", "privacy"),
        *("data", "models", "studies"),
    },
    "launching": {"join"},
    "__init__": {"algorithm", "join", "launching", "trainer"},
    "__main__": {"cli"},
}
CLOSED = {"algorithm": {"errors"}, "protocol": {"errors"}}

# Rooms and top-level files -> all that they may import from elsewhere, besides the standard library.
ONLY_LIBRARIES = {
    "algorithm": {"torch", "numpy", "numba"},  # the last one where it is installed, in compiled.py
    "protocol": set(),
    "between": {"torch"},
    "mpi": {"mpi4py", "torch", "numpy"},
    "join": set(),
    "launching": {"cloudpickle"},
    "__init__": set(),
    "__main__": set(),
}
FORBIDDEN_LIBRARIES = {
    "federation": {"mpi4py", "h5py"},
    "privacy": {"mpi4py", "h5py"},
    "trainer": {"mpi4py"},
    "data": {"mpi4py"},
    "models": {"mpi4py"},
    "studies": {"mpi4py", "torch"},
    "cli": {"mpi4py"},
}

# What a file over LINES knows that belongs together.
LINES = 500
LONG = {
    "protocol/run.py": "the state of a round and the one writer of it: every transition in one class",
    "protocol/settings.py": "every choice of a user, and the one table of what cannot be had together",
    "trainer/callback.py": "Lightning's hooks, the steps of a round, and the arguments with their documentation",
}


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


def file_of(name: str, package: Path = PACKAGE) -> Path | None:
    """The file in which an imported name of the package is at home; None for other packages' names."""
    first, *parts = name.split(".")
    if first != "colearn_hpc":
        return None
    if len(parts) == 1 and parts[0] in colearn_hpc._HOMES:
        parts = colearn_hpc._HOMES[parts[0]].split(".")[1:]
    while parts:
        for file in (package.joinpath(*parts).with_suffix(".py"), package.joinpath(*parts, "__init__.py")):
            if file.exists():
                return file
        parts.pop()
    return package / "__init__.py"


def room_of(path: Path, package: Path = PACKAGE) -> str:
    """A room, or a top-level file without its suffix."""
    return Path(path.relative_to(package).parts[0]).stem


def graph_of(files: list[Path], package: Path = PACKAGE) -> dict[str, set[str]]:
    """Who imports whom, by file; what is imported for annotations alone counts."""
    graph = {}
    for path in files:
        found = {file_of(name, package) for name in imported(path)} - {None, path}
        graph[str(path.relative_to(package))] = {str(file.relative_to(package)) for file in found}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a circle, the first one again at the end; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    room = room_of(path)
    rooms = {room_of(file) for name in imported(path) if (file := file_of(name)) is not None}
    allowed = {room} | MAY_IMPORT.get(room, set()) | CLOSED.get(room, OPEN)
    assert rooms <= allowed, f"{room} may not import {rooms - allowed}"
    libraries = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {"colearn_hpc"}
    if room in ONLY_LIBRARIES:
        assert libraries <= ONLY_LIBRARIES[room]
    assert not libraries & FORBIDDEN_LIBRARIES.get(room, set())


def test_every_room_has_its_rule():
    assert {room_of(path) for path in MODULES} == MAY_IMPORT.keys() | OPEN
    assert ONLY_LIBRARIES.keys() | FORBIDDEN_LIBRARIES.keys() == MAY_IMPORT.keys()


def test_only_mpi_imports_mpi4py():
    users = {room_of(path) for path in MODULES if any("mpi4py" in name for name in imported(path))}
    assert users == {"mpi"}


def test_lightning_is_named_in_one_place():
    """It has two names, and whoever imports one of them himself is for that one alone."""
    libraries = {"pytorch_lightning", "lightning", "lightning_fabric"}
    users = {path.name for path in MODULES if any(name.split(".")[0] in libraries for name in imported(path))}
    assert users == {"_lightning.py"}


def test_only_join_and_the_command_choose_mpi():
    users = {room_of(p) for p in MODULES if any(name.startswith("colearn_hpc.mpi.") for name in imported(p))}
    assert users == {"mpi", "join", "cli"}


def test_the_coordinator_knows_no_torch():
    """It runs on a small machine, and no user's code in it: so it, and whatever of ours it imports, has no torch."""
    graph = graph_of(MODULES)
    seen, ahead = set(), {name for name in graph if name.startswith("federation/coordinator/")}
    assert ahead
    while ahead:
        seen |= ahead
        ahead = {after for name in ahead for after in graph[name]} - seen
    libraries = {name.split(".")[0] for file in seen for name in imported(PACKAGE / file)}
    assert not libraries & {"torch", "pytorch_lightning", "mpi4py"}


def test_no_circle_among_files():
    found = circle(graph_of(MODULES))
    assert not found, " -> ".join(found)


def test_the_search_sees_a_circle(tmp_path):
    """A contract that cannot fail is none: through a public name, and through an import for annotations alone."""
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "callback.py").write_text("def f():\n    from colearn_hpc.trainer import standing\n")
    (tmp_path / "trainer" / "standing.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from colearn_hpc import CoLearning\n"
    )
    graph = graph_of(sorted(tmp_path.rglob("*.py")), tmp_path)
    assert graph == {"trainer/callback.py": {"trainer/standing.py"}, "trainer/standing.py": {"trainer/callback.py"}}
    assert set(circle(graph)) == graph.keys()
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_the_walk_sees_function_level_imports(tmp_path):
    file = tmp_path / "hidden.py"
    file.write_text("def f():\n    from mpi4py import MPI\n    return MPI\n")
    assert imported(file) == {"mpi4py.MPI"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("colearn_hpc.mpi.site.MpiSite", "mpi/site.py"),
        ("colearn_hpc.mpi.site", "mpi/site.py"),
        ("colearn_hpc.models.Classifier", "models/__init__.py"),
        ("colearn_hpc.CoLearning", "trainer/callback.py"),
        ("colearn_hpc.errors", "errors.py"),
        ("colearn_hpc", "__init__.py"),
    ],
)
def test_names_are_at_home_in_files(name, file):
    assert file_of(name) == PACKAGE / file and file_of("torch.nn") is None


# The tests' environment has a torchvision that does not load beside its torch. A library leaves that as it is.
REPAIR = "from colearn_hpc._torchvision import make_torchvision_importable as repair; repair()"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import colearn_hpc", ["mpi4py", "torch", "pytorch_lightning"]),
        ("import colearn_hpc.algorithm.local_epochs", ["mpi4py", "pytorch_lightning"]),
        ("import colearn_hpc.protocol.run, colearn_hpc.protocol.conversation", ["mpi4py", "torch", "numpy"]),
        ("import colearn_hpc.federation.coordinator.service, colearn_hpc.cli.serve", ["torch", "mpi4py"]),
        ("import colearn_hpc.between, colearn_hpc.join", ["mpi4py.MPI", "pytorch_lightning"]),
        (f"{REPAIR}; from colearn_hpc import CoLearning; CoLearning(rounds=1)", ["mpi4py.MPI"]),
        ("from colearn_hpc.cli import main; main(['--help'])", ["mpi4py", "torch", "numpy"]),
        ("from colearn_hpc.cli.launch import main", ["mpi4py", "torch", "numpy"]),
        ("import colearn_hpc.cli.federation, colearn_hpc.cli.federation_doctor", ["mpi4py", "torch", "grpc", "numpy"]),
        ("import colearn_hpc.cli.verify", ["mpi4py", "torch", "pytorch_lightning"]),
    ],
)
def test_imports_are_lazy(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_files_stay_small():
    """A file is split by what it knows, not by its length; a long one says here what that is."""
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > LINES and name not in LONG} == {}
    assert all(lengths[name] > LINES for name in LONG), "an exception that is none any more"


def test_public_names_resolve():
    for name in colearn_hpc.__all__:
        assert getattr(colearn_hpc, name) is not None
