"""Fixtures for shards."""

from pathlib import Path

import numpy as np
import pytest

from colearn_hpc.data.shards import ShardWriter


@pytest.fixture
def make_shard(tmp_path):
    """Write a small image shard and return its path."""

    def make(name: str = "dc0.h5", n: int = 10, classes: int = 3, seed: int = 0, **options) -> Path:
        rng = np.random.RandomState(seed)
        settings = {
            "task": "classification",
            "classes": [f"class{c}" for c in range(classes)],
            "kind": "image",
            "length": n,
            "metadata": {"scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
        }
        path = tmp_path / name
        with ShardWriter(path, **(settings | options)) as writer:
            for i in range(n):
                writer.append(rng.randint(0, 256, (3, 4, 5)).astype(np.uint8), i % classes)
        return path

    return make
