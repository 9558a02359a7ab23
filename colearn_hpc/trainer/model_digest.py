"""The digest by which data centers name a shared model to each other, and by which ``shared.ckpt`` is verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def model_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of the floating-point tensors of a ``state_dict``, ``sha256:`` and 64 hexadecimal digits.

    Names, types and shapes belong to it; counters such as ``num_batches_tracked`` do not: they stay in each data
    center.
    """
    digest = hashlib.sha256(b"colearn model\0")
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.layout == torch.strided:
            digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()
