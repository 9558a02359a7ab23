"""The random number generators of a process: what a resume point holds of them, and how they are put back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """The state of this process's random number generators, as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": list(random.getstate()[1]),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        # Of the GPU that this rank trains on, and of no other: after a new start it may have another number.
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }


def set_rank_generators(states: Sequence[dict[str, Any]], rank: int) -> None:
    """Put back this rank's generators; a rank that the data center did not have before gets streams of its own."""
    set_generators(states[rank % len(states)])
    if rank >= len(states):
        seed = int(torch.randint(2**31, ()).item()) + rank
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def set_generators(state: dict[str, Any]) -> None:
    """Put back what :func:`generators` returned."""
    random.setstate((3, tuple(state["python"]), None))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized():
        # Points of 0.1.0 hold a state for each GPU that the rank saw, by number.
        torch.cuda.set_rng_state(state["cuda"][min(torch.cuda.current_device(), len(state["cuda"]) - 1)])
