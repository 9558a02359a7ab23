"""Any LightningModule and any Trainer take the callback unchanged."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).parent / "programs" / "unchanged.py"
SCENARIOS = re.findall(r"@scenario\ndef (\w+)", PROGRAM.read_text())


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    """All scenarios in one launch of two data centers: starting ranks costs more than training them."""
    return launch(2, "unchanged.py", tmp_path_factory.mktemp("unchanged"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(finished, name):
    assert f"passed {name}\n" in finished.out, finished.err


def test_all_ran(finished):
    assert finished.ok().count("passed ") == len(SCENARIOS) > 15
    assert not finished.orphans
