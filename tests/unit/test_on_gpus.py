"""What training on GPUs needs, as far as it shows without one."""

import math

import pytest
import torch
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from toy import Toy

from colearn_hpc.algorithm.shared_model import FlatModel, are_finite
from colearn_hpc.trainer import generators, gpus
from colearn_hpc.trainer.optimizers import LossScale, skips_step
from colearn_hpc.trainer.supervisor import restore_modes


class FakeCuda:
    """GPUs whose generators are numbers, as far as this process sees them."""

    def __init__(self, monkeypatch, count, current):
        self.states = [torch.tensor([index]) for index in range(count)]
        fakes = {
            "is_initialized": lambda: True,
            "current_device": lambda: current,
            "get_rng_state": lambda: self.states[current].clone(),
            "set_rng_state": lambda state: self.states.__setitem__(current, state),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)


def test_a_rank_finds_its_generator_on_a_gpu_of_another_number(monkeypatch):
    FakeCuda(monkeypatch, 4, 3)
    state = generators.generators()
    assert [one.item() for one in state["cuda"]] == [3], "its own, and no other GPU is touched"
    alone = FakeCuda(monkeypatch, 1, 0)
    generators.set_generators(state)
    assert alone.states[0].item() == 3


def test_generators_of_the_first_version_are_by_number(monkeypatch):
    FakeCuda(monkeypatch, 2, 1)
    state = generators.generators() | {"cuda": [torch.tensor([10]), torch.tensor([11])]}
    two = FakeCuda(monkeypatch, 2, 1)
    generators.set_generators(state)
    assert [one.item() for one in two.states] == [0, 11]
    one = FakeCuda(monkeypatch, 1, 0)
    generators.set_generators(state)
    assert one.states[0].item() == 10


def test_no_gpu_is_touched_where_none_is_used():
    assert generators.generators()["cuda"] == []


def test_the_loss_scale_begins_again():
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=2))
    trainer = type("Trainer", (), {"precision_plugin": plugin})
    scale, scaler = LossScale.of(trainer), plugin.scaler
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(4):
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2048
    scaler.unscale_(optimizer)  # and the step fails before the update
    scale.reset()
    assert scaler.state_dict()["scale"] == 512 and scaler.state_dict()["_growth_tracker"] == 0
    scaler.unscale_(optimizer)
    assert LossScale.of(type("Trainer", (), {"precision_plugin": MixedPrecision("bf16-mixed", "cpu")})) is None


def test_a_step_that_is_skipped_is_known_before():
    """SCAFFOLD divides by the rates of the steps that were taken."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=512.0))
    trainer = type("Trainer", (), {"precision_plugin": plugin})
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for factor, skips in ((1.0, False), (math.inf, True), (1.0, False)):
        before = weight.detach().clone()
        plugin.scaler.scale(weight.sum() * factor).backward()
        plugin.scaler.unscale_(optimizer)
        assert skips_step(trainer, optimizer) == skips
        plugin.scaler.step(optimizer)
        plugin.scaler.update()
        assert torch.equal(weight, before) == skips
        optimizer.zero_grad()
    assert not skips_step(type("Trainer", (), {"precision_plugin": MixedPrecision("bf16-mixed", "cpu")}), optimizer)


def test_a_thread_with_another_gpu_waits_for_the_models(monkeypatch):
    """A site's rows are read by gRPC's thread, whose own GPU is the first one."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    model = FlatModel([("weight", torch.ones(3))])
    model.wait()
    assert waited == []
    model._gpu, model.on_gpu = torch.device("cuda", 2), True
    model.wait()
    assert waited == [torch.device("cuda", 2)]


def test_modes_outlive_sync_batch_norm():
    """Lightning makes new layers of SyncBatchNorm's when a fit ends, all in training mode."""
    module = Toy(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval()))
    sync = TorchSyncBatchNorm()
    training = sync.apply(module)
    modes = {name: part.training for name, part in training.named_modules(remove_duplicate=False)}
    after = sync.revert(training)
    assert after.net[1].training, "if not, Lightning has mended it: see whether modes still need names"
    restore_modes(after, modes)
    assert (after.net[0].training, after.net[1].training) == (True, False)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_all_tensors_are_looked_at_in_one_go(wrong):
    tensors = [torch.ones(3), torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)]
    assert are_finite(tensors) and are_finite([])
    tensors[1][0, 1] = wrong
    assert not are_finite(tensors)


def test_a_gpu_that_is_lost_says_so_late(monkeypatch):
    def synchronize(device):
        assert device == gpu
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")

    gpu = torch.device("cuda", 1)
    assert gpus.lost_gpu(gpu) == ""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert gpus.lost_gpu(gpu) == "CUDA error: device-side assert triggered"
    assert gpus.lost_gpu(torch.device("cpu")) == "", "a run on CPUs asks no GPU"
