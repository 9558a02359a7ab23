"""K data centers of L ranks equal Algorithm 1 as a plain loop."""

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import toy

pytestmark = pytest.mark.mpi
ROUNDS = 5
CASES = ["1", "2", "4", "5", "2:adapters"]
SETTINGS = {"local_epochs": 2, "epsilon": 0.21, "decay": 0.25}  # as in programs/rounds.py
GOLDEN = Path(__file__).parent.parent / "golden" / "toy_trajectory.json"


def expected(case: str):
    centers, _, adapters = case.partition(":")
    nets = [toy.adapted_network(seed=0) if adapters else toy.network(seed=0) for _ in range(int(centers))]
    data = [toy.data(k) for k in range(int(centers))]
    return oracle.co_learning(nets, data, rounds=ROUNDS, rate=0.1, momentum=0.9, batch=toy.BATCH, **SETTINGS)


@pytest.mark.parametrize("ranks_per_center", [1, 2])
def test_equals_the_plain_loop(launch, tmp_path, ranks_per_center):
    """One launch per L: the cases run one after the other on the first K x L ranks. Of a model with adapters only these
    travel and enter eq. 4."""
    out = launch(5 * ranks_per_center, "rounds.py", tmp_path, ranks_per_center, ROUNDS, *CASES).ok()
    found = json.loads(out.strip().splitlines()[-1])
    for case in CASES:
        models, history = expected(case)
        epochs = [t for t, _ in history]
        assert epochs[-1] >= 2 * epochs[0], f"{case}: the setting must double T at least once, found {history}"
        assert [t for t, _ in found[case]] == epochs
        np.testing.assert_allclose([c for _, c in found[case]], [c for _, c in history], rtol=1e-4)
        for rank in range(int(case[0]) * ranks_per_center):
            saved = np.load(tmp_path / case / f"models-{rank}.npy")
            np.testing.assert_allclose(saved, models, atol=1e-6, rtol=0, err_msg=f"{case}, rank {rank}")


def test_golden_trajectory():
    """The oracle itself stays where it was: an equal change in loop and package would otherwise go unseen."""
    models, history = expected("2")
    golden = json.loads(GOLDEN.read_text())
    assert [t for t, _ in history] == golden["local_epochs"]
    np.testing.assert_allclose([c for _, c in history], golden["relative_change"], rtol=1e-4)
    np.testing.assert_allclose(models[:, :5], golden["first_weights"], atol=1e-5)
