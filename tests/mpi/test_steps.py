"""Rounds of optimizer steps: two data centers equal the plain loop, and failures change no bit."""

import itertools
import json

import numpy as np
import oracle
import pytest
import toy
from resuming import digests, one_model, together, train
from run_folders import lines

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]
ROUNDS = 5
CASES = ["1:mean:0.16", "2:mean:0.16", "1:overlap:0.16"]  # as programs/steps.py has them


def stream(center):
    x, y = toy.data(center, toy.EXAMPLES + toy.BATCH * center).tensors
    starts = itertools.cycle(range(0, len(x), toy.BATCH))
    return ((x[start : start + toy.BATCH], y[start : start + toy.BATCH]) for start in starts)


def expected(case):
    _, exchange, epsilon = case.split(":")
    settings = {"local_steps": 3, "epsilon": float(epsilon), "decay": 0.25, "rounds": ROUNDS}
    settings |= {"rate": 0.1, "momentum": 0.9, "overlap": exchange == "overlap"}
    return oracle.in_steps([toy.network(seed=0) for _ in range(2)], [stream(k) for k in range(2)], **settings)


def test_equals_the_plain_loop(launch, tmp_path):
    """In the middle of passes over the data, of which one data center has longer ones."""
    found = json.loads(launch(4, "steps.py", tmp_path, ROUNDS, *CASES).ok().strip().splitlines()[-1])
    for case in CASES:
        models, history = expected(case)
        steps = [t for t, _ in history]
        assert steps[0] == 3 and steps[-1] > 3, f"{case}: the setting must double T at least once, found {history}"
        assert [t for t, _ in found[case]] == steps
        np.testing.assert_allclose([c for _, c in found[case]], [c for _, c in history], rtol=1e-4, err_msg=case)
        for rank in range(2 * int(case[0])):
            saved = np.load(tmp_path / case / f"models-{rank}.npy")
            np.testing.assert_allclose(saved, models, atol=1e-6, rtol=0, err_msg=f"{case}, rank {rank}")


# --- interruptions and failures ---------------------------------------------------------------------------

# Blocks of 3 steps where a pass has 4 batches; T doubles after the first round.
SETTINGS = {"local_epochs": 5, "local_steps": 3, "epsilon": 9.0, "max_local_steps": 6, "rounds": 3}
OVERLAP = {"exchange": {"overlap": True}}
FAILURES = {
    "in the second block of a round": "raise@center=dc1,rank=1,round=1,epoch=3,step=1",
    "in both": "raise@center=dc0,rank=0,step=2 raise@center=dc1,rank=1,round=2,epoch=0,step=0",
    "in the shared model's validation": "raise@center=dc0,rank=1,round=1,epoch=3,step=1,at=validation",
}
ABSENT = {"faults": "raise@center=dc1,rank=1,round=1,epoch=0,step=2,times=9", "on_failure": "continue_without"}


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    cases = {name: {"faults": fault} for name, fault in FAILURES.items()} | {"absent": ABSENT, "undisturbed": {}}
    cases["overlap"] = OVERLAP
    given = {name: SETTINGS | case | {"run": folder / name.replace(" ", "-")} for name, case in cases.items()}
    return together(launch, folder, given), {name: case["run"] for name, case in given.items()}


@pytest.mark.parametrize("failure", FAILURES)
def test_restarted_in_place_with_the_same_bits(runs, failure):
    done, folders = runs
    assert "restarting (1 of 3 in this round)" in done[failure].err
    assert digests(done[failure]) == digests(done["undisturbed"])
    assert [line["local_epochs"] for line in lines(folders[failure])] == [3, 6, 6]


def test_a_data_center_that_is_left_out_takes_part_again(runs):
    done, folders = runs
    assert one_model(done["absent"])
    of_run = lines(folders["absent"])
    assert [(line["local_epochs"], line["epochs_done"]) for line in of_run] == [(3, 3), (6, 9), (6, 15)]
    assert [[bool(c["absent"]) for c in line["centers"]] for line in of_run] == [
        [False] * 2,
        [False, True],
        [False] * 2,
    ]
    assert of_run[2]["centers"][1]["steps"] == 6


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("how", ["mean", "overlap"])
def test_killed_in_mid_round_and_started_again(launch, runs, tmp_path, how):
    """With overlap the mean is under way then."""
    settings = SETTINGS | (OVERLAP if how == "overlap" else {})
    fault = f"kill@center=dc1,rank=1,round=1,epoch={0 if how == 'overlap' else 3},step=2"
    killed = train(launch, tmp_path, faults=fault, timeout=90, **settings)
    assert killed.code != 0
    newest = max(path.name for path in (tmp_path / "centers" / "dc1").glob("resume-*.ckpt"))
    assert newest == f"resume-round00000{'0-epoch000003' if how == 'overlap' else '1-epoch000006'}.ckpt"
    again = train(launch, tmp_path, **settings)
    assert digests(again) == digests(runs[0]["overlap" if how == "overlap" else "undisturbed"])
