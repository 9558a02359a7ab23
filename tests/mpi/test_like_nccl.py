"""A data center begins again though its ranks are in collectives that only their own abort ends, as NCCL's.

No GPU: the backend is programs/like_nccl.py. What is not NCCL is all there: real processes, DDP, Lightning, restarts.
"""

import pytest
from like_nccl import NAME
from resuming import digests, together, train

pytestmark = pytest.mark.mpi
ROUNDS = 2  # of dc0 and dc1, two ranks each
LINKS = {  # that fail while gradients are reduced: epoch and batch
    "in the middle": "1 2",
    "before a resume point": "0 3",
    "before a mean": "1 3",
    "at the end": "3 3",
}
FAULTS = {
    "a peer waits for the gradient": "raise@center=dc1,rank=1,round=1,epoch=0,step=2",
    "the rank that keeps the store": "raise@center=dc0,rank=0,round=0,epoch=1,step=1",
    "twice, in both": "oom@center=dc0,rank=1,round=1,epoch=0,step=0 raise@center=dc1,rank=0,round=1,epoch=1,step=3",
    "validation": "raise@center=dc0,rank=1,round=1,epoch=0,step=1,at=validation",
}


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("like_nccl")
    cases = {name: {"faults": faults} for name, faults in FAULTS.items()} | {"undisturbed": {}}
    cases["undisturbed, validated at rounds' ends"] = {"validation": "round"}
    cases |= {name: {"breaks": f"dc1 {place}", "validation": "round"} for name, place in LINKS.items()}
    cases = {
        name: {"run": folder / str(number), "rounds": ROUNDS, "backend": NAME} | of
        for number, (name, of) in enumerate(cases.items())
    }
    done = together(launch, folder, cases)
    return {name: (cases[name]["run"], done[name]) for name in cases}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_fails_while_gradients_are_reduced(finished, name):
    """After a local epoch's last batch too: no collective of DDP's comes between it and the mean."""
    done = finished[name][1]
    assert "restarting (1 of 3 in this round)" in done.err
    assert digests(done) == digests(finished["undisturbed, validated at rounds' ends"][1])


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_inside_a_data_center(finished, name):
    run, done = finished[name]
    assert digests(done) == digests(finished["undisturbed"][1])
    struck = sum(len(file.read_text().splitlines()) for file in run.glob("centers/*/faults.jsonl"))
    assert struck == len(FAULTS[name].split()) and "restarting (1 of 3 in this round)" in done.err


def test_a_lost_gpu_ends_the_run(launch, tmp_path):
    """... with 86 and at once, whoever waits in a collective; the next start goes on."""
    fault = "lost-gpu@center=dc1,rank=1,round=1,epoch=0,step=2"
    done = train(launch, tmp_path, ROUNDS, faults=fault, backend=NAME)
    assert done.code == 86 and done.orphans == []
    assert "device-side assert" in done.err and "only a new process can use the GPU" in done.err
    assert train(launch, tmp_path, ROUNDS, faults=fault, backend=NAME).code == 0
