"""exchange: {overlap: true}: the mean of a round comes at the end of the next one's first local epoch."""

import json
import re
import shutil
import signal
import time

import numpy as np
import oracle
import pytest
import toy
from resuming import RANKS, digests, one_model, together, train
from run_folders import lines
from test_signals import FIT, fit_together, left, points, signal_rank, starts, when_trained

from colearn_hpc.errors import RESUME_CODE

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(1800)]  # fixtures start many times
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


@pytest.mark.exhaustive(sample=1)
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


# --- interruptions and failures -------------------------------------------------------------------------

VARIANTS = {
    "T=2": {"exchange": {"overlap": True}},
    "T=1": {"exchange": {"overlap": True}, "local_epochs": 1, "epsilon": 0},
    "int8": {"exchange": {"overlap": True, "codec": "int8"}, "state": "reset"},
}
UNDER_WAY = "kill@center=dc1,rank=1,round=1,epoch=0,step=2"
KILLED = {
    "while the mean is under way": UNDER_WAY,
    "when it has just left": "kill@center=dc0,rank=0,round=0,epoch=1,step=1,at=validation",
    "when it has just come": "kill@center=dc0,rank=1,round=1,epoch=0,step=1,at=validation",
    "when one has it in its resume point": "kill@center=dc1,rank=0,round=1,epoch=0,at=checkpoint",
    "in the exchange": "kill@center=dc1,rank=0,round=0,epoch=1,at=exchange",
    "when T is known": "kill@center=dc0,rank=0,round=1,epoch=1,step=1",
}
TWICE = f"{UNDER_WAY} kill@center=dc0,rank=0,round=2,epoch=0,at=checkpoint"
FAILURES = [
    "raise@center=dc1,rank=1,round=1,epoch=0,step=1",
    "raise@center=dc0,rank=0,round=1,epoch=0,step=3",
    "raise@center=dc1,rank=0,round=0,epoch=1,at=exchange",
]
NONE_UNDER_WAY = "raise@center=dc1,rank=1,round=1,epoch=1,step=1"
LEAVES = ["dc1 1 1", "dc1 1 3", "dc0 1 validation", "dc1 2 1", "dc0 2 3", "dc1 2 validation"]


def start(launch, run, faults, variant="T=2", **more):
    """A run that somebody interrupts."""
    return train(launch, run, 4, faults=faults, **VARIANTS[variant], **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("overlap")


@pytest.fixture(scope="module")
def faults(chosen):
    """Of the runs that are to be made, in one or two starts each."""
    killed = [KILLED[moment] for moment in chosen("test_killed_and_resumed")]
    return [fault for fault in killed + chosen("test_a_failure_while_the_mean_is_under_way") if fault != UNDER_WAY]


@pytest.fixture(scope="module")
def twice(chosen):
    return chosen("test_killed_and_resumed_twice")


@pytest.fixture(scope="module")
def interrupted(launch, folder, faults, twice):
    """How each run was interrupted, by its fault; some twice. Two copies of the last go other ways."""
    found = {fault: start(launch, folder / fault, fault) for fault in faults}
    found |= {v: [start(launch, folder / v, TWICE, v) for _ in range(2)] for v in twice}
    run = folder / UNDER_WAY
    place = run / "centers" / "dc1"
    earlier, newest = (place / f"resume-round000000-epoch00000{epochs}.ckpt" for epochs in (1, 2))

    def keep(process):
        while not earlier.exists():
            assert process.poll() is None, "the run never came that far"
            time.sleep(0.01)
        (folder / "kept").hardlink_to(earlier)

    found[UNDER_WAY] = start(launch, run, UNDER_WAY, pause=0.1, during=keep)
    shutil.copytree(run, folder / "fewer")
    # dc1 falls back to before the round's end, dc0 does not.
    behind = shutil.copytree(run, folder / "behind")
    (behind / newest.relative_to(run)).unlink()
    (folder / "kept").rename(behind / earlier.relative_to(run))
    assert (behind / "centers" / "dc0" / newest.name).exists()
    return found


@pytest.fixture(scope="module")
def ended(launch, folder, interrupted, faults, twice, chosen):
    """All runs that come to their end."""
    cases = {fault: {"faults": fault, **VARIANTS["T=2"]} for fault in [*faults, UNDER_WAY]}
    cases |= {variant: {"faults": TWICE, **VARIANTS[variant]} for variant in twice}
    cases["behind"] = {"faults": UNDER_WAY, **VARIANTS["T=2"]}
    cases["fewer"] = {"faults": UNDER_WAY, "rounds": 1, **VARIANTS["T=2"]}
    cases["one round"] = {"rounds": 1, **VARIANTS["T=2"]}
    cases |= {f"whole {variant}": settings for variant, settings in VARIANTS.items()}
    cases["none under way"] = {"faults": NONE_UNDER_WAY, **VARIANTS["T=2"]}
    for one in chosen("test_one_trainer_ends"):
        variant, leaves = one["variant"], one["leaves"]
        cases[f"{variant} {leaves}"] = {"leaves": leaves, **VARIANTS[variant]}
    return together(launch, folder, {name: {"run": folder / name, "rounds": 4} | of for name, of in cases.items()})


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_end_with_one_model(folder, ended, variant):
    assert one_model(ended[f"whole {variant}"])
    found = lines(folder / f"whole {variant}")
    assert [line["round"] for line in found] == [0, 1, 2, 3]
    assert all(c["divergence"] > 0 and c["bytes_sent"] > 0 for line in found for c in line["centers"])
    assert all(c["shared_metrics"] for line in found[:2] for c in line["centers"])


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("moment", KILLED)
def test_killed_and_resumed(folder, interrupted, ended, moment):
    fault = KILLED[moment]
    assert interrupted[fault].code != 0
    assert digests(ended[fault]) == digests(ended["whole T=2"])
    assert lines(folder / fault) == lines(folder / "whole T=2")


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("variant", ["T=1", "int8"])
def test_killed_and_resumed_twice(folder, interrupted, ended, variant):
    """T=1: under way always. int8: what messages lacked is sent again as well."""
    assert [done.code != 0 for done in interrupted[variant]] == [True, True]
    assert digests(ended[variant]) == digests(ended[f"whole {variant}"])
    assert lines(folder / variant) == lines(folder / f"whole {variant}")


def test_one_is_sent_again_and_the_other_is_not_there_yet(folder, ended):
    """dc1 falls back to before the round's end: dc0 sends again what its point holds, and waits for it."""
    assert digests(ended["behind"]) == digests(ended["whole T=2"])
    assert lines(folder / "behind") == lines(folder / "whole T=2")


def test_resumed_for_fewer_rounds(folder, ended):
    """The round whose mean was under way is the last one after all: its mean is the result."""
    found = [digests(ended["fewer"]), digests(ended["one round"])]
    shared = [{line.split("shared ")[1] for line in said if "shared" in line} for said in found]
    assert shared[0] == shared[1] and len(shared[0]) == 1
    one, other = lines(folder / "fewer"), lines(folder / "one round")
    assert [r["relative_change"] for r in one] == [r["relative_change"] for r in other] and len(one) == 1


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("fault", FAILURES)
def test_a_failure_while_the_mean_is_under_way(interrupted, ended, fault):
    """... ends the run on all ranks, as one in an exchange does, and the next start goes on."""
    done = interrupted[fault]
    assert done.code in (1, 86) and done.orphans == []
    assert done.err.count("RuntimeError: rehearsed: " + fault) >= 1 and "restarting" not in done.err
    assert digests(ended[fault]) == digests(ended["whole T=2"])


def test_a_failure_while_none_is_under_way(ended):
    """... is restarted in place, as ever."""
    done = ended["none under way"]
    assert digests(done) == digests(ended["whole T=2"]) and "dc1, restarting (1 of 3 in this round)" in done.err


def test_no_restart_where_the_point_was_not_written(launch, tmp_path):
    """dc1 could not write the point after its mean had come: the one before asks for a mean that the others have done
    with, so a failure ends the run instead of leading back there."""
    faults = "nospace@center=dc1,rank=0,round=1,epoch=0,at=checkpoint raise@center=dc1,rank=1,round=1,epoch=1,step=1"
    done = start(launch, tmp_path, faults)
    assert done.code in (1, 86) and done.orphans == []
    assert "restarting" not in done.err and "please report" not in done.err, done.err


@pytest.mark.exhaustive(sample=2)
@pytest.mark.parametrize("variant", ["T=2", "T=1"])
@pytest.mark.parametrize("leaves", LEAVES)
def test_one_trainer_ends(folder, ended, variant, leaves):
    """In mid-epoch, at the last batch, in validation; while a mean is under way or not: all end with one model."""
    run = folder / f"{variant} {leaves}"
    assert one_model(ended[run.name])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["stopped_by"] == "a data center's Trainer ended"
    records = lines(run)
    assert [record["round"] for record in records] == list(range(len(records))) and 1 <= len(records) < 4
    assert summary["rounds"] == len(records)


# --- signals ------------------------------------------------------------------------------------------

FLAGS = ["--colearning.exchange={overlap: true}", "--model.workers=1", "--resume"]
T_2 = [*FLAGS, "--colearning.local_epochs=2"]
T_1 = [*FLAGS, "--colearning.local_epochs=1", "--colearning.epsilon=0", "--colearning.rounds=8"]


def fit(launch, folder, *arguments, during):
    arguments = [*FIT, f"--runs={folder}", *arguments]
    return launch(RANKS, "-m colearn_hpc", *arguments, env={"PYTHONPATH": "tests/mpi/programs"}, during=during)


@pytest.fixture(scope="module")
def stopped(launch, folder):
    """While a mean is under way."""
    runs = folder / "stopped"
    stop = when_trained(runs / "stopped", 2, lambda process: process.send_signal(signal.SIGUSR1))
    done = fit(launch, runs, *T_2, "--name=stopped", "--model.pause=0.25", during=stop)
    found = points(runs / "stopped")
    continued(launch, runs, "stopped", T_2)
    return runs, done, found


@pytest.fixture(scope="module")
def signalled(launch, folder):
    """TERM to one rank, with T = 1: every moment after the first epoch is one with a mean under way."""
    runs, codes = folder / "signalled", []
    log = runs / "signalled" / "centers" / "dc0" / "log.txt"
    for victim, delay in ((0, 0.5), (3, 1.3)):

        def stop(process, victim=victim, delay=delay):
            before = starts(log)
            while starts(log) == before and process.poll() is None:
                time.sleep(0.02)
            time.sleep(delay)
            signal_rank(process.pid, victim, signal.SIGTERM)

        codes.append(fit(launch, runs, *T_1, "--name=signalled", "--model.pause=0.1", during=stop).code)
    continued(launch, runs, "signalled", T_1)
    return runs, codes


def continued(launch, runs, name, arguments):
    """That run, and one that nobody stops."""
    fit_together(launch, RANKS, runs, {one: [*arguments, f"--name={one}"] for one in (name, "whole")})


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("how", ["stopped", "signalled"])
def test_asked_to_stop_while_the_mean_is_under_way(request, how):
    CHECKS[how](*request.getfixturevalue(how))


def check_stopped(runs, done, found):
    assert done.code == RESUME_CODE and not done.orphans and "Traceback" not in done.err, done.err
    assert found.keys() == {"dc0", "dc1"}
    assert all(re.fullmatch(r"resume-round000000-epoch000002-batch0000000\d.ckpt", name) for name in found.values())
    assert left(runs / "stopped") == left(runs / "whole")


def check_signalled(runs, codes):
    """Again and again."""
    assert set(codes) <= {0, RESUME_CODE} and RESUME_CODE in codes, codes
    assert left(runs / "signalled") == left(runs / "whole")


CHECKS = {"stopped": check_stopped, "signalled": check_signalled}
