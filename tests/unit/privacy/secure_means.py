"""Whole-number means of made-up models in one process, plain or under masks."""

from __future__ import annotations

from dataclasses import dataclass

import in_memory
import torch
from made_up import masks_of
from torch import Tensor

from colearn_hpc.algorithm.encoding import WholeNumbers
from colearn_hpc.algorithm.fixed_point import encode, scales_for
from colearn_hpc.algorithm.shared_model import FlatEntry
from colearn_hpc.between import Offer, Vector
from colearn_hpc.privacy.keys import Transcript
from colearn_hpc.privacy.masked import MaskedNumbers


@dataclass
class Models:
    """A shared model and what K sites made of it; the first ``parameters`` elements are parameters."""

    previous: Tensor
    rows: list[Tensor]
    parameters: int

    @classmethod
    def made_up(cls, sites: int, size: int = 3000, seed: int = 0) -> Models:
        generator = torch.Generator().manual_seed(seed)
        previous = torch.randn(size, generator=generator)
        rows = list(previous + 0.01 * torch.randn(sites, size, generator=generator))
        return cls(previous, rows, size - size // 5)

    @property
    def entries(self) -> list[FlatEntry]:
        size = len(self.previous)
        return [FlatEntry("weight", 0, self.parameters), FlatEntry("buffer", self.parameters, size - self.parameters)]


def taken(
    models: Models, secure: bool, bits: int = 32, order=None
) -> tuple[list[Tensor], list[Tensor], in_memory.Wire]:
    """(each site's mean, each site's whole numbers, what was sent)."""
    sites, size = len(models.rows), len(models.previous)
    scales = scales_for(models.entries, [0.01, 0.01], bits, sites)
    roster = tuple(f"site{k}" for k in range(sites))
    plan = ("run", 0, 0, roster, size + 1, bits, scales.exponents, (1.0,) * sites)
    masks = masks_of(Transcript(*plan)) if secure else [None] * sites
    offers, numbers = [], []
    for row, mask in zip(models.rows, masks, strict=True):
        own = torch.empty(size, dtype=scales.dtype)
        assert encode(row, models.previous, scales, 1.0, own)
        numbers.append(own.clone())
        known = (models.previous, scales, 1.0, float(sites), own)
        encoding = WholeNumbers(*known) if mask is None else MaskedNumbers(*known, masks=mask)
        result = torch.full((size,), torch.nan)
        offers.append(Offer(Vector(own), result, [1.0] * sites, models.parameters, models.previous, encoding))
    wire = in_memory.mean(offers, [1.0] * sites, order)
    return [offer.result for offer in offers], numbers, wire
