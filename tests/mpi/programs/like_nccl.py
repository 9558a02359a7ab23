"""A backend for torch.distributed on CPUs that breaks as NCCL does, for processes that have no GPU.

A collective returns when all ranks have come, or after this rank's own abort; nothing that happens to another rank ends
it. After an abort it returns *without a result*, as a kernel that is told to leave does, and only the next collective
says "NCCL communicator was aborted". Values travel through the store; only what DDP and Lightning call is here.

    import like_nccl
    DDPStrategy(process_group_backend=like_nccl.NAME)
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, distributed
from torch.futures import Future

NAME = "like_nccl"
BREAKS: list[bool] = []  # not empty: the next collective is ended by the backend itself, as where a link has failed


def _done(value: object) -> distributed.Work:
    future: Future = Future()
    future.set_result(value)
    return torch._C._distributed_c10d._create_work_from_future(future)


class LikeNccl(distributed.ProcessGroup):
    """See above. The arguments are those that torch gives to the maker of a backend."""

    def __init__(self, store: distributed.Store, rank: int, size: int, timeout: object) -> None:
        super().__init__(rank, size)
        self._store, self._number = store, 0
        self._aborted = threading.Event()

    def getBackendName(self) -> str:  # noqa: N802
        return NAME

    def abort(self) -> None:
        self._aborted.set()

    def shutdown(self) -> None:
        self.abort()

    def everyones(self, tensor: Tensor) -> list[Tensor] | None:
        """Each rank's tensor; None after an abort."""
        if self._aborted.is_set():
            raise RuntimeError(f"NCCL communicator was aborted on rank {self.rank()}.")
        if BREAKS:
            BREAKS.clear()
            self.abort()
            return None
        self._number += 1
        keys = [f"{self._number}/{rank}" for rank in range(self.size())]
        flat = tensor.detach().contiguous().reshape(-1)
        self._store.set(keys[self.rank()], flat.view(torch.uint8).numpy().tobytes())
        while not self._store.check(keys):
            if self._aborted.wait(0.002):
                return None
        parts = [torch.frombuffer(bytearray(self._store.get(key)), dtype=torch.uint8) for key in keys]
        return [part.view(tensor.dtype).reshape(tensor.shape) for part in parts]

    def allreduce(self, tensors: list[Tensor], opts: object = None) -> distributed.Work:
        reduce = getattr(opts, "reduceOp", distributed.ReduceOp.SUM)
        for tensor in tensors:
            if (found := self.everyones(tensor)) is not None:
                stacked = torch.stack(found)
                if reduce == distributed.ReduceOp.MAX:
                    tensor.copy_(stacked.amax(0))
                else:
                    tensor.copy_(stacked.sum(0) / (len(found) if reduce == distributed.ReduceOp.AVG else 1))
        return _done(tensors)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: object = None) -> distributed.Work:
        return self.allreduce(tensors, opts)

    def broadcast(self, tensors: list[Tensor], opts: object) -> distributed.Work:
        for tensor in tensors:
            if (found := self.everyones(tensor)) is not None:
                tensor.copy_(found[opts.rootRank])  # type: ignore[attr-defined]
        return _done(tensors)

    def allgather(self, outputs: list[list[Tensor]], tensors: list[Tensor], opts: object = None) -> distributed.Work:
        for into, tensor in zip(outputs, tensors, strict=True):
            for one, found in zip(into, self.everyones(tensor) or (), strict=False):
                one.copy_(found)
        return _done(outputs)

    def barrier(self, opts: object = None) -> distributed.Work:
        self.everyones(torch.zeros(1))
        return _done([])


distributed.Backend.register_backend(NAME, LikeNccl, devices=["cpu"])
