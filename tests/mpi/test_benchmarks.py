"""The benchmarks run: at sizes at which their figures mean nothing, but with all that they call."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--parameters", "20000"]


@pytest.mark.mpi
@pytest.mark.exhaustive(sample=2)
@pytest.mark.parametrize(
    ("script", "options", "figure"),
    [
        ("exchange.py", ["--centers", "2", *SMALL, "--rounds", "1", "--profile"], "ours (s)"),
        (
            "exchange.py",
            ["--centers", "3", *SMALL, "--rounds", "1", "--codec", "int8", "--tensors", "small"],
            "raw (s)",
        ),
        ("memory.py", ["--centers", "2", "--parameters", "1000000", "--codec", "fp32"], "peak / model"),
        ("scaling.py", ["--centers", "2", "--fixed", "20000", *SMALL, "--at", "2", "--rounds", "1"], "ours / raw"),
        (
            "resume_points.py",
            [*SMALL, *["--computes", "0", "--seconds", "0.1", "--steps", "4", "--epochs", "1", "--rounds", "1"]],
            "with / without",
        ),
        ("masks.py", ["--sites", "3", "--bits", "32", *SMALL, "--rounds", "1"], "masks (CPU s)"),
        ("secure.py", ["--sites", "3", *SMALL, "--rounds", "2", "--turns", "1"], "secure / plain"),
        (
            "federation_accuracy.py",
            ["--arms", "float32", "--trials", "1", "--sites", "2", "--rounds", "1"],
            "accuracy (%)",
        ),
        ("overhead.py", ["--layouts", "1x2", "--steps", "5", "--rounds", "1", "--starts", "0"], "blocks in turn"),
    ],
)
def test_a_benchmark_runs(script, options, figure, tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / script), "--json", str(file), *options]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 1 and rows[0][figure] > 0
    assert figure in done.stderr, "the table"


@pytest.mark.mpi
def test_growth_runs(tmp_path):
    file = tmp_path / "figures.json"
    options = ["--parts", "runs", "predicted", "--centers", "3", "--floats", "20000", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "growth.py"), *options], text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert [row["bits"] for row in found["runs"]] == ["as a sum in float64, on all ranks"]
    assert len(found["predicted"]) == 16
