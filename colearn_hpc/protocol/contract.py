"""What the data centers of a run have agreed on, and the chain of digests that ties the run's rounds to it.

Before round 0 all data centers compare what must be equal (:meth:`Conversation.compare`), and each writes it down. In
``rounds.jsonl`` each line carries a digest over the line before, and so, from line to line, over everything back to the
contract: who took part, under which settings, on which data, and what shared model came of it. Whoever holds the last
digest can tell whether any of it was changed since.

    contract.json  {"contracts": [{"from_round": 0, "digest": "sha256:…", "agreed": {…}, "terms": {"lyon": {…}}}]}
    rounds.jsonl   {"round": 0, …, "chain": "sha256:…"}
                   {"roster": {"from_round": 3, "joined": ["rome"], "left": ["oslo"], …}, "chain": "sha256:…"}

A run that is resumed with more rounds, or other members, has one contract more; other members are a line of their own,
before the first round that is theirs. Seconds stand outside the chain.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CHAIN = "chain"  # the field of a line
ROSTER = "roster"  # the field of a line that says who joined and who left
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
        head: where a data center joins a run that was under way, whose lines it has not: the chain's digest before
            this contract, as the others said it; empty otherwise.
        former: who the members were before, then.
    """

    agreed: Mapping[str, str]
    terms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    from_round: int = 0
    head: str = ""
    former: tuple[str, ...] = ()

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
        joined = {"joined_after": {"head": self.head, "members": list(self.former)}} if self.head else {}
        return {
            "from_round": self.from_round,
            "digest": self.digest(),
            "agreed": dict(self.agreed),
            "terms": {name: dict(terms) for name, terms in self.terms.items()},
        } | joined

    @classmethod
    def from_plain(cls, plain: Any) -> Contract:
        """What :meth:`to_plain` made.

        Raises:
            ValueError: it is no contract, or its digest is another one's.
        """
        fields = {"from_round", "digest", "agreed", "terms"}
        if not isinstance(plain, dict) or set(plain) - {"joined_after"} != fields:
            raise ValueError("no contract")
        agreed, terms, first = plain["agreed"], plain["terms"], plain["from_round"]
        if not isinstance(terms, dict) or not all(map(_is_texts, [agreed, *terms.values()])):
            raise ValueError("a contract of something else than texts")
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise ValueError("a contract from no round on")
        joined = plain.get("joined_after", {"head": "", "members": []})
        match joined:
            case {"head": str(head), "members": [*former]} if all(isinstance(name, str) for name in former):
                if "joined_after" in plain and not is_digest(head):
                    raise ValueError("a contract that was joined after nothing")
            case _:
                raise ValueError("a contract that was joined after nothing")
        contract = cls(agreed, terms, first, head, tuple(former))
        if contract.digest() != plain["digest"]:
            raise ValueError(
                f"the contract from round {first} on has digest {contract.digest()}, and says {plain['digest']!r:.90}"
            )
        return contract


def contracts_in_force(before: Sequence[Contract], now: Contract) -> list[Contract]:
    """A run's contracts, where it goes on under ``now``: what was agreed for later rounds is forgotten (a rewind), and
    nothing is added where nothing changed. What a data center was told when it joined stays with the contract."""
    kept = [one for one in before if one.from_round < now.from_round]
    joined = next((one for one in before if one.from_round == now.from_round and one.head), None)
    if joined is not None and not now.head:
        now = replace(now, head=joined.head, former=joined.former)
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


def roster_line(former: Sequence[str], contract: Contract) -> dict[str, Any] | None:
    """The line, without its digest, that says who joined and who left with a contract; None: nobody did.

    Args:
        former: the members before; empty: there were none, and the run begins.
        contract: that begins.
    """
    if not former or set(former) == set(contract.members):
        return None
    said = {
        "from_round": contract.from_round,
        "contract": contract.digest(),
        "members": list(contract.members),
        "joined": [name for name in contract.members if name not in former],
        "left": [name for name in former if name not in contract.members],
    }
    return {ROSTER: said}


def is_roster(line: Mapping[str, Any]) -> bool:
    """Whether a line says who joined and left, and tells of no round."""
    said = line.get(ROSTER)
    return isinstance(said, dict) and isinstance(said.get("from_round"), int)


def begins(line: Mapping[str, Any]) -> int:
    """The round of a line, or the one that it is written before."""
    return int(line[ROSTER]["from_round"] if is_roster(line) else line["round"])


def end_of(lines: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """Where the chain stands: its digest, and up to which round's contract it has come.

    Lines that were written before there was a chain have no part in it.
    """
    found = [line for line in lines if CHAIN in line]
    return (str(found[-1][CHAIN]), begins(found[-1])) if found else ("", -1)


def openings(contracts: Sequence[Contract], end: tuple[str, int], round_index: int) -> tuple[list[dict[str, Any]], str]:
    """What stands between the lines so far and that of a round: contracts that begin.

    Args:
        contracts: of the run.
        end: as :func:`end_of` says.
        round_index: of the line that is to come.

    Returns:
        The lines that say who joined and left; and the digest that the round's line is linked to.
    """
    (last, done), lines = end, []
    for before, contract in itertools.pairwise([None, *contracts]):
        assert contract is not None, "only the first one has none before it"
        if done < contract.from_round <= round_index:
            last = begun(last or contract.head, contract)
            former = contract.former if before is None else before.members
            if (line := roster_line(former, contract)) is not None:
                last = linked(last, line)
                lines.append(line | {CHAIN: last})
    return lines, last


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
    rosters: list[Mapping[str, Any]] = []  # lines since the last round's
    head, done = "", -1
    # A data center that joined a run has no lines from before.
    before = contracts[0].from_round - 1 if contracts and contracts[0].head else -1
    for line in lines:
        if is_roster(line):
            rosters.append(line)
            continue
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
        (expected, head), done = openings(contracts, (head, done), number), number
        if rosters != expected:
            problems.append(f"who joined or left before round {number} is not told as the contract has it")
        rosters = []
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
    if rosters:
        problems.append("after the last round a line says who joined or left, and no round follows")
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
