"""Made-up models, and what is said of them at a mean."""

from __future__ import annotations

import math

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from colearn_hpc.algorithm.encoding import WholeNumbers
from colearn_hpc.algorithm.fixed_point import encode, scales_for
from colearn_hpc.algorithm.shared_model import FlatEntry
from colearn_hpc.between import Offer, Vector
from colearn_hpc.privacy.keys import AttemptKeys, Transcript
from colearn_hpc.privacy.masks import Masks

SIZE, PARAMETERS = 1000, 700
ENTRIES = [FlatEntry("w", 0, PARAMETERS), FlatEntry("b", PARAMETERS, SIZE - PARAMETERS)]


def models(centers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(SIZE, generator=generator)
    return previous, list(previous + 0.01 * torch.randn(centers, SIZE, generator=generator))


def offer_of(encoding, vector, previous, weights):
    return Offer(Vector(vector), torch.full((SIZE,), math.nan), weights, PARAMETERS, previous, encoding)


def whole(row, previous, centers, bits=32, factor=1.0):
    scales = scales_for(ENTRIES, [0.01, 0.01], bits, centers)
    numbers = torch.empty(SIZE, dtype=scales.dtype)
    assert encode(row, previous, scales, factor, numbers)
    return WholeNumbers(previous, scales, factor, float(centers), numbers), numbers


def masks_of(transcript: Transcript) -> list[Masks]:
    """Of every site, by real keys."""
    signing = {site: Ed25519PrivateKey.generate() for site in transcript.roster}
    keys = {site: AttemptKeys(site, signing[site], transcript) for site in transcript.roster}
    signed, certified = [own.signed for own in keys.values()], {site: key.public_key() for site, key in signing.items()}
    return [Masks(keys[site].seeds(signed, certified), transcript) for site in transcript.roster]
