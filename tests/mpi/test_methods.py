"""Vanilla, ensemble, single and the outer optimizer as real runs, each against a loop in this one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from colearn_hpc.data.pooled import PooledShards
from colearn_hpc.data.samplers import TrainBatchSampler
from colearn_hpc.data.shards import ShardDataset, ShardWriter

pytestmark = pytest.mark.mpi
REPOSITORY = Path(__file__).parent.parent.parent
CENTERS, EXAMPLES, BATCH, RATE, SEED = 2, 24, 4, 0.1, 3

NET = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """Starts from the same weights whatever the seed, so that a test knows them."""

    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_classes))
        generator = torch.Generator().manual_seed(5)
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x):
        return self.layers(x)
'''


def write_shard(path: Path, seed: int, examples: int = EXAMPLES) -> None:
    rng = np.random.RandomState(seed)
    with ShardWriter(path, task="classification", classes=["a", "b", "c"], length=examples) as writer:
        for i in range(examples):
            writer.append((rng.randn(6) + (i % 3) * 0.8).astype(np.float32), i % 3)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with two data centers' shards, a test shard, the net and a configuration."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "tinynet_of_test.py").write_text(NET)
    for k in range(CENTERS):
        write_shard(folder / f"dc{k}.h5", seed=k)
    write_shard(folder / "test.h5", seed=9, examples=31)
    config = {
        "centers": CENTERS,
        "colearning": {"rounds": 2, "local_epochs": 2, "resume_points": False},
        "trainer": {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0},
        "model": {
            "class_path": "Classifier",
            "init_args": {"network": "tinynet_of_test.Tiny", "num_classes": 3, "learning_rate": RATE},
        },
        "data": {
            "class_path": "ShardDataModule",
            "init_args": {
                "train": str(folder / "{center}.h5"),
                "test": str(folder / "test.h5"),
                "batch_size": BATCH,
                "seed": SEED,
            },
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


OUTER = {"class_path": "colearn_hpc.OuterSGD", "init_args": {"learning_rate": 0.7, "momentum": 0.9}}
BY_OUTER = ["--colearning.outer_optimizer", json.dumps(OUTER), "--colearning.schedule", "constant"]
BY_OUTER += ["--colearning.local_epochs_rule", "fle", "--colearning.local_epochs", "1"]
RESUMABLE = [*BY_OUTER, "--colearning.resume_points", "true"]
FITS = {  # by ranks; those of one number follow each other in the same processes
    1: {"single": ["--method", "single"]},
    2: {
        "vanilla": ["--method", "vanilla"],
        "outer": [*RESUMABLE, "--colearning.rounds=4"],
        "outer, first part": [*RESUMABLE, "--colearning.rounds=2", "--name=parts"],
        "outer, second part": [*RESUMABLE, "--colearning.rounds=4", "--name=parts", "--resume"],
        "outer alone": ["--method", "vanilla", *BY_OUTER, "--colearning.rounds=3"],
    },
    3: {"ensemble": ["--method", "ensemble", "--centers", "[2, 1]"]},
}


@pytest.fixture(scope="module")
def runs(launch, ground):
    """The folder of all run folders."""
    for ranks, fits in FITS.items():
        said, always = (
            ground / f"said-{ranks}",
            ["fit", f"--config={ground / 'config.yaml'}", f"--runs={ground / 'runs'}"],
        )
        said.mkdir()
        cases = {name: {"arguments": [*always, f"--name={name}", *arguments]} for name, arguments in fits.items()}
        (said / "cases.json").write_text(json.dumps(cases))
        launch(ranks, "exit_codes.py", said / "cases.json", env={"PYTHONPATH": str(ground)}).ok()
        for name in fits:
            codes = {path.read_text() for path in (said / name).glob("*.code")}
            assert codes == {"0"}, "".join(path.read_text() for path in (said / name).glob("*.err"))
    return ground / "runs"


def rounds(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def start() -> torch.nn.Module:
    from tinynet_of_test import Tiny

    return Tiny(3)


def shared(checkpoint: Path) -> torch.nn.Module:
    net = start()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    net.load_state_dict({key.removeprefix("network."): v for key, v in state.items() if key.startswith("network.")})
    return net


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach()


def train_epoch(net, dataset, rate: float, epoch: int, ranks: int = 1) -> None:
    """One epoch of plain SGD; the ranks' batches of a step are one batch."""
    samplers = [TrainBatchSampler(dataset, BATCH, ranks, rank, SEED) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for parts in zip(*samplers, strict=True):
        batches = [dataset[part] for part in parts]
        optimizer.zero_grad()
        loss = sum(cross_entropy(net(x), y) for x, y in batches) / ranks
        loss.backward()
        optimizer.step()


def elr(epoch: int) -> float:
    return RATE * 0.94 ** (epoch // 2)


def test_vanilla_trains_on_all_shards_as_one(runs, ground):
    run = runs / "vanilla"
    net, pooled = start(), PooledShards([ShardDataset(ground / f"dc{k}.h5") for k in range(CENTERS)])
    for epoch in range(4):
        train_epoch(net, pooled, elr(epoch), epoch, ranks=2)
    torch.testing.assert_close(weights(shared(run / "shared.ckpt")), weights(net), atol=1e-6, rtol=0)
    records = rounds(run)
    assert [center["name"] for center in records[0]["centers"]] == ["pooled"]
    assert sum(record["centers"][0]["examples"] for record in records) == 4 * CENTERS * EXAMPLES
    assert records[-1]["learning_rates"] == pytest.approx([elr(2), elr(3)])


def test_single_sees_one_shard_only(runs, ground):
    run = runs / "single"
    net = start()
    for epoch in range(4):
        train_epoch(net, ShardDataset(ground / "dc0.h5"), elr(epoch), epoch)
    torch.testing.assert_close(weights(shared(run / "shared.ckpt")), weights(net), atol=1e-6, rtol=0)
    assert sum(record["centers"][0]["examples"] for record in rounds(run)) == 4 * EXAMPLES


def test_ensemble_averages_probabilities_and_nothing_else(runs, ground):
    """Data centers of 2 and 1 ranks: their shares of the evaluation differ, its order may not matter."""
    run = runs / "ensemble"
    x, y = (part for part in ShardDataset(ground / "test.h5")[list(range(31))])
    nets = []
    for k, ranks in enumerate((2, 1)):
        net = start()
        for epoch in range(4):
            train_epoch(net, ShardDataset(ground / f"dc{k}.h5"), elr(epoch), epoch, ranks)
        member = shared(run / "centers" / f"dc{k}" / "member.ckpt")
        torch.testing.assert_close(weights(member), weights(net), atol=1e-6, rtol=0)
        nets.append(member)
    with torch.no_grad():
        each = torch.stack([torch.softmax(net(x), -1) for net in nets]).double()
    mean = each.mean(0)
    last = rounds(run)[-1]
    found = [center["shared_metrics"] for center in last["centers"]]
    assert found[0] == found[1]
    assert found[0]["val_acc"] == pytest.approx(float((mean.argmax(1) == y).double().mean()))
    assert found[0]["val_loss"] == pytest.approx(float(-mean[torch.arange(31), y].log().mean()), rel=1e-5)
    for k, center in enumerate(last["centers"]):
        own = float((each[k].argmax(1) == y).double().mean())
        assert center["local_metrics"]["val_acc"] == pytest.approx(own)
    assert last["relative_change"] is None and all(center["bytes_sent"] == 0 for center in last["centers"])
    assert not (run / "shared.ckpt").exists()


def test_outer_optimizer_steps_along_the_pseudo_gradient_and_resumes(runs, ground):
    whole, parts = runs / "outer", runs / "parts"
    net = start()
    reference = torch.optim.SGD(net.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for epoch in range(4):
        local = []
        for k in range(CENTERS):
            participant = start()
            participant.load_state_dict(net.state_dict())
            train_epoch(participant, ShardDataset(ground / f"dc{k}.h5"), RATE, epoch)
            local.append(participant)
        for mine, *theirs in zip(net.parameters(), *(p.parameters() for p in local), strict=True):
            mine.grad = mine.detach() - torch.stack([t.detach() for t in theirs]).mean(0)
        reference.step()
    torch.testing.assert_close(weights(shared(whole / "shared.ckpt")), weights(net), atol=1e-5, rtol=0)

    assert (parts / "centers" / "dc0" / "log.txt").read_text().count("training from") == 2
    assert torch.equal(weights(shared(parts / "shared.ckpt")), weights(shared(whole / "shared.ckpt")))


def test_an_outer_optimizer_steps_with_one_data_center_too(runs, ground):
    """The control with K = 1: what an outer optimizer gains there is not averaging's."""
    net, pooled = start(), PooledShards([ShardDataset(ground / f"dc{k}.h5") for k in range(CENTERS)])
    reference = torch.optim.SGD(net.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for epoch in range(3):
        inner = start()
        inner.load_state_dict(net.state_dict())
        train_epoch(inner, pooled, RATE, epoch, ranks=2)
        for mine, trained in zip(net.parameters(), inner.parameters(), strict=True):
            mine.grad = mine.detach() - trained.detach()
        reference.step()
    found = weights(shared(runs / "outer alone" / "shared.ckpt"))
    torch.testing.assert_close(found, weights(net), atol=1e-6, rtol=0)


def study(ground: Path, name: str, **changes) -> subprocess.CompletedProcess:
    content = {"name": name, "config": "config.yaml", "centers": CENTERS, "epochs": 3, "arms": ["clr+ile"]} | changes
    (ground / f"{name}.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "colearn_hpc", "study", "run", str(ground / f"{name}.yaml")]
    environment = dict(os.environ) | {"PYTHONPATH": str(ground), "OMP_NUM_THREADS": "1"}
    environment.pop("COLEARN_CENTER", None)
    return subprocess.run(
        [*command, "--out", str(ground / name), "--jobs", "1"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        timeout=300,
    )


def what_it_learned(run: Path) -> list:
    return [
        (r["relative_change"], [c["shared_metrics"] | c["local_metrics"] for c in r["centers"]]) for r in rounds(run)
    ]


def test_a_study_repeats_itself_and_its_trials_differ(launch, ground):
    first = study(ground, "first", seeds=[0, 1])
    assert first.returncode == 0, first.stderr
    second = study(ground, "second", seeds=[0])
    assert second.returncode == 0, second.stderr
    seed_0 = what_it_learned(ground / "first" / "runs" / "clr+ile-s0")
    assert seed_0 == what_it_learned(ground / "second" / "runs" / "clr+ile-s0")
    assert seed_0 != what_it_learned(ground / "first" / "runs" / "clr+ile-s1")

    before = (ground / "first" / "runs" / "clr+ile-s0" / "rounds.jsonl").stat().st_mtime_ns
    again = study(ground, "first", seeds=[0, 1])
    assert again.returncode == 0 and "2 of 2 runs are finished already" in again.stderr
    assert (ground / "first" / "runs" / "clr+ile-s0" / "rounds.jsonl").stat().st_mtime_ns == before
    assert "<svg" in (ground / "first" / "report.html").read_text()


def test_a_study_goes_on_after_a_failed_run(launch, ground):
    arms = {"broken": {"like": "clr+ile", "set": {"model.init_args.network": "no_such_net"}}, "single": None}
    found = study(ground, "failing", trials=1, arms=arms)
    assert found.returncode == 1
    assert found.stderr.count("broken-s0: FAILED") == 2 and "no_such_net" in found.stderr
    assert "single-s0: finished" in found.stderr
    assert "no_such_net" in (ground / "failing" / "report.html").read_text()
