"""The tables of docs/lightning.md: every flag of the Trainer and every built-in callback, tried."""

import inspect
import json
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl

pytestmark = pytest.mark.mpi
PAGE = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()
# | `name` | works | how |
ROW = re.compile(r"^\| `(\w+)` \| (works|works differently|refused) \|(.*) \|$", re.MULTILINE)
ROWS = {name: (verdict, how.strip()) for name, verdict, how in ROW.findall(PAGE)}
FLAGS = [name for name in inspect.signature(pl.Trainer.__init__).parameters if name != "self"]


@pytest.fixture(scope="module")
def tried(launch, tmp_path_factory):
    """What became of each row, in one launch of two data centers."""
    out = tmp_path_factory.mktemp("table")
    launch(2, "lightning_table.py", out, timeout=400).ok()
    return json.loads((out / "rows.json").read_text())


def test_every_flag_and_callback_has_a_row():
    assert sorted(ROWS) == sorted([*FLAGS, *pl.callbacks.__all__])


@pytest.mark.parametrize("name", ROWS)
def test_row(tried, name):
    verdict, how = ROWS[name]
    if verdict == "refused":
        (message,) = re.findall(r"“(.*)”", how)  # what is quoted there is said
        assert tried[name].startswith("refused: ") and message in tried[name], tried[name]
    else:
        assert tried[name] == {"works": "works", "works differently": "differently"}[verdict], tried[name]
        assert how or verdict == "works"
