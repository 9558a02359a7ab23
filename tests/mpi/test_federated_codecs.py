"""Coded steps between sites: an oracle of their own, for a site codes its whole step and the coordinator the mean's."""

import hashlib
import json

import numpy as np
import pytest
import torch
from test_federated_sums import NAMES, ROUNDS, SIZE, ends, folders, lines, walk  # noqa: F401

from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.shared_model import weighted_mean

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]


def recoded(codec, values):
    message, decoded = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8), torch.empty(len(values))
    codec.encode(values, message)
    codec.decode(message, decoded)
    return decoded


def oracle(name):
    """The digest of the shared model of summing.py's run, computed without a wire."""
    codec, ones = codec_of(name), [1.0] * len(NAMES)
    shared, variance = torch.full((SIZE,), 0.0), torch.full((SIZE // 10 + 1,), 1.0)
    lacks, mean_lacks = [torch.zeros(SIZE) for _ in NAMES], torch.zeros(SIZE)
    for round_ in range(ROUNDS):
        steps, variances = [], []
        for index in range(len(NAMES)):
            draw = np.random.default_rng([round_, index])
            local = shared * 0.999
            local.add_(torch.from_numpy(draw.standard_normal(SIZE, dtype=np.float32)), alpha=0.01)
            drawn = torch.from_numpy(draw.random(len(variance), dtype=np.float32))
            variances.append((variance * 0.9).add_(drawn, alpha=0.1))
            step = local - shared + lacks[index]
            steps.append(recoded(codec, step))
            if codec.feedback:
                lacks[index] = step - steps[index]
        mean = weighted_mean(steps, ones) + mean_lacks
        said = recoded(codec, mean)
        if codec.feedback:
            mean_lacks = mean - said
        shared, variance = shared + said, weighted_mean(variances, ones)
    return hashlib.sha256(torch.cat([shared, variance]).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    "name",
    ["int8", *(pytest.param(name, marks=pytest.mark.exhaustive(sample=0)) for name in ("bf16", "fp16"))],
)
def test_coded_steps_have_the_bits_of_their_oracle_over_kills_too(walk, name):  # noqa: F811
    """A site and the coordinator are killed in the middle of an exchange: neither forgets what its messages lacked."""
    walking = walk({"codec": name}, only={"dc1": {"kill_at": 2}})
    walking.wait(lambda: (folders(walking)[1] / "struck").exists())
    walking.consortium.kill()
    walking.consortium.serve()
    walking.wait(walking.done)
    assert {ends(folder) for folder in folders(walking)} == {oracle(name)}, walking.said()
    assert [line.split()[:2] for line in lines(folders(walking)[0])] == [
        line.split()[:2] for line in lines(folders(walking)[2])
    ]


def test_who_has_missed_a_mean_takes_the_next_step_from_the_right_model(walk):  # noqa: F811
    """Steps are from the last shared model, and a site that was left out does not hold it: it is handed on first."""
    walking = walk(
        {"codec": "int8"},
        rounds=6,
        pause=0.3,
        only={"dc1": {"kill_at": 1}},
        on_failure="continue_without",
        round_timeout=2.0,
    )
    walking.wait(lambda: (folders(walking)[1] / "struck").exists(), restart=False)
    walking.wait(lambda: len(lines(folders(walking)[0])) >= 3, restart=False)
    walking.wait(walking.done)
    assert len(walking.bits()) == 1, walking.said()
    assert any("missed round 1" in line for line in lines(folders(walking)[1]))
    assert json.dumps(lines(folders(walking)[0])).count("void") == 0  # weights may be summed over fewer
