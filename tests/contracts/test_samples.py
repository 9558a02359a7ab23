"""A set of very many cases: a seeded sample of it in ``make test``, all of it in ``make test-all``."""

import pytest

pytest_plugins = ["pytester"]

MANY = """
import pytest

@pytest.mark.exhaustive(sample=3)
@pytest.mark.parametrize("n", range(20))
def test_many(n):
    pass

@pytest.mark.exhaustive(sample=0)
def test_only_in_all():
    pass

def test_usual():
    pass
"""


@pytest.fixture
def run(pytester, request):
    pytester.makeconftest((request.config.rootpath / "tests/conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n  mpi: MPI\n  exhaustive: many\n")
    pytester.makepyfile(test_cases=MANY)

    def go(*options: str) -> set[str]:
        result = pytester.inline_run(*options)
        return {report.nodeid.partition("::")[2] for report in result.getreports("pytest_runtest_logreport")}

    return go


def test_a_sample_is_chosen_by_its_seed(run):
    first = run()
    assert len(first) == 4 and "test_usual" in first and "test_only_in_all" not in first
    assert first == run()
    assert any(run(f"--sample-seed={seed}") != first for seed in range(1, 6))


def test_all_of_them(run):
    assert len(run("--all")) == 22


def test_who_is_named_runs(run):
    assert run("test_cases.py::test_only_in_all", "test_cases.py::test_many[7]") == {"test_only_in_all", "test_many[7]"}
