"""A checkpoint as it is now, which training does not change any more."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

_Kind: TypeAlias = tuple[Any, ...]  # of a tensor: those of one kind can hold each other's values


class StateCopy:
    """Copies checkpoints into memory of its own, which the next copy uses again: to touch new pages takes several times
    as long as to copy. So it holds one checkpoint on the CPU."""

    def __init__(self) -> None:
        self._kept: dict[_Kind, list[Tensor]] = {}

    @torch.no_grad()
    def take(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Copy a checkpoint. What was returned before must not be in use any more.

        Args:
            checkpoint: anything that ``torch.save`` takes.

        Returns:
            The same, with all tensors on the CPU.

        Raises:
            Exception: something of a user's can be saved, and not copied.
        """
        free, self._kept = self._kept, defaultdict(list)
        copies: dict[int, Any] = {}  # of an object, by id, as deepcopy wants it
        views: dict[_Kind, Tensor] = {}  # of one place in memory: tied weights stay one tensor
        for tensor in _tensors(checkpoint):
            kind = (tensor.dtype, tensor.shape, tensor.stride())
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), *kind)
            if place not in views:
                there = free.get(kind)
                mine = there.pop() if there else torch.empty_like(tensor, device="cpu")
                self._kept[kind].append(mine)
                views[place] = mine.copy_(tensor)
            copies[id(tensor)] = views[place]
        found: dict[str, Any] = copy.deepcopy(checkpoint, copies)
        return found


def _tensors(value: object) -> Iterator[Tensor]:
    """Plain tensors in mappings and sequences; those in other objects, and others' kinds, are left to ``deepcopy``."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif type(value) is Tensor and value.layout == torch.strided and not (value.requires_grad or value.is_quantized):
        yield value
