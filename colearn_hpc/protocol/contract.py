"""What the data centers of a run have agreed on, and the chain of digests that ties the run's rounds to it.

Before round 0 all data centers compare what must be equal (:meth:`Conversation.compare`), and each writes it down. In
``rounds.jsonl`` each line carries a digest over the line before, and so, from line to line, over everything back to the
contract: who took part, under which settings, on which data, and what shared model came of it. Whoever holds the last
digest can tell whether any of it was changed since.

    contract.json  {"contracts": [{"from_round": 0, "digest": "sha256:…", "agreed": {…}, "terms": {"lyon": {…}}}]}
    rounds.jsonl   {"round": 0, …, "chain": "sha256:…"}

A run that is resumed with more rounds, or other members, has one contract more. Seconds stand outside the chain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHAIN = "chain"  # the field of a line
CLOCKED = ("train_seconds", "wait_seconds", "exchange_seconds")  # of a data center's part in a line
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Contract:
    """What holds from a round on.

    Attributes:
        agreed: readable pairs in order, equal in all data centers: versions of protocol and numerics, the method's
            settings, the model's names and shapes, what the data mean, the federation's roster.
        terms: data center -> what it says of itself alone, such as its differential privacy; in the run's order. The
            keys are the members.
        from_round: the first round that it holds for.
    """

    agreed: Mapping[str, str]
    terms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    from_round: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.terms)

    def digest(self) -> str:
        """SHA-256 of what was agreed and of all terms, ``sha256:`` and 64 hexadecimal digits. The round has no part
        in it."""
        return _digest(b"contract", [list(self.agreed.items()), [[n, list(t.items())] for n, t in self.terms.items()]])

    def difference(self, later: Contract) -> str:
        """The first thing in which a later contract differs, for people; empty: none."""
        for mine, other in ((dict(self.agreed), dict(later.agreed)), (_flat(self.terms), _flat(later.terms))):
            for key in mine | other:
                if mine.get(key) != other.get(key):
                    return f"{key}: {mine.get(key, '(nothing)')} -> {other.get(key, '(nothing)')}"
        return "" if self.digest() == later.digest() else "the order of its lines"

    def to_plain(self) -> dict[str, Any]:
        return {
            "from_round": self.from_round,
            "digest": self.digest(),
            "agreed": dict(self.agreed),
            "terms": {name: dict(terms) for name, terms in self.terms.items()},
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Contract:
        """What :meth:`to_plain` made.

        Raises:
            ValueError: it is no contract, or its digest is another one's.
        """
        if not isinstance(plain, dict) or set(plain) != {"from_round", "digest", "agreed", "terms"}:
            raise ValueError("no contract")
        agreed, terms, first = plain["agreed"], plain["terms"], plain["from_round"]
        if not isinstance(terms, dict) or not all(map(_is_texts, [agreed, *terms.values()])):
            raise ValueError("a contract of something else than texts")
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise ValueError("a contract from no round on")
        contract = cls(agreed, terms, first)
        if contract.digest() != plain["digest"]:
            raise ValueError(
                f"the contract from round {first} on has digest {contract.digest()}, and says {plain['digest']!r:.90}"
            )
        return contract


def contracts_in_force(before: Sequence[Contract], now: Contract) -> list[Contract]:
    """A run's contracts, where it goes on under ``now``: what was agreed for later rounds is forgotten (a rewind), and
    nothing is added where nothing changed."""
    kept = [one for one in before if one.from_round < now.from_round]
    return kept if kept and kept[-1].digest() == now.digest() else [*kept, now]


def begun(before: str, contract: Contract) -> str:
    """The chain's digest after a contract; ``before`` it, empty at the run's beginning."""
    return _digest(b"begin", [before, contract.digest()])


def linked(before: str, line: Mapping[str, Any]) -> str:
    """The chain's digest after a line of ``rounds.jsonl``.

    Args:
        before: digest before it.
        line: as JSON has it: no NaN, no infinity.
    """
    return _digest(b"round", [before, _unclocked(line)])


def tail(contracts: Sequence[Contract], lines: Sequence[Mapping[str, Any]], next_round: int) -> str:
    """The digest that the line of ``next_round`` is linked to.

    Lines that were written before there was a chain have no part in it.
    """
    found = [line for line in lines if CHAIN in line]
    last, done = (str(found[-1][CHAIN]), int(found[-1]["round"])) if found else ("", -1)
    for contract in contracts:
        if done < contract.from_round <= next_round:
            last = begun(last, contract)
    return last


@dataclass(frozen=True)
class Verdict:
    """What a run folder's chain says.

    Attributes:
        problems: what does not hold; empty: everything does.
        unchained: rounds whose lines were written before there was a chain.
        head: the last digest; two data centers of one run hold the same.
    """

    problems: tuple[str, ...]
    unchained: tuple[int, ...]
    head: str


def verify(contracts: Sequence[Contract], lines: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compute the chain again.

    Args:
        contracts: of ``contract.json``, in order.
        lines: of ``rounds.jsonl``, in order.
    """
    problems: list[str] = []
    unchained: list[int] = []
    head, before, waiting = "", -1, list(contracts)
    for line in lines:
        number = line.get("round")
        if not isinstance(number, int) or isinstance(number, bool) or number <= before:
            problems.append(f"after round {before} comes a line of round {number!r:.40}")
            break
        if number != before + 1:
            problems.append(f"the lines of rounds {before + 1} to {number - 1} are missing")
        before = number
        if CHAIN not in line:
            if head:
                problems.append(f"the line of round {number} has no `{CHAIN}`, and those before it have")
            unchained.append(number)
            continue
        while waiting and waiting[0].from_round <= number:
            head = begun(head, waiting.pop(0))
        if _link_or_nothing(head, line) != line[CHAIN]:
            problems.append(
                f"the line of round {number} does not follow from what stands before it: it, an earlier line or the "
                "contract was changed"
            )
        head = str(line[CHAIN])
        members = [center.get("name") for center in line.get("centers", []) if isinstance(center, dict)]
        holds = [one for one in contracts if one.from_round <= number]
        if holds and members != list(holds[-1].members):
            problems.append(
                f"round {number} was of {', '.join(map(str, members))}, and the contract is of "
                f"{', '.join(holds[-1].members)}"
            )
    return Verdict(tuple(problems), tuple(unchained), head)


def _link_or_nothing(before: str, line: Mapping[str, Any]) -> str:
    try:
        return linked(before, line)
    except (ValueError, TypeError):  # a NaN, which no writer writes, or parts of another form
        return ""


def digest_of_texts(texts: Mapping[str, str]) -> str:
    """SHA-256 of readable pairs, by which data centers name their data to each other; empty where there are none."""
    return _digest(b"texts", list(texts.items())) if texts else ""


def texts_of(plain: Any) -> dict[str, str]:
    """A flat dictionary of text that another data center sent.

    Raises:
        ValueError: it is none, or has very many or very long texts.
    """
    if not _is_texts(plain) or len(plain) > 100 or any(len(key) + len(text) > 1000 for key, text in plain.items()):
        raise ValueError(f"no terms of a data center: {plain!r:.200}")
    return dict(plain)


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


def _unclocked(line: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in line.items() if key != CHAIN}
    centers: Iterable[Any] = kept.get("centers", [])
    kept["centers"] = [
        {key: value for key, value in center.items() if key not in CLOCKED} if isinstance(center, dict) else center
        for center in centers
    ]
    return kept


def _digest(kind: bytes, value: Any) -> str:
    """Of canonical JSON: keys sorted, no spaces, ASCII. Python writes a float so that reading gives it back."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(b"colearn " + kind + b"\0" + text.encode()).hexdigest()


def _flat(terms: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(terms, "a member")
    return names | {f"{name}: {key}": value for name, said in terms.items() for key, value in said.items()}


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
