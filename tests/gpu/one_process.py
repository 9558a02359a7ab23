"""Steps of tests/gpu/check.py in one process: the flat model on a device, and a communicator that is aborted.

usage: one_process.py flat-model|communicator DEVICE
"""

from __future__ import annotations

import math
import sys
import threading

import like_nccl
import torch
from torch import distributed, nn

from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    first_non_finite,
    float_buffers,
    relative_change,
    trainable_parameters,
    weighted_mean,
)
from colearn_hpc.trainer.process_group import Listener, abort_communicators, leave_process_group, needs_abort

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


class Mixed(nn.Module):
    """Every dtype that is exchanged, a tensor in channels_last, a tied one, and buffers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for number, dtype in enumerate(DTYPES):
            value = torch.randn(37, 11, generator=generator, dtype=torch.float32).to(dtype)
            self.register_parameter(f"p{number}", nn.Parameter(value))
        image = torch.randn(8, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last)
        self.image = nn.Parameter(image)
        self.one = nn.Linear(40, 40)
        self.two = nn.Linear(40, 40)
        with torch.no_grad():
            self.one.weight.copy_(torch.randn(40, 40, generator=generator))
            self.one.bias.copy_(torch.randn(40, generator=generator))
            self.two.bias.copy_(torch.randn(40, generator=generator))
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(40)
        self.norm.running_mean.copy_(torch.randn(40, generator=generator))
        self.large = nn.Parameter(torch.randn(3_000_000, generator=generator))


def flat_model(device: str) -> None:
    """What is packed and unpacked on the device has the bits of the CPU's way."""
    here, there = Mixed(0), Mixed(0).to(device)
    one, other = FlatModel.of(here), FlatModel.of(there)
    assert one.size == other.size and other.on_gpu == (device == "cuda")
    assert torch.equal(one.pack(), other.pack()), "pack"
    assert first_non_finite(None, other) == ""
    # Kernels are queued, and what is read must be what they leave.
    with torch.no_grad():
        for module in (here, there):
            for _ in range(50):
                module.large.mul_(1.01)
    scratch = other.staging(other.size)
    found = other.read(0, other.size, scratch)
    other.wait()
    assert torch.equal(found, one.pack()), "a read behind kernels that are queued"
    # The vector on the device itself, and the mean there (`exchange: {device: true}`).
    near = FlatModel(trainable_parameters(there), float_buffers(there), device=there.large.device)
    near_vector, far_vector = near.pack(), one.pack()
    assert near_vector.device == there.large.device and torch.equal(near_vector.cpu(), far_vector), "pack there"
    near_vector, far_vector = near_vector.float(), far_vector.float()  # as models are; of float64 products are rounded
    rows, weights = [far_vector, far_vector * 1.7, far_vector - 0.3], [3.0, 17.0, 5.0]
    expected = weighted_mean(rows, weights)
    mean = weighted_mean([row.to(near_vector) for row in rows], weights)
    assert torch.equal(mean.cpu(), expected), "the mean there"
    change = relative_change(mean, near_vector)
    assert math.isclose(change, relative_change(expected, far_vector), rel_tol=1e-9), "eq. 4 there"
    vector = FlatModel.of(Mixed(1)).pack()
    one.unpack(vector)
    other.unpack(vector)
    after = there.one(torch.ones(2, 40, device=device))  # right after, on another call
    expected = here.one(torch.ones(2, 40))
    assert torch.allclose(after.cpu(), expected, rtol=1e-4, atol=1e-4), "a forward right after an unpack"
    for (name, mine), (_, its) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert torch.equal(mine, its.cpu()), name
    assert there.image.is_contiguous(memory_format=torch.channels_last), "channels_last is kept"
    with torch.no_grad():
        there.norm.running_mean[3] = float("nan")
    assert first_non_finite(None, other) == "norm.running_mean"
    print(f"{other.size} elements, {len(other.entries)} tensors on {device}")


def communicator(device: str) -> None:
    """A group of one rank: a collective, an abort by a listener, and a group after it."""
    backend = "nccl" if device == "cuda" else like_nccl.NAME
    for turn in range(2):
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        number = torch.ones(5, device=device)
        distributed.all_reduce(number)
        assert number.sum().item() == 5 and needs_abort()
        aborted = threading.Event()

        def abort(done: threading.Event = aborted) -> None:
            abort_communicators()
            done.set()

        here, other = Listener(abort), Listener(lambda: None)
        other.call()
        assert aborted.wait(60), "the listener did not abort"
        try:
            distributed.all_reduce(number)
            raise AssertionError("a collective after the abort did not fail")
        except RuntimeError as error:
            said = str(error).splitlines()[0]
        for listener in (here, other):
            listener.stop()
        leave_process_group({})
        assert not distributed.is_initialized()
        print(f"group {turn} of {backend}: after its abort: {said}")


{"flat-model": flat_model, "communicator": communicator}[sys.argv[1]](sys.argv[2])
