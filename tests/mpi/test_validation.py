"""What sees which model, when; and monitors that decide alike in all data centers."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).parent / "programs" / "validated.py"
SCENARIOS = re.findall(r"@scenario\ndef (\w+)", PROGRAM.read_text())


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    return launch(2, "validated.py", tmp_path_factory.mktemp("validated"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(finished, name):
    assert f"passed {name}\n" in finished.out, finished.err


def test_all_ran(finished):
    assert finished.ok().count("passed ") == len(SCENARIOS) > 8
    assert not finished.orphans
