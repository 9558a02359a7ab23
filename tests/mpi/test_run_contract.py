"""Data centers whose file systems are apart hold the same contract, the same rounds and the same shared model."""

import json

import pytest

from colearn_hpc.cli import verify
from colearn_hpc.cli.findings import OK

pytestmark = pytest.mark.mpi


def test_everyone_can_verify_the_run(launch, tmp_path):
    launch(3, "apart.py", tmp_path).ok()
    folders = [tmp_path / f"dc{k}" for k in range(3)]
    for file in ("contract.json", "rounds.jsonl"):
        assert len({(folder / file).read_bytes() for folder in folders}) == 1
    lines = [json.loads(line) for line in (folders[0] / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert len({part["model"] for part in line["centers"]}) == 1 and line["centers"][0]["model"]
        assert len({part["data"] for part in line["centers"]}) == 1, "as many examples in each"
    (contract,) = json.loads((folders[0] / "contract.json").read_text())["contracts"]
    assert contract["terms"] == {f"dc{k}": {"promise": f"of dc{k}"} for k in range(3)}
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        assert {finding.level for finding in verify.examine(folder, lines[-1]["chain"])} == {OK}
