"""exchange: {overlap: true}: the mean of a round comes at the end of the next one's first local epoch."""

import json
import re
import signal
import time

import numpy as np
import oracle
import pytest
import toy
from test_resume import digests, lines
from test_signals import FIT, left, points, signal_rank, starts, when_trained

from colearn_hpc.errors import RESUME_CODE

pytestmark = pytest.mark.mpi
ROUNDS = 5
# K:T_0:epsilon. T doubles and is never 1; it is always 1; it is 1 and then 2; nobody to overlap with.
CASES = ["2:2:0.21", "3:1:0", "3:1:0.05", "1:2:0.21"]


def expected(case):
    centers, local_epochs, epsilon = case.split(":")
    settings = {"local_epochs": int(local_epochs), "epsilon": float(epsilon), "decay": 0.25, "rounds": ROUNDS}
    settings |= {"rate": 0.1, "momentum": 0.9, "batch": toy.BATCH}
    nets = [toy.network(seed=0) for _ in range(int(centers))]
    data = [toy.data(k) for k in range(int(centers))]
    return oracle.overlapped(nets, data, **settings) if len(nets) > 1 else oracle.co_learning(nets, data, **settings)


@pytest.mark.parametrize("ranks_per_center", [1, 2])
def test_equals_the_plain_loop(launch, tmp_path, ranks_per_center):
    out = launch(3 * ranks_per_center, "overlap.py", tmp_path, ranks_per_center, ROUNDS, *CASES).ok()
    found = json.loads(out.strip().splitlines()[-1])
    for case in CASES:
        models, history, *starts = expected(case)
        assert [t for t, _ in found[case]] == [t for t, _ in history]
        np.testing.assert_allclose([c for _, c in found[case]], [c for _, c in history], rtol=1e-4, err_msg=case)
        centers = int(case[0])
        for rank in range(centers * ranks_per_center):
            load = {name: np.load(tmp_path / case / f"{name}-{rank}.npy") for name in ("starts", "validated", "kept")}
            what = {"atol": 1e-6, "rtol": 0, "err_msg": f"{case}, rank {rank}"}
            if starts:
                np.testing.assert_allclose(load["starts"], starts[0][:, rank // ranks_per_center], **what)
            validated, kinds = load["validated"][:, :-1], load["validated"][:, -1]
            # With T = 1 to the end the last epoch brings two means: the last one is validated.
            shown = np.delete(models, -2, axis=0) if case == "3:1:0" else models
            np.testing.assert_allclose(validated[kinds > 0], shown, **what)
            assert rank or np.array_equal(validated[kinds > 0], load["kept"]), "shared.ckpt is what is validated"
            assert np.array_equal(np.load(tmp_path / case / f"end-{rank}.npy"), validated[-1])
            for epoch in np.flatnonzero(kinds == 0):
                assert np.array_equal(validated[epoch], load["starts"][epoch + 1]), "a model is trained on from"


def test_the_cases_are_what_they_say():
    assert [[t for t, _ in expected(case)[1]] for case in CASES[:3]] == [[2, 4, 4, 4, 4], [1] * 5, [1, 2, 2, 2, 2]]


# --- interruptions ------------------------------------------------------------------------------------

RANKS = 4  # 2 data centers x 2
VARIANTS = {
    "T=2": ("keep", {"exchange": {"overlap": True}}),
    "T=1": ("keep", {"exchange": {"overlap": True}, "local_epochs": 1, "epsilon": 0}),
    "int8": ("reset", {"exchange": {"overlap": True, "codec": "int8"}}),
}


def train(launch, run, variant, faults="", pause=0.0, rounds=4, during=None, **env):
    state, settings = VARIANTS[variant]
    env |= {"TEST_SETTINGS": json.dumps(settings), "TEST_FAULTS": faults}
    return launch(RANKS, "resume.py", run, rounds, state, pause, env=env, timeout=120, during=during)


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The run of a variant that nobody disturbed."""
    found = {}

    def of(variant):
        if variant not in found:
            folder = tmp_path_factory.mktemp("whole")
            found[variant] = folder, digests(train(launch, folder, variant))
        return found[variant]

    return of


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_end_with_one_model(whole, variant):
    folder, found = whole(variant)
    assert len({line.split("shared ")[1] for line in found if "shared" in line}) == 1
    assert [line["round"] for line in lines(folder)] == [0, 1, 2, 3]
    assert all(c["divergence"] > 0 and c["bytes_sent"] > 0 for line in lines(folder) for c in line["centers"])
    assert all(c["shared_metrics"] for line in lines(folder)[:2] for c in line["centers"])


KILLED = {
    "while the mean is under way": "kill@center=dc1,rank=1,round=1,epoch=0,step=2",
    "when it has just left": "kill@center=dc0,rank=0,round=0,epoch=1,step=1,at=validation",
    "when it has just come": "kill@center=dc0,rank=1,round=1,epoch=0,step=1,at=validation",
    "when one has it in its resume point": "kill@center=dc1,rank=0,round=1,epoch=0,at=checkpoint",
    "in the exchange": "kill@center=dc1,rank=0,round=0,epoch=1,at=exchange",
    "when T is known": "kill@center=dc0,rank=0,round=1,epoch=1,step=1",
}


@pytest.mark.parametrize("moment", KILLED)
def test_killed_and_resumed(launch, tmp_path, whole, moment):
    folder, found = whole("T=2")
    assert train(launch, tmp_path, "T=2", KILLED[moment]).code != 0
    assert digests(train(launch, tmp_path, "T=2", KILLED[moment])) == found
    assert lines(tmp_path) == lines(folder)


@pytest.mark.parametrize("variant", ["T=1", "int8"])
def test_killed_and_resumed_twice(launch, tmp_path, whole, variant):
    """T=1: under way always. int8: what messages lacked is sent again as well."""
    folder, found = whole(variant)
    faults = "kill@center=dc1,rank=1,round=1,epoch=0,step=2 kill@center=dc0,rank=0,round=2,epoch=0,at=checkpoint"
    assert [train(launch, tmp_path, variant, faults).code != 0 for _ in range(2)] == [True, True]
    assert digests(train(launch, tmp_path, variant, faults)) == found
    assert lines(tmp_path) == lines(folder)


def test_one_is_sent_again_and_the_other_is_not_there_yet(launch, tmp_path, whole):
    """dc1 falls back to before the round's end: dc0 sends again what its point holds, and waits for it."""
    folder, found = whole("T=2")
    place, fault = tmp_path / "centers" / "dc1", KILLED["while the mean is under way"]
    earlier, newest = (place / f"resume-round000000-epoch00000{epochs}.ckpt" for epochs in (1, 2))

    def keep(process):
        while not earlier.exists():
            assert process.poll() is None, "the run never came that far"
            time.sleep(0.01)
        (tmp_path / "kept").hardlink_to(earlier)

    assert train(launch, tmp_path, "T=2", fault, 0.1, during=keep).code != 0
    newest.unlink()
    (tmp_path / "kept").rename(earlier)
    assert (tmp_path / "centers" / "dc0" / newest.name).exists()
    assert digests(train(launch, tmp_path, "T=2", fault)) == found and lines(tmp_path) == lines(folder)


def test_resumed_for_fewer_rounds(launch, tmp_path):
    """The round whose mean was under way is the last one after all: its mean is the result."""
    fault = KILLED["while the mean is under way"]
    assert train(launch, tmp_path / "parts", "T=2", fault).code != 0
    found = [digests(train(launch, tmp_path / "parts", "T=2", fault, rounds=1))]
    found.append(digests(train(launch, tmp_path / "whole", "T=2", rounds=1)))
    shared = [{line.split("shared ")[1] for line in said if "shared" in line} for said in found]
    assert shared[0] == shared[1] and len(shared[0]) == 1
    one, other = lines(tmp_path / "parts"), lines(tmp_path / "whole")
    assert [r["relative_change"] for r in one] == [r["relative_change"] for r in other] and len(one) == 1


# --- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "raise@center=dc1,rank=1,round=1,epoch=0,step=1",
        "raise@center=dc0,rank=0,round=1,epoch=0,step=3",
        "raise@center=dc1,rank=0,round=0,epoch=1,at=exchange",
    ],
)
def test_a_failure_while_the_mean_is_under_way(launch, tmp_path, whole, fault):
    """... ends the run on all ranks, as one in an exchange does, and the next start goes on."""
    done = train(launch, tmp_path, "T=2", fault)
    assert done.code in (1, 86) and done.orphans == []
    assert done.err.count("RuntimeError: rehearsed: " + fault) >= 1 and "restarting" not in done.err
    assert digests(train(launch, tmp_path, "T=2", fault)) == whole("T=2")[1]


def test_a_failure_while_none_is_under_way(launch, tmp_path, whole):
    """... is restarted in place, as ever."""
    done = train(launch, tmp_path, "T=2", "raise@center=dc1,rank=1,round=1,epoch=1,step=1")
    assert digests(done) == whole("T=2")[1] and "dc1, restarting (1 of 3 in this round)" in done.err


def test_no_restart_where_the_point_was_not_written(launch, tmp_path):
    """dc1 could not write the point after its mean had come: the one before asks for a mean that the others have done
    with, so a failure ends the run instead of leading back there."""
    faults = "nospace@center=dc1,rank=0,round=1,epoch=0,at=checkpoint raise@center=dc1,rank=1,round=1,epoch=1,step=1"
    done = train(launch, tmp_path, "T=2", faults)
    assert done.code in (1, 86) and done.orphans == []
    assert "restarting" not in done.err and "please report" not in done.err, done.err


# --- Trainers that end --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["T=2", "T=1"])
@pytest.mark.parametrize("leaves", ["dc1 1 1", "dc1 1 3", "dc0 1 validation", "dc1 2 1", "dc0 2 3", "dc1 2 validation"])
def test_one_trainer_ends(launch, tmp_path, variant, leaves):
    """In mid-epoch, at the last batch, in validation; while a mean is under way or not: all end with one model."""
    done = train(launch, tmp_path, variant, TEST_LEAVES=leaves)
    told = {line.split(maxsplit=2)[2] for line in digests(done) if " shared " in line or " place " in line}
    assert len(told) == 2, "one model and one place in the run on all four ranks"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["stopped_by"] == "a data center's Trainer ended"
    records = lines(tmp_path)
    assert [record["round"] for record in records] == list(range(len(records))) and 1 <= len(records) < 4
    assert summary["rounds"] == len(records)


# --- signals ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit(launch):
    def start(folder, local_epochs, *arguments, during=None):
        overlap = ["--colearning.exchange={overlap: true}", f"--colearning.local_epochs={local_epochs}"]
        arguments = [*FIT, *overlap, "--model.workers=1", f"--runs={folder}", *arguments]
        env = {"PYTHONPATH": "tests/mpi/programs"}
        return launch(RANKS, "-m colearn_hpc", *arguments, env=env, during=during)

    return start


def test_stopped_while_the_mean_is_under_way(fit, tmp_path):
    fit(tmp_path / "whole", 2).ok()
    run = tmp_path / "run"
    stop = when_trained(run, 2, lambda process: process.send_signal(signal.SIGUSR1))
    stopped = fit(tmp_path, 2, "--resume", "--model.pause=0.25", during=stop)
    assert stopped.code == RESUME_CODE and not stopped.orphans and "Traceback" not in stopped.err, stopped.err
    found = points(run)
    assert found.keys() == {"dc0", "dc1"}
    assert all(re.fullmatch(r"resume-round000000-epoch000002-batch0000000\d.ckpt", name) for name in found.values())
    fit(tmp_path, 2, "--resume").ok()
    assert left(run) == left(tmp_path / "whole" / "run")


def test_signalled_again_and_again(fit, tmp_path):
    """TERM to one rank, with T = 1: every moment after the first epoch is one with a mean under way."""
    settings = ["--colearning.epsilon=0", "--colearning.rounds=8"]
    fit(tmp_path / "whole", 1, *settings).ok()
    run, codes = tmp_path / "run", []
    for victim, delay in ((0, 0.5), (3, 1.0), (2, 1.3)):

        def stop(process, victim=victim, delay=delay):
            log = run / "centers" / "dc0" / "log.txt"
            before = starts(log)
            while starts(log) == before and process.poll() is None:
                time.sleep(0.02)
            time.sleep(delay)
            signal_rank(process.pid, victim, signal.SIGTERM)

        codes.append(fit(tmp_path, 1, *settings, "--resume", "--model.pause=0.1", during=stop).code)
    assert set(codes) <= {0, RESUME_CODE} and RESUME_CODE in codes, codes
    fit(tmp_path, 1, *settings, "--resume").ok()
    assert left(run) == left(tmp_path / "whole" / "run")
