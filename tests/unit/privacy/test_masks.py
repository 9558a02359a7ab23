"""Masks vanish from the sum, to the bit, and what a site sends looks random; each key and seed serves one sum."""

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.stats import chisquare, kstest

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.keys import AttemptKeys, SignedKey, Transcript
from colearn_hpc.privacy.masks import Masks

TYPES = {32: np.uint32, 64: np.uint64}


def transcript(sites=3, size=1000, bits=32, **changed):
    roster = tuple(f"site{k}" for k in range(sites))
    made = {"run": "r", "round": 2, "attempt": 0, "roster": roster, "size": size, "bits": bits, "scales": (20, 24)}
    return Transcript(**made | {"weights": (1.0,) * len(changed.get("roster", roster))} | changed)


def certificates(roster, make=Ed25519PrivateKey.generate):
    signing = {site: make() for site in roster}
    return signing, {site: key.public_key() for site, key in signing.items()}


def masks_of(plan, make=Ed25519PrivateKey.generate):
    """Masks of every site of a sum."""
    signing, certified = certificates(plan.roster, make)
    keys = {site: AttemptKeys(site, signing[site], plan) for site in plan.roster}
    signed = [own.signed for own in keys.values()]
    return [Masks(keys[site].seeds(signed, certified), plan) for site in plan.roster]


def vectors(plan):
    rng = np.random.default_rng(plan.size)
    top = 2**plan.bits // len(plan.roster)
    return [rng.integers(0, top, plan.size, dtype=TYPES[plan.bits]) for _ in plan.roster]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("sites", [3, 5, 16])
def test_the_sum_is_the_sum_in_any_order(sites, bits):
    plan = transcript(sites, 70_001, bits)  # more than a block of keystream, and no multiple of anything
    plain = vectors(plan)
    sent = [vector.copy() for vector in plain]
    for masks, vector in zip(masks_of(plan), sent, strict=True):
        masks.add(vector, 0)
    expected = np.sum(plain, axis=0, dtype=TYPES[bits])
    for order in (range(sites), reversed(range(sites)), np.random.default_rng(0).permutation(sites)):
        total = np.zeros(plan.size, TYPES[bits])
        for k in order:
            total += sent[k]
        assert np.array_equal(total, expected)


@pytest.mark.parametrize("bits", [32, 64])
def test_chunks_may_be_masked_at_any_offset_in_any_order(bits):
    plan = transcript(3, 50_000, bits)
    plain = vectors(plan)
    sent = [vector.copy() for vector in plain]
    for k, masks in enumerate(masks_of(plan)):
        rng = np.random.default_rng(k)
        cuts = [0, *sorted(rng.choice(np.arange(1, plan.size), 9, replace=False)), plan.size]
        chunks = list(itertools.pairwise(cuts))
        for start, stop in rng.permutation(chunks):
            masks.add(sent[k][start:stop], int(start))
    assert np.array_equal(np.sum(sent, axis=0, dtype=TYPES[bits]), np.sum(plain, axis=0, dtype=TYPES[bits]))


def test_the_end_of_the_largest_vector():
    """256 GiB: the last block that ChaCha20's counter of 32 bits reaches."""
    plan = transcript(3, 2**36)
    rows = [np.zeros(64, np.uint32) for _ in plan.roster]
    for masks, row in zip(masks_of(plan), rows, strict=True):
        masks.add(row, plan.size - 64)
    assert not np.sum(rows, axis=0, dtype=np.uint32).any()
    assert len(set(np.concatenate(rows).tolist())) > 180, "nothing repeats"
    with pytest.raises(PrivacyError, match="a vector at most 256 GiB"):
        transcript(3, 2**36 + 1)


def test_a_masked_row_looks_uniform():
    plan = transcript(3, 200_000)
    plain = np.full(plan.size, 7, np.uint32)  # as far from uniform as can be
    for masks in masks_of(plan):
        row = plain.copy()
        masks.add(row, 0)
        assert kstest(row / 2**32, "uniform").pvalue > 1e-6
        for shift in (0, 8, 16, 24):
            counts = np.bincount((row >> shift) & 255, minlength=256)
            assert chisquare(counts).pvalue > 1e-6
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.02
    assert kstest(plain / 2**32, "uniform").pvalue < 1e-6, "the test can fail"


def test_a_sum_over_fewer_is_random_too():
    plan = transcript(4, 100_000)
    total = np.zeros(plan.size, np.uint32)
    for masks in masks_of(plan)[:3]:
        row = np.full(plan.size, 7, np.uint32)
        masks.add(row, 0)
        total += row
    assert kstest(total / 2**32, "uniform").pvalue > 1e-6


def test_attempts_have_other_masks():
    rows = []
    for _ in range(2):
        row = np.zeros(1000, np.uint32)
        masks_of(transcript())[0].add(row, 0)
        rows.append(row)
    assert not (rows[0] == rows[1]).any() or (rows[0] == rows[1]).mean() < 0.01


@pytest.mark.parametrize("span", [(100, 200), (50, 150), (150, 250), (120, 130), (0, 1000)])
def test_nothing_is_masked_twice(span):
    masks = masks_of(transcript())[0]
    masks.add(np.zeros(100, np.uint32), 100)
    masks.add(np.zeros(0, np.uint32), 150)
    masks.add(np.zeros(50, np.uint32), 300)
    row = np.zeros(span[1] - span[0], np.uint32)
    with pytest.raises(PrivacyError, match="have been masked, in part at least; send what was sent again"):
        masks.add(row, span[0])
    assert not row.any(), "nothing was changed"
    masks.add(np.zeros(100, np.uint32), 200)  # what lies between is free


@pytest.mark.parametrize(("length", "offset"), [(10, 995), (10, -5), (1001, 0)])
def test_places_outside_the_vector(length, offset):
    with pytest.raises(PrivacyError, match="outside of the vector of 1000"):
        masks_of(transcript())[0].add(np.zeros(length, np.uint32), offset)


def test_other_numbers():
    with pytest.raises(PrivacyError, match="vectors of uint32, found float32"):
        masks_of(transcript())[0].add(np.zeros(10, np.float32), 0)


def test_a_seed_serves_one_vector():
    plan = transcript()
    signing, certified = certificates(plan.roster)
    keys = {site: AttemptKeys(site, signing[site], plan) for site in plan.roster}
    signed = [own.signed for own in keys.values()]
    seeds = keys["site0"].seeds(signed, certified)
    Masks(seeds, plan)
    with pytest.raises(PrivacyError, match="the seed shared with site1 has masked a vector"):
        Masks(seeds, plan)
    with pytest.raises(PrivacyError, match="these keys have been used"):
        keys["site0"].seeds(signed, certified)


def test_certificates_of_an_elliptic_curve_will_do():
    plan = transcript()
    rows = []
    for masks in masks_of(plan, lambda: ec.generate_private_key(ec.SECP256R1())):
        row = np.zeros(plan.size, np.uint32)
        masks.add(row, 0)
        rows.append(row)
    assert rows[0].any() and not np.sum(rows, axis=0, dtype=np.uint32).any()


OTHERS = {
    "run": {"run": "s"},
    "round": {"round": 3},
    "attempt": {"attempt": 1},
    "roster": {"roster": ("site0", "site1", "site3")},
    "order": {"roster": ("site1", "site0", "site2")},
    "size": {"size": 999},
    "bits": {"bits": 64},
    "scales": {"scales": (20, 25)},
    "weights": {"weights": (1.0, 2.0, 1.0)},
}


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS)
def test_a_key_for_another_sum_is_refused(changed):
    """Replayed from another round or attempt, or of a site that means another sum."""
    plan = transcript()
    signing, certified = certificates(plan.roster)
    keys = {site: AttemptKeys(site, signing[site], plan) for site in plan.roster}
    replayed = AttemptKeys("site1", signing["site1"], transcript(**changed)).signed
    signed = [keys["site0"].signed, replayed, keys["site2"].signed]
    with pytest.raises(PrivacyError, match="the key of site site1 was not signed by it for round 2, attempt 0"):
        keys["site0"].seeds(signed, certified)


def attacked(attack):
    """site0 gets what an attack makes of the three sites' keys."""
    plan = transcript()
    signing, certified = certificates(plan.roster)
    keys = {site: AttemptKeys(site, signing[site], plan) for site in plan.roster}
    own, one, two = (keys[site].signed for site in plan.roster)
    mallory = AttemptKeys("site1", Ed25519PrivateKey.generate(), plan).signed
    ways = {
        "unsigned": (own, SignedKey("site1", one.key, b""), two),
        "of another signer": (own, mallory, two),
        "swapped": (own, SignedKey("site1", two.key, two.signature), SignedKey("site2", one.key, one.signature)),
        "key swapped": (own, SignedKey("site1", mallory.key, one.signature), two),
        "missing": (own, one),
        "invented": (own, one, two, SignedKey("site9", one.key, one.signature)),
        "own changed": (SignedKey("site0", mallory.key, own.signature), one, two),
    }
    keys["site0"].seeds(ways[attack], certified)


@pytest.mark.parametrize("attack", ["unsigned", "of another signer", "swapped", "key swapped"])
def test_a_forged_key_is_refused(attack):
    with pytest.raises(PrivacyError, match="was not signed by it for round 2"):
        attacked(attack)


@pytest.mark.parametrize("attack", ["missing", "invented", "own changed"])
def test_keys_must_be_those_of_the_roster(attack):
    with pytest.raises(PrivacyError, match="the sum is not begun"):
        attacked(attack)


@pytest.mark.parametrize("key", [bytes(32), b"short"], ids=["low order", "short"])
def test_a_signed_key_that_is_none(key):
    plan = transcript()
    signing, certified = certificates(plan.roster)
    keys = {site: AttemptKeys(site, signing[site], plan) for site in plan.roster}
    message = b"colearn key\0" + plan.digest() + key + b"site1"
    bad = SignedKey("site1", key, signing["site1"].sign(message))
    with pytest.raises(PrivacyError, match="site site1 sent something that is no X25519 key"):
        keys["site0"].seeds([keys["site0"].signed, bad, keys["site2"].signed], certified)


def test_a_certificate_of_another_kind():
    plan = transcript()
    signing, certified = certificates(plan.roster)
    keys = {site: AttemptKeys(site, signing[site], plan) for site in plan.roster}
    certified["site2"] = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(PrivacyError, match="site2 has no certificate with an Ed25519 or elliptic-curve key"):
        keys["site0"].seeds([own.signed for own in keys.values()], certified)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"roster": ("a", "b")}, "roster a, b: a masked sum needs 3 or more different sites"),
        ({"roster": ("a", "b", "b")}, "3 or more different sites"),
        ({"bits": 16}, "numbers of 16 bits cannot be masked"),
        ({"weights": (1.0, 1.0)}, "2 weights for 3 sites"),
    ],
)
def test_what_is_no_sum(changed, message):
    with pytest.raises(PrivacyError, match=message):
        transcript(**changed)


def test_only_the_roster_makes_keys():
    with pytest.raises(PrivacyError, match="site9 is not in the roster"):
        AttemptKeys("site9", Ed25519PrivateKey.generate(), transcript())
