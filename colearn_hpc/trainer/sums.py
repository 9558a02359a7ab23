"""Means of whole numbers: what all data centers agree on before anything is sent (``exchange: {sums: fixed32}``).

Each proposes scales that follow from the last mean step, and says whether its own step can be written with them. Until
all propose the same and all steps fit, the coarsest scales are proposed next, and coarser ones where somebody needs it.
Scales are public and steps are not: so nobody takes a scale from its own step.

Who hides the numbers (``secure_sums.py``) changes no sum: secure and plain runs have the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from colearn_hpc.algorithm.encoding import Encoding, WholeNumbers
from colearn_hpc.algorithm.fixed_point import MORE_ROOM, Scales, encode, scales_for
from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.between import Source, Vector
from colearn_hpc.errors import ParticipantError, PeerError
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import Contributions

_BLOCK = 1 << 19  # elements that are fetched from the model at a time
_MOST_PROPOSALS = 100  # 2⁴⁰⁰ times the last step: more than float32 holds
_MOST_EXPONENT = 2000  # no scale is as fine or as coarse
_HEADROOM = 6  # bits for a data center's step to be larger than the last mean of them
_ROOM_FOR_EXAMPLES = 30  # bits: n_k is a factor that nobody may know


@dataclass(frozen=True)
class Void:
    """No mean can be had of this round; everyone trains on with its own model. ``why`` is for people."""

    why: str


@dataclass(frozen=True)
class Prepared:
    """What is sent, and how.

    Attributes:
        encoding: on carriers; elsewhere None.
        source: the vector.
    """

    encoding: Encoding | None
    source: Source


@dataclass(frozen=True)
class Mean:
    """What a mean is to be taken of.

    Attributes:
        model: of the module.
        source: the vector.
        last: on carriers, the last shared model, all of it, shape ``(size,)``.
        sizes: on carriers, the largest number of each tensor in the last mean step.
        given: what those have said who give.
        examples: that this data center trained on, on its leader.
    """

    model: FlatModel
    source: Source
    last: Tensor | None
    sizes: Sequence[float]
    given: Contributions
    examples: int

    @property
    def round(self) -> int:
        """Of those who give."""
        return self.given.place.round

    @property
    def givers(self) -> list[int]:
        """Indices of those who give, in order."""
        return sorted(self.given.by_center)

    def roster(self, place: Place) -> tuple[str, ...]:
        """Their names."""
        return tuple(place.between.names[k] for k in self.givers)

    def why_not_all(self, told: Mapping[int, Any], place: Place) -> str:
        """Why nothing comes of this sum where somebody has left before it was begun; empty where all are here.

        Between sites that share no MPI world the others go on without who does not come, at any meeting of a round.

        Args:
            told: what those say who are here, by index.
            place: this process's.
        """
        gone = [place.between.names[k] for k in self.givers if k not in told]
        return f"{', '.join(gone)} left before its sum was taken" if gone else ""


@dataclass(frozen=True)
class _Proposal:
    """What a data center says of the scales of a round.

    Attributes:
        exponents: that it proposes.
        fits: its step can be written with them.
        bound: it has sent numbers with these scales before, for this round, and can send no others.
        roster_fits: it has sent them to nobody else than those who are here now.
        attempt: the least number that its next attempt at this round's sum can have.
    """

    exponents: tuple[int, ...]
    fits: bool
    bound: bool = False
    roster_fits: bool = True
    attempt: int = 0

    def to_plain(self) -> Any:
        return [list(self.exponents), self.fits, self.bound, self.roster_fits, self.attempt]

    @classmethod
    def from_plain(cls, plain: Any, count: int) -> _Proposal:
        """Raises PeerError where ``plain`` is no proposal for ``count`` tensors."""
        match plain:
            case [[*exponents], bool(fits), bool(bound), bool(roster_fits), int(attempt)]:
                whole = all(type(one) is int and abs(one) <= _MOST_EXPONENT for one in exponents)
                if whole and len(exponents) == count and 0 <= attempt < 2**31:
                    return cls(tuple(exponents), fits, bound, roster_fits, attempt)
        raise PeerError(f"a data center proposed scales that make no sense: {plain!r:.200}")


@dataclass(frozen=True)
class Sent:
    """What a data center has sent for a round before, and may send once more.

    Attributes:
        exponents: of the scales of its numbers.
        factor: f_k with which they were written.
        numbers: whole numbers, shape ``(size,)``; None: they were not whole on disk when this data center was killed.
        roster: names of those to whose sum they belong.
    """

    exponents: tuple[int, ...]
    factor: float
    numbers: Tensor | None
    roster: tuple[str, ...]


class Hiding(Protocol):
    """Who hides whole numbers from all but their data center."""

    def join(self, run: str) -> None:
        """A run begins, or goes on. Collective over the world."""

    def refuses(self, roster: tuple[str, ...]) -> str:
        """Why numbers cannot be hidden in a sum of these; empty where they can."""

    def sent(self, round_: int) -> Sent | None:
        """On the leader, what it has sent for this round before."""

    def has_sent(self, numbers: Tensor) -> bool:
        """On the leader, whether these are the very numbers that it has sent last."""

    def is_past(self, round_: int) -> bool:
        """On the leader, whether it has sent numbers for later rounds."""

    def attempt(self, round_: int) -> int:
        """On the leader, the least number that its next attempt at this round's sum can have."""

    def hide(
        self, mean: Mean, whole: WholeNumbers | None, scales: Scales, attempt: int, acts: bool
    ) -> Encoding | Void | None:
        """Hide the numbers of a round. Collective over the world.

        Args:
            mean: that is to be taken.
            whole: on carriers, the numbers as they are.
            scales: with which they were written.
            attempt: at this round's sum.
            acts: this data center sends them, now.

        Returns:
            On carriers, how they are sent.
        """


class WholeSums:
    """Prepares means of whole numbers.

    Args:
        place: this process's.
        settings: of the run.
        hiding: who hides the numbers; None: nobody.
    """

    def __init__(self, place: Place, settings: Settings, hiding: Hiding | None = None) -> None:
        self._place, self._settings, self._hiding = place, settings, hiding
        self._bits = 64 if settings.sums == "fixed64" else 32
        # By examples: f_k = n_k where there is room for it, so that nobody has to know Σ n to write its numbers.
        self._counts = settings.weighting == "examples" and self._bits == 64
        self._headroom = _HEADROOM + (_ROOM_FOR_EXAMPLES if self._counts else 0)
        self._room: Tensor | None = None  # kept between rounds, because fresh pages cost

    def prepare(self, mean: Mean) -> Prepared | Void:
        """Agree on how the numbers of a round are written, and write this data center's. Collective over the world.

        Raises:
            PrivacyError: on one rank alone, if this data center's numbers would not be hidden.
            PeerError: if some data center told something that makes no sense.
        """
        place, hiding, round_, roster = self._place, self._hiding, mean.round, mean.roster(self._place)
        if hiding is not None and (why := hiding.refuses(roster)):
            return Void(why)
        # After a restart in place all is heard again from the journal, and nothing is sent. A site that is set back
        # alone is behind sums that are done with: it takes their means.
        gives = place.between.index in mean.givers
        done = hiding is not None and place.between.separate and hiding.is_past(round_)
        acts = gives and not place.site.bcast(place.between.replays or done)
        sent = hiding.sent(round_) if hiding is not None and acts else None
        attempt = hiding.attempt(round_) if hiding is not None and acts else 0
        numbers = self._numbers(mean.model.size)
        scales = scales_for(mean.model.entries, mean.sizes, self._bits, len(roster), self._headroom)
        factor = self._factor(mean)
        if sent is not None:
            factor, scales = sent.factor, replace(scales, exponents=sent.exponents)
            if sent.numbers is not None:
                numbers.copy_(sent.numbers)

        for number in range(_MOST_PROPOSALS):
            writes = acts and (sent is None or sent.numbers is None) and place.means.carries
            fits = not writes or self._write(mean, scales, factor, numbers)
            if sent is not None and sent.numbers is None:
                assert hiding is not None, "it has told what was sent"
                fits = fits and hiding.has_sent(numbers)
            mine = _Proposal(
                scales.exponents,
                not place.site.largest(int(not fits))[0],
                sent is not None,
                sent is None or sent.roster == roster,
                attempt,
            )
            told = place.conversation.meet(Topic(TopicKind.SCALES, round_, str(number)), mine.to_plain()).contents
            if why := mean.why_not_all(told, place):
                return Void(why)
            said = [_Proposal.from_plain(told[k], len(scales.exponents)) for k in mean.givers]
            if why := _impossible(said):
                return Void(why)
            agreed = _next(said)
            if all(one.fits and one.exponents == agreed for one in said):
                break
            scales = replace(scales, exponents=agreed)
        else:
            raise PeerError(f"round {round_}: the data centers found no scales on which all agree").on_all_ranks()
        scales = replace(scales, exponents=agreed)
        if not fits or (sent is not None and sent.exponents != agreed):
            raise ParticipantError(
                f"round {round_}: data center {place.center.name} had said that its step fits before it was killed, "
                "and what it has trained since is another one; start it again, or let the others go on without it"
            )

        whole = None
        if place.means.carries:
            assert mean.last is not None, "carriers hold the last shared model"
            divisor = sum(mean.given.weights) if self._counts else float(len(roster))
            whole = WholeNumbers(mean.last, scales, factor, divisor, numbers if gives else None)
        if hiding is None:
            return Prepared(whole, Vector(numbers))
        hidden = hiding.hide(mean, whole, scales, max(one.attempt for one in said), acts)
        return hidden if isinstance(hidden, Void) else Prepared(hidden, Vector(numbers))

    # --- numbers ----------------------------------------------------------------------------------------

    def _factor(self, mean: Mean) -> float:
        """f_k."""
        if self._settings.weighting == "uniform":
            return 1.0
        if self._settings.secure:
            return float(mean.examples)
        weights = mean.given.weights
        if self._counts:
            return weights[self._place.between.index]
        return len(mean.given.by_center) * weights[self._place.between.index] / sum(weights)

    def _numbers(self, size: int) -> Tensor:
        if self._room is None or len(self._room) != size:
            self._room = torch.empty(size, dtype=torch.int64 if self._bits == 64 else torch.int32)
        return self._room

    def _write(self, mean: Mean, scales: Scales, factor: float, numbers: Tensor) -> bool:
        """Write this carrier's part; whether all of it fits."""
        part = self._place.means.part(mean.source.size)
        assert mean.last is not None, "carriers hold the last shared model"
        scratch = torch.empty(min(_BLOCK, part.stop - part.start), dtype=mean.source.dtype)
        for start in range(part.start, part.stop, _BLOCK):
            place = slice(start, min(start + _BLOCK, part.stop))
            values = mean.source.read(place.start, place.stop, scratch)
            mean.source.wait()
            if not encode(values, mean.last[place], scales, factor, numbers[place], start):
                return False
        return True


def _impossible(said: Sequence[_Proposal]) -> str:
    """Why these can be added up with nobody; empty where they can."""
    bound = [one for one in said if one.bound]
    if not all(one.roster_fits for one in bound):
        return "its sum was begun with others than are here now"
    if bound and (len({one.exponents for one in bound}) > 1 or not all(one.fits for one in said)):
        return "its sum was begun with numbers that do not fit all who are here now"
    return ""


def _next(said: Sequence[_Proposal]) -> tuple[int, ...]:
    """The scales that all propose next: those of who is bound, or the coarsest with more room where somebody needs
    it."""
    for one in said:
        if one.bound:
            return one.exponents
    coarsest = tuple(min(column) for column in zip(*(one.exponents for one in said), strict=True))
    room = 0 if all(one.fits for one in said) else MORE_ROOM
    return tuple(exponent - room for exponent in coarsest)
