"""Data: shards (one HDF5 file per data center), how they are made, and how Lightning reads them.

The names below are resolved when asked for, so that ``colearn-hpc data --help`` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EvalBatchSampler": "samplers",
    "ShardDataModule": "datamodule",
    "ShardDataset": "shards",
    "ShardInfo": "shards",
    "ShardWriter": "shards",
    "TrainBatchSampler": "samplers",
    "check_shard": "shards",
    "read_info": "shards",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
