"""A model in shards (FSDP2, tensor parallelism) trains as the whole one does, and is resumed to the bit."""

import json

import pytest
import torch

from colearn_hpc.cli.export import export

pytestmark = pytest.mark.mpi

STATISTICS = [f"net.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
STOP = {"shards": True, "stop": [2, 1], "folder": "stopped"}
RUNS = {
    "whole": {"shards": False},
    "shards": {"shards": True},
    "stopped": STOP,
    "resumed": {"shards": True, "resume": True, "folder": "stopped"},
    "whole, outer": {"shards": False, "outer": True},
    "shards, outer": {"shards": True, "outer": True},
    "int8": {"shards": True, "exchange": {"codec": "int8"}},
    "device": {"shards": True, "exchange": {"device": True}},
    "plain": {"shards": False, "plain": True},
    "tensor": {"shards": True, "tensor": True},
    "tensor, stopped": STOP | {"tensor": True, "folder": "tensor-stopped"},
    "tensor, resumed": {"shards": True, "tensor": True, "resume": True, "folder": "tensor-stopped"},
    "tensor, int8": {"shards": True, "tensor": True, "exchange": {"codec": "int8"}},
    "left whole": {"shards": True, "leave_whole": [3]},
    "overlap": {"shards": True, "exchange": {"overlap": True}},
}


def started(launch, folder, centers, ranks, runs):
    done = launch(ranks, "sharded.py", centers, folder, json.dumps(runs), timeout=400)
    assert done.code == 0 and not done.orphans, done.err
    return json.loads(done.out.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def found(launch, folder):
    return started(launch, folder, 2, 4, RUNS)


@pytest.mark.parametrize("name", ["shards", "resumed", "shards, outer", "int8", "tensor", "tensor, resumed"])
def test_all_ranks_have_one_model(found, name):
    assert len(found[name]["bits"]) == 4 and len(set(found[name]["bits"])) == 1


@pytest.mark.parametrize(("whole", "shards"), [("whole", "shards"), ("whole, outer", "shards, outer")])
def test_fsdp2_has_the_bits_of_ddp(found, whole, shards):
    """Two ranks' gradients have one sum. Not so BatchNorm's statistics: DDP copies rank 0's to all at every batch."""
    assert found[shards]["weights"] == found[whole]["weights"]
    assert found[shards]["changes"] == pytest.approx(found[whole]["changes"], rel=1e-12), "eq. 4: other summands"
    for mine, theirs in zip(found[shards]["divergences"], found[whole]["divergences"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_from_device_to_device(found):
    """Each rank is a lane, and sends its shard from where it lies."""
    assert found["device"]["bits"] == found["shards"]["bits"]
    assert found["device"]["changes"] == found["shards"]["changes"]


def test_tensor_parallelism(found):
    """What every rank of a mesh holds, such as the last bias, counts once in eq. 4."""
    assert found["tensor"]["weights"] == pytest.approx(found["plain"]["weights"], abs=1e-6)
    assert found["tensor"]["changes"] == pytest.approx(found["plain"]["changes"], rel=1e-6)


def test_no_rank_holds_the_model(found):
    assert all(held < 0.6 * found["shards"]["size"] for held in found["shards"]["held"])


def test_one_file_of_the_parts(found, folder):
    """``shared.ckpt`` is a folder with a part per rank, and nobody's own memory of the run is exported with it."""
    assert (folder / "shards" / "shared.ckpt").is_dir()
    export(folder / "shards", folder / "model.pt")
    state = torch.load(folder / "model.pt", weights_only=True)
    assert list(state)[:2] == ["net.0.weight", "net.0.bias"]
    weights = [tensor for name, tensor in state.items() if name.endswith(("weight", "bias"))]
    assert torch.cat([tensor.reshape(-1) for tensor in weights]).tolist() == found["shards"]["weights"]
    assert set(state) == {*(f"net.{k}.{one}" for k in (0, 1, 3) for one in ("weight", "bias")), *STATISTICS}


def test_a_codec_on_shards(found):
    assert found["int8"]["weights"] == pytest.approx(found["shards"]["weights"], abs=0.02)
    assert found["int8"]["weights"] != found["shards"]["weights"]


@pytest.mark.parametrize(
    ("stopped", "resumed", "whole"),
    [("stopped", "resumed", "shards"), ("tensor, stopped", "tensor, resumed", "tensor")],
)
def test_resumed_in_the_middle_of_a_round(found, stopped, resumed, whole):
    # At a batch of epoch 2, or at its end where the stop was agreed on late: round 1 has epochs 2 and 3.
    assert found[resumed]["resumed"] in found[stopped]["interrupted"]
    assert found[resumed]["resumed"].startswith(("resume-round000001-epoch000002-b", "resume-round000001-epoch000003"))
    for key in ("weights", "buffers", "changes", "divergences", "bits"):
        assert found[resumed][key] == found[whole][key], key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("left whole", "hold different values of net.3.weight: it is not sharded, so its gradient is each rank's own"),
        ("tensor, int8", "net.2.bias is held by several ranks, and the codec int8 would round its copies differently"),
        ("overlap", 'exchange={"overlap": True} cannot be combined with ModelParallelStrategy; use a mean at the'),
    ],
)
def test_what_cannot_be_had(found, name, message):
    assert message in found[name]["error"]


@pytest.mark.exhaustive(sample=0)
def test_three_data_centers(launch, tmp_path):
    found = started(launch, tmp_path, 3, 6, {name: RUNS[name] for name in ("whole", "shards", "stopped", "resumed")})
    assert found["shards"]["weights"] == found["whole"]["weights"]
    assert found["resumed"]["bits"] == found["shards"]["bits"]


def test_unequal_data_centers(launch, tmp_path):
    done = launch(3, "sharded.py", json.dumps([2, 1]), tmp_path, json.dumps({"shards": {"shards": True}}), timeout=120)
    assert "a sharded model needs as many ranks in every data center" in done.out + done.err
