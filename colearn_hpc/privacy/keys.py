"""Seeds that each two sites share and nobody else knows, fresh for every attempt at a round's sum.

Each site makes an X25519 key, signs it with the key of its certificate over a transcript of what is to be summed, and
sends it through whoever carries the messages. Two sites with two transcripts refuse each other's keys, and so does a
site that is shown a key of another round, attempt, roster or site.

Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", without its
shares: who is in the roster stays to the end, or nobody gets a sum (see ``roster.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from colearn_hpc.errors import PrivacyError

SigningKey = Ed25519PrivateKey | EllipticCurvePrivateKey
VerifyingKey = Ed25519PublicKey | EllipticCurvePublicKey


class Credentials(Protocol):
    """With what a site signs, and by what it knows the others.

    Attributes:
        signing: its key; secret.
        shown: what the others are told, so that they can check what is signed.
    """

    signing: SigningKey
    shown: bytes

    def key_of(self, site: str, shown: object) -> VerifyingKey:
        """The key with which another site signs.

        Args:
            site: its name.
            shown: what was told of it.

        Raises:
            PrivacyError: that is not what this site knows it by, or nothing with a key.
        """


class Introduced:
    """:class:`Credentials` where nobody has a certificate: a key of this start, and everyone is taken at its word."""

    def __init__(self) -> None:
        key = Ed25519PrivateKey.generate()
        self.signing: SigningKey = key
        self.shown = key.public_key().public_bytes_raw()

    def key_of(self, site: str, shown: object) -> VerifyingKey:
        try:
            return Ed25519PublicKey.from_public_bytes(shown)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise PrivacyError(f"data center {site} told something that is no Ed25519 key: {error}") from None


FEWEST_SITES = 3  # of two, each one knows the other's vector from the sum and its own
_MOST_BYTES = 2**38  # ChaCha20 counts 2³² blocks of 64 bytes


@dataclass(frozen=True)
class Transcript:
    """What is to be summed, and by whom; all sites must mean the same.

    Attributes:
        run: id of the run.
        round: of the run, from 0.
        attempt: at this round's sum, from 0.
        roster: names of the sites whose vectors are summed, in the run's order.
        size: numbers per vector.
        bits: 32 or 64: sums are modulo 2³² or 2⁶⁴.
        scales: exponents of the powers of two by which tensors were multiplied.
        weights: of the sites in the mean, in the roster's order.

    Raises:
        PrivacyError: fewer than three sites, a site twice, or numbers out of their range.
    """

    run: str
    round: int
    attempt: int
    roster: tuple[str, ...]
    size: int
    bits: int
    scales: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        check_roster(self.roster)
        if self.bits not in (32, 64) or self.size < 0 or self.size * self.bits // 8 > _MOST_BYTES:
            raise PrivacyError(
                f"a vector of {self.size} numbers of {self.bits} bits cannot be masked; numbers have 32 or 64 bits, "
                "and a vector at most 256 GiB"
            )
        if len(self.weights) != len(self.roster):
            raise PrivacyError(f"{len(self.weights)} weights for {len(self.roster)} sites; give one for each")

    def digest(self) -> bytes:
        """SHA-256 of everything in it, 32 bytes."""
        content = asdict(self) | {"weights": [float(weight).hex() for weight in self.weights]}
        return hashlib.sha256(b"colearn sum\0" + json.dumps(content, sort_keys=True).encode()).digest()


def check_roster(roster: tuple[str, ...]) -> None:
    """Refuse a roster in which a sum would tell a site's vector.

    Raises:
        PrivacyError: fewer than three sites, or a site twice.
    """
    if len(roster) < FEWEST_SITES or len(set(roster)) != len(roster):
        raise PrivacyError(
            f"roster {', '.join(roster) or '(nobody)'}: a masked sum needs {FEWEST_SITES} or more different sites, for "
            "of two each one could subtract its own vector; wait for the others, or exchange without masks"
        )


@dataclass(frozen=True)
class SignedKey:
    """A site's public key for one attempt.

    Attributes:
        site: whose.
        key: X25519, 32 bytes.
        signature: by the key of the site's certificate, over the transcript, the site's name and the key.
    """

    site: str
    key: bytes
    signature: bytes


class PairSeed:
    """What two sites share for one vector.

    Attributes:
        other: the other site.
        adds: whether this site adds the mask; the other subtracts it.
    """

    def __init__(self, other: str, adds: bool, seed: bytes) -> None:
        self.other, self.adds = other, adds
        self._seed: bytes | None = seed

    def take(self) -> bytes:
        """The seed, 32 bytes; once.

        Raises:
            PrivacyError: it has masked a vector already: the difference of two vectors under one mask is bare.
        """
        if self._seed is None:
            raise PrivacyError(f"the seed shared with {self.other} has masked a vector; a new vector needs new keys")
        seed, self._seed = self._seed, None
        return seed


class AttemptKeys:
    """One site's keys for one attempt.

    Args:
        site: this site.
        signing: the key of its certificate.
        transcript: what this site is about to sum.
        secret: X25519, 32 bytes, as this site has kept it for this transcript; None: a new one.

    Attributes:
        signed: what the other sites are to be told.

    Raises:
        PrivacyError: the site is not in the roster.
    """

    def __init__(self, site: str, signing: SigningKey, transcript: Transcript, secret: bytes | None = None) -> None:
        if site not in transcript.roster:
            raise PrivacyError(f"site {site} is not in the roster {', '.join(transcript.roster)}")
        self._site, self._transcript = site, transcript
        self._secret: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(secret or new_secret())
        public = self._secret.public_key().public_bytes_raw()
        message = _message(transcript, site, public)
        signature = signing.sign(message) if isinstance(signing, Ed25519PrivateKey) else signing.sign(message, _ecdsa())
        self.signed = SignedKey(site, public, signature)

    def seeds(self, keys: Iterable[SignedKey], certified: Mapping[str, VerifyingKey]) -> list[PairSeed]:
        """The seeds shared with every other site of the roster; once, for the secret is forgotten.

        Args:
            keys: of all sites of the roster.
            certified: site -> the key of its certificate, as pinned by this site itself; a list that came from whoever
                carries the keys would let that one invent sites.

        Returns:
            One seed for each other site, in the roster's order.

        Raises:
            PrivacyError: a key is missing, was not signed by its site for this very sum, or is not a key.
        """
        if self._secret is None:
            raise PrivacyError("these keys have been used; an attempt has keys of its own")
        by_site = {signed.site: signed for signed in keys}
        # Its own key, as it was sent: signatures of one key by one certificate may differ.
        if by_site.keys() != set(self._transcript.roster) or by_site[self._site].key != self.signed.key:
            raise PrivacyError(
                f"keys of {', '.join(sorted(by_site)) or 'nobody'} came for the roster "
                f"{', '.join(self._transcript.roster)} of site {self._site}, or not its own as it was sent; the sum is "
                "not begun"
            )
        for signed in by_site.values():
            _verify(signed, certified.get(signed.site), self._transcript)
        seeds = [self._agree(by_site[site]) for site in self._transcript.roster if site != self._site]
        self._secret = None
        return seeds

    def _agree(self, signed: SignedKey) -> PairSeed:
        assert self._secret is not None, "seeds() has looked"
        try:
            shared = self._secret.exchange(X25519PublicKey.from_public_bytes(signed.key))
        except ValueError as error:  # of another length, or a point of low order
            raise PrivacyError(
                f"site {signed.site} sent something that is no X25519 key; the sum is not begun"
            ) from error
        roster = self._transcript.roster
        pair = sorted((self._site, signed.site), key=roster.index)
        info = json.dumps(["colearn mask", *pair]).encode()
        seed = HKDF(hashes.SHA256(), 32, self._transcript.digest(), info).derive(shared)
        return PairSeed(signed.site, pair[0] == self._site, seed)


def new_secret() -> bytes:
    """An X25519 private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def _message(transcript: Transcript, site: str, key: bytes) -> bytes:
    return b"colearn key\0" + transcript.digest() + key + site.encode()


def _verify(signed: SignedKey, certified: VerifyingKey | None, transcript: Transcript) -> None:
    message = _message(transcript, signed.site, signed.key)
    try:
        if isinstance(certified, Ed25519PublicKey):
            certified.verify(signed.signature, message)
        elif isinstance(certified, EllipticCurvePublicKey):
            certified.verify(signed.signature, message, _ecdsa())
        else:
            raise PrivacyError(f"site {signed.site} has no certificate with an Ed25519 or elliptic-curve key here")
    except InvalidSignature as error:
        raise PrivacyError(
            f"the key of site {signed.site} was not signed by it for round {transcript.round}, attempt "
            f"{transcript.attempt} and this roster; somebody changed or replayed it, or the sites do not mean the same "
            "sum; the sum is not begun"
        ) from error


def _ecdsa() -> ECDSA:
    return ECDSA(hashes.SHA256())
