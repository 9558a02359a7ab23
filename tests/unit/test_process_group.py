"""Leaving a process group whose collectives end by nothing but one's own abort, with a backend that does as NCCL."""

import os
import threading
from datetime import timedelta

import pytest
import torch
from like_nccl import NAME, LikeNccl
from torch import distributed

from colearn_hpc.protocol.failures import is_lost_gpu, is_lost_peer
from colearn_hpc.trainer import process_group
from colearn_hpc.trainer.process_group import Listener, abort_communicators, leave_process_group, needs_abort

TIMEOUT = timedelta(seconds=60)


@pytest.fixture(autouse=True)
def no_group_of_another_test():
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def group():
    """This process's process group: rank 0 of two. The other rank is a store's client in the same process."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    distributed.init_process_group(NAME, store=store, rank=0, world_size=2, timeout=TIMEOUT)
    yield store
    if distributed.is_initialized():
        distributed.destroy_process_group()


class InCollective(threading.Thread):
    """Rank 0 in a collective that rank 1 will not come to."""

    def __init__(self):
        super().__init__(daemon=True)
        self.tensor = torch.full((3,), 7.0)
        self.start()

    def run(self):
        distributed.all_reduce(self.tensor)


def test_nothing_but_its_own_abort_calls_a_rank_out_of_a_collective(group, monkeypatch):
    monkeypatch.setattr(process_group, "LISTEN_INTERVAL", 0.01)
    assert needs_abort()
    other = LikeNccl(group, 1, 2, TIMEOUT)
    stuck = InCollective()
    other.abort()  # the rank that failed leaves by itself, and the other hears nothing
    stuck.join(0.5)
    assert stuck.is_alive()

    here, there = Listener(abort_communicators), Listener(other.abort)
    there.call()
    stuck.join(30)
    assert not stuck.is_alive()
    assert stuck.tensor.tolist() == [7.0] * 3, "it came out without a result, and nobody told it"
    with pytest.raises(RuntimeError, match="NCCL communicator was aborted") as caught:
        distributed.all_reduce(torch.ones(1))
    assert is_lost_peer(caught.value)
    for listener in (here, there):
        listener.stop()
    leave_process_group({})
    assert not distributed.is_initialized()


def test_who_calls_does_not_abort_twice(group, monkeypatch):
    monkeypatch.setattr(process_group, "LISTEN_INTERVAL", 0.01)
    aborted = []
    listener = Listener(lambda: aborted.append(1))
    listener.call()
    listener.stop()
    assert aborted == [] and not listener._thread.is_alive()


def test_gloo_needs_no_abort():
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert not needs_abort()
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    for one in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "3")
    process_group.prepare_error_handling()
    assert os.environ[name] == "3"
    monkeypatch.delenv(name)
    process_group.prepare_error_handling()
    assert os.environ.pop("TORCH_NCCL_ASYNC_ERROR_HANDLING") == "2"


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be ...", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("HIP error: unspecified launch failure", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: out of memory", False),
        ("CUDA error: invalid device ordinal", False),
        ("the sensor says: device-side assert", False),
    ],
)
def test_errors_that_cost_a_process_its_gpu(text, lost):
    assert is_lost_gpu(torch.AcceleratorError(text)) is lost
    assert not is_lost_gpu(ValueError(text))
