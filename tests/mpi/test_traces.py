"""No number and no bit of a run moves: meetings, means and states are those that version 0.1.0 recorded."""

import json
import re
import shutil
from pathlib import Path

import pytest
from trace_scenarios import ENDS_LIKE, OTHERS, SCENARIOS

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]  # the fixture starts them all
GOLDENS = Path(__file__).parent.parent / "golden"
POINTS = ["stopped-in-mid-epoch", "stopped-at-epoch-end", "stopped-under-way"]
# What happens to these changes no bit of the result.
UNDISTURBED = {
    "restart-in-mid-round": "plain",
    "restart-after-mean": "plain",
    "restart-after-mean-int8": "int8",
    "restart-overlap": "overlap-T2",
    "stopped-in-mid-epoch": "plain",
    "stopped-at-epoch-end": "plain",
    "stopped-under-way": "overlap-T2",
    "more-rounds": "int8",
    "2-ranks-restart-in-mid-round": "2-ranks-2-lanes",
    "2-ranks-restart-after-mean": "2-ranks-2-lanes",
}
DIGEST = re.compile(r"(?<![.\w])[0-9a-f]{16}\b")  # no digits of a float


def ranks_of(name):
    """A run with fewer ranks than two is on the first ones of two."""
    found = (SCENARIOS | OTHERS)[name]
    return max(2, found["centers"] * found["ranks"])


@pytest.fixture(scope="module")
def recorded(launch, tmp_path_factory):
    """A folder with the trace of each scenario, and what was said: few starts, for these cost more than runs."""
    folder, said = tmp_path_factory.mktemp("traces"), ""
    for ranks in sorted({ranks_of(name) for name in SCENARIOS}):
        names = [name for name in SCENARIOS | OTHERS if ranks_of(name) == ranks]
        said += launch(ranks, "traces.py", "--out", folder, *names, timeout=480).err
    return folder, said


@pytest.fixture(scope="module")
def continued(launch, tmp_path_factory):
    """The same of runs that version 0.1.0 began and that are resumed now, from the resume points it left."""
    folder = tmp_path_factory.mktemp("continued")
    for name in POINTS:
        shutil.copytree(GOLDENS / "points" / name, folder / "runs" / name)
    return folder, launch(2, "traces.py", "--out", folder, "--last", *POINTS).err


def trace(recording, name):
    folder, said = recording
    path = folder / f"{name}.json"
    assert path.exists(), said
    return json.loads(path.read_text())


def golden(name):
    return json.loads((GOLDENS / "traces" / f"{name}.json").read_text())


def numbered(found, numbers):
    """A trace as it is on any processor: of digests only which are equal."""
    if isinstance(found, dict):
        return {key: numbered(item, numbers) for key, item in found.items() if key != "reference"}
    if isinstance(found, list):
        return [numbered(item, numbers) for item in found]
    if isinstance(found, str):
        return DIGEST.sub(lambda match: numbers.setdefault(match[0], f"digest {len(numbers)}"), found)
    return found


def near(expected):
    """Equal to what has the same structure and nearly the same floats."""
    if isinstance(expected, dict):
        return {key: near(item) for key, item in expected.items()}
    if isinstance(expected, list):
        return [near(item) for item in expected]
    return pytest.approx(expected, rel=1e-6, abs=1e-6) if isinstance(expected, float) else expected


def same(found, expected):
    """Assert that they are equal: to the bit, if this processor computes like the one that wrote the golden."""
    if found["reference"] != expected["reference"]:
        found, expected = numbered(found, {}), near(numbered(expected, {}))
    assert found == expected


@pytest.mark.parametrize("name", SCENARIOS)
def test_as_recorded(recorded, name):
    same(trace(recorded, name), golden(name))


@pytest.mark.parametrize("name", POINTS)
def test_a_kept_resume_point_goes_on(continued, name):
    whole = golden(name)
    same(trace(continued, name), whole | {"parts": whole["parts"][-1:]})


def end(found):
    """What each rank holds at the end."""
    last = found["parts"][-1]
    return [next(line for line in reversed(rank) if line.startswith("train ends")) for rank in last["ranks"]]


@pytest.mark.parametrize(("name", "whole"), [*UNDISTURBED.items(), *ENDS_LIKE.items()])
def test_ends_as_the_undisturbed_run(recorded, name, whole):
    found, expected = trace(recorded, name), trace(recorded, whole)
    assert end(found) == end(expected)
    assert found["parts"][-1]["rounds"] == expected["parts"][-1]["rounds"]


def test_lanes_change_no_bit_of_the_model(recorded):
    """... though sums of their parts, as of a divergence, are rounded in another order."""
    assert end(trace(recorded, "2-ranks-2-lanes")) == end(trace(recorded, "2-ranks"))


def test_every_golden_has_its_scenario():
    assert {path.stem for path in (GOLDENS / "traces").glob("*")} == SCENARIOS.keys()


def test_another_processor_is_compared_by_what_is_equal_and_near():
    expected = golden("plain")
    renamed = DIGEST.sub(lambda match: match[0][::-1], json.dumps(expected))
    change = repr(expected["parts"][0]["summary"]["relative_change"])
    same(json.loads(renamed.replace(change, repr(float(change) + 1e-8))), expected)
    for other in (renamed.replace(change, repr(float(change) + 1e-3)), renamed.replace('"mean ', '"mean 0', 1)):
        with pytest.raises(AssertionError):
            same(json.loads(other), expected)
    with pytest.raises(AssertionError):  # the same processor
        same(json.loads(renamed) | {"reference": expected["reference"]}, expected)
