"""What two runs that are to be equal left in their folders."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import torch


def lines(run: Path) -> list[dict]:
    """rounds.jsonl without what a clock measured, and without the chain: it begins with the run's settings."""
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    records = [record for record in records if "roster" not in record]
    for record in records:
        record.pop("chain", None)
        for center in record["centers"]:
            for key in ("train_seconds", "wait_seconds", "exchange_seconds"):
                del center[key]
    return records


def shared_bits(run: Path) -> str:
    """Digest of the shared model."""
    state = torch.load(run / "shared.ckpt", map_location="cpu")["state_dict"]
    return sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest()
