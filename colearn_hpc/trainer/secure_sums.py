"""Secure sums (``privacy: {secure: true}``): masks hide each data center's whole numbers, and show only their sum.

    at the start  each data center shows by what it is known (its certificate, or the key with which it signs)
    each round    it makes a fresh key for masks, signed over what is to be summed; what it sends is on its disk first

Whoever owns a slice, carries it, or listens sees random numbers and the sum. ``privacy/roster.py`` has the rule that
makes it hold over failures: one vector is never summed with two rosters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colearn_hpc.algorithm.encoding import Encoding, WholeNumbers
from colearn_hpc.algorithm.fixed_point import Scales
from colearn_hpc.errors import ConfigurationError, PeerError
from colearn_hpc.privacy.kept_sum import KeptSum
from colearn_hpc.privacy.keys import (
    FEWEST_SITES,
    AttemptKeys,
    Credentials,
    Introduced,
    SignedKey,
    SigningKey,
    Transcript,
    VerifyingKey,
)
from colearn_hpc.privacy.masked import MaskedNumbers
from colearn_hpc.privacy.masks import Masks
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.sums import Mean, Sent, Void

_BLOCK = 1 << 19  # elements that are fetched from the model at a time


@dataclass(frozen=True)
class SiteKeys:
    """With what this data center signs, and by what it knows the others; made by :meth:`exchange`.

    Attributes:
        signing: of its certificate, or this start's.
        certified: data center -> its public key.
    """

    signing: SigningKey
    certified: dict[str, VerifyingKey]

    @classmethod
    def exchange(cls, place: Place) -> SiteKeys:
        """Show the others by what this data center is known, and see theirs. Collective over the world.

        In one MPI world nobody has a certificate: whoever sends messages in it at the start is taken at its word. From
        then on nobody else can speak for it.

        Raises:
            PrivacyError: some data center's key is none, or not its own.
        """
        mine: Credentials = place.journal.credentials or Introduced()
        told = place.conversation.meet(Topic(TopicKind.SITE_KEYS), mine.shown).contents
        names = place.between.names
        return cls(mine.signing, {names[k]: mine.key_of(names[k], shown) for k, shown in told.items()})


class SecureSums:
    """A :class:`~colearn_hpc.trainer.sums.Hiding` by pairwise masks. Leaders alone carry what is hidden.

    Args:
        place: this process's.
        settings: of the run.
        folder: of this data center, for what must outlive a kill.

    Raises:
        ConfigurationError: on all ranks, with two data centers.
    """

    def __init__(self, place: Place, settings: Settings, folder: Path) -> None:
        if len(place.between.roster) < FEWEST_SITES and not place.alone:
            raise ConfigurationError(
                f"privacy: secure=True needs {FEWEST_SITES} or more data centers, found {len(place.between.roster)}: "
                "each of two could subtract its own model from the sum; add a data center, or drop secure"
            ).on_all_ranks()
        self._place, self._settings, self._folder = place, settings, folder
        self._run = ""
        self._keys: SiteKeys | None = None
        self._kept: KeptSum | None = None

    def join(self, run: str) -> None:
        """See :meth:`Hiding.join`.

        Raises:
            PrivacyError: on one rank alone, if what was sent before cannot be read; or some data center's key is none.
        """
        self._run = run
        if not self._place.alone:
            self._keys = SiteKeys.exchange(self._place)
            if self._place.center.is_leader:
                self._kept = KeptSum(self._folder, self._place.center.name, run)

    def refuses(self, roster: tuple[str, ...]) -> str:
        few = len(roster) < FEWEST_SITES
        return f"a sum over {', '.join(roster)} would show single models; {FEWEST_SITES} are needed" if few else ""

    def sent(self, round_: int) -> Sent | None:
        found = None if self._kept is None else self._kept.begun(round_)
        if self._kept is None or found is None:
            return None
        stored = self._kept.numbers()
        numbers = None if stored is None else torch.from_numpy(stored)
        return Sent(found.exponents, found.factor, numbers, found.state.roster)

    def has_sent(self, numbers: torch.Tensor) -> bool:
        return self._kept is None or self._kept.has_sent(numbers.numpy())

    def is_past(self, round_: int) -> bool:
        return self._kept is not None and self._kept.is_past(round_)

    def attempt(self, round_: int) -> int:
        return 0 if self._kept is None else self._kept.attempt(round_)

    def hide(
        self, mean: Mean, whole: WholeNumbers | None, scales: Scales, attempt: int, acts: bool
    ) -> Encoding | Void | None:
        roster = mean.roster(self._place)
        # One number more than the vector has: the examples. Weights that masks hide are not told.
        size, weights = mean.model.size + 1, (1.0,) * len(roster)
        transcript = Transcript(self._run, mean.round, attempt, roster, size, scales.bits, scales.exponents, weights)
        found = self._exchange_keys(transcript, mean, acts)
        if isinstance(found, Void):
            return found
        masks, kept = found, _nothing
        if self._kept is not None and acts and whole is not None and whole.numbers is not None:
            # On disk before it is sent: the number of examples at once, each chunk while those before it travel.
            before = self._kept.begun(mean.round)
            vector = _digest(mean) if before is None else before.state.vector
            numbers = whole.numbers.numpy()
            self._kept.begin(mean.round, roster, attempt, numbers, scales.exponents, whole.factor, vector, ahead=True)
            kept = self._kept.wait
        divisor = float(len(roster))
        if self._settings.hides_examples:
            examples = self._sum_of_examples(mean, whole, masks)
            if isinstance(examples, Void):
                return examples
            divisor = examples
        if whole is None:
            return None
        return MaskedNumbers(whole.previous, scales, whole.factor, divisor, whole.numbers, masks=masks, kept=kept)

    def _exchange_keys(self, transcript: Transcript, mean: Mean, acts: bool) -> Masks | Void | None:
        """Masks for this data center's numbers, on its leader. Collective over the world."""
        place, mine = self._place, None
        assert self._keys is not None, "a run is joined before its first round"
        if acts and self._kept is not None:
            secret = self._kept.secret(transcript.digest())  # on disk before the others count on it
            mine = AttemptKeys(place.center.name, self._keys.signing, transcript, secret)
        brought = [] if mine is None else [mine.signed.key, mine.signed.signature]
        topic = Topic(TopicKind.MASK_KEYS, transcript.round, str(transcript.attempt))
        told = place.conversation.meet(topic, brought).contents
        if why := mean.why_not_all(told, place):
            return Void(why)
        if mine is None:
            return None
        signed = [_signed(place.between.names[k], told.get(k)) for k in mean.givers]
        return Masks(mine.seeds(signed, self._keys.certified), transcript)

    def _sum_of_examples(self, mean: Mean, whole: WholeNumbers | None, masks: Masks | None) -> float | Void:
        """Σ n_k, of which nobody learns a part. Collective over the world."""
        word = np.array([0 if whole is None else int(whole.factor)], dtype="<u8")
        if masks is not None:
            masks.add(word, mean.model.size)
        told = self._place.conversation.meet(Topic(TopicKind.EXAMPLES, mean.round), word.tobytes()).contents
        if why := mean.why_not_all(told, self._place):
            return Void(why)
        total = 0
        for k in mean.givers:
            if not isinstance(told.get(k), bytes) or len(told[k]) != 8:
                raise PeerError(f"data center {self._place.between.names[k]} told no number of examples under masks")
            total += int.from_bytes(told[k], "little")
        return float(total % 2**64)


def _digest(mean: Mean) -> str:
    """SHA-256 of a data center's vector, in hexadecimal."""
    digest, scratch = hashlib.sha256(), torch.empty(min(_BLOCK, mean.source.size), dtype=mean.source.dtype)
    for start in range(0, mean.source.size, _BLOCK):
        values = mean.source.read(start, min(start + _BLOCK, mean.source.size), scratch)
        mean.source.wait()
        digest.update(values.contiguous().numpy().data)
    return digest.hexdigest()


def _signed(name: str, plain: Any) -> SignedKey:
    match plain:
        case [bytes(key), bytes(signature)]:
            return SignedKey(name, key, signature)
    raise PeerError(f"data center {name} told no signed key")


def _nothing(stop: int | None) -> None:
    """Nothing is sent, so nothing has to be on disk."""
