"""What was agreed on, and the chain of digests through a run's rounds."""

import copy
import json
from dataclasses import replace

import pytest

from colearn_hpc.protocol.contract import (
    CHAIN,
    CLOCKED,
    ROSTER,
    Contract,
    begun,
    contracts_in_force,
    digest_of_texts,
    end_of,
    is_roster,
    linked,
    openings,
    texts_of,
    verify,
)

FIRST = Contract({"protocol version": "1", "rounds": "4"}, {"lyon": {"privacy": "ε 8"}, "kiel": {}})
LATER = replace(FIRST, agreed={"protocol version": "1", "rounds": "9"}, from_round=3)


def line(number, **changes):
    centers = [{"name": name, "data": "", "examples": 7, "train_seconds": 1.5} for name in ("lyon", "kiel")]
    return {"round": number, "relative_change": 0.1 + number, "centers": centers} | changes


def chained(contracts, count, start=0, before=()):
    """Lines as a run writes them."""
    lines = list(before)
    for number in range(start, count):
        new = line(number)
        opening, before = openings(contracts, end_of(lines), number)
        new[CHAIN] = linked(before, new)
        lines += json.loads(json.dumps([*opening, new]))
    return lines


def test_who_joined_and_who_left_is_a_line_of_the_chain():
    """... which lies in the chain of a site that joined as in all others'."""
    second = Contract(FIRST.agreed, {"lyon": {}, "rome": {}}, 2)

    def of(names, number):
        return line(number, centers=[{"name": name, "data": ""} for name in names])

    lines = []
    for number in range(4):
        new = of(("lyon", "kiel") if number < 2 else ("lyon", "rome"), number)
        opening, before = openings([FIRST, second], end_of(lines), number)
        lines += [*opening, new | {CHAIN: linked(before, new)}]
    roster = lines[2]
    assert roster[ROSTER]["joined"] == ["rome"] and roster[ROSTER]["left"] == ["kiel"] and is_roster(roster)
    verdict = verify([FIRST, second], lines)
    assert verdict.problems == () and verdict.head == lines[-1][CHAIN]
    # At rome: what it was told when it joined, and its lines.
    joined = replace(second, head=lines[1][CHAIN], former=FIRST.members)
    assert Contract.from_plain(json.loads(json.dumps(joined.to_plain()))) == joined
    assert openings([joined], end_of([]), 2)[0] == [roster]
    assert verify([joined], lines[2:]) == verdict
    assert contracts_in_force([joined], replace(second)) == [joined], "started again, it knows what it was told"
    for damaged in (
        lines[:2] + lines[3:],
        [*lines[:2], roster | {ROSTER: roster[ROSTER] | {"left": []}}, *lines[3:]],
        [*lines[:3], roster, *lines[3:]],
        [*lines[:1], roster, lines[1], *lines[3:]],
        [*lines, roster],
    ):
        assert verify([FIRST, second], damaged).problems
    assert verify([replace(joined, head=lines[0][CHAIN])], lines[2:]).problems
    assert verify([replace(joined, former=("lyon",))], lines[2:]).problems


@pytest.mark.parametrize("joined", [{}, {"head": "", "members": []}, {"head": "sha256:" + "0" * 64, "members": [1]}, 1])
def test_a_contract_that_was_joined_after_nothing(joined):
    with pytest.raises(ValueError, match="after nothing"):
        Contract.from_plain(FIRST.to_plain() | {"joined_after": joined})


def test_a_contract_comes_back():
    plain = json.loads(json.dumps(LATER.to_plain()))
    assert Contract.from_plain(plain) == LATER and LATER.members == ("lyon", "kiel")
    assert replace(LATER, from_round=0).digest() == LATER.digest(), "it may be agreed on again, later"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["agreed"].update(rounds="5"),
        lambda p: p["terms"]["lyon"].update(privacy="none"),
        lambda p: p["terms"].pop("kiel"),
        lambda p: p.update(terms={"kiel": {}, "lyon": {"privacy": "ε 8"}}),
        lambda p: p.update(from_round=-1),
        lambda p: p.update(from_round=True),
        lambda p: p.update(agreed=[]),
        lambda p: p.update(terms={"lyon": 1}),
        lambda p: p.update(more=1),
        lambda p: p.pop("digest"),
    ],
)
def test_what_was_changed_is_no_contract(change):
    plain = FIRST.to_plain()
    change(plain)
    with pytest.raises(ValueError, match="contract"):
        Contract.from_plain(plain)


def test_difference_names_the_first():
    assert FIRST.difference(FIRST) == ""
    assert FIRST.difference(LATER) == "rounds: 4 -> 9"
    assert FIRST.difference(replace(FIRST, terms={"lyon": FIRST.terms["lyon"]})) == "kiel: a member -> (nothing)"
    assert FIRST.difference(replace(FIRST, terms={**FIRST.terms, "lyon": {}})) == "lyon: privacy: ε 8 -> (nothing)"
    assert FIRST.difference(replace(FIRST, terms=dict(reversed(FIRST.terms.items())))) == "the order of its lines"


def test_contracts_in_force():
    assert contracts_in_force([], FIRST) == [FIRST]
    assert contracts_in_force([FIRST], replace(FIRST, from_round=2)) == [FIRST], "resumed as it was"
    assert contracts_in_force([FIRST], LATER) == [FIRST, LATER]
    assert contracts_in_force([FIRST, LATER], replace(FIRST, from_round=2)) == [FIRST], "a rewind"
    again = replace(LATER, from_round=2)
    assert contracts_in_force([FIRST, LATER], again) == [FIRST, again]


@pytest.mark.parametrize("contracts", [[FIRST], [FIRST, LATER], [replace(LATER, from_round=0)]])
def test_a_chain_holds(contracts):
    lines = chained(contracts, 6)
    found = verify(contracts, lines)
    assert (found.problems, found.unchained, found.head) == ((), (), lines[-1][CHAIN])
    later = copy.deepcopy(lines)
    for one in later:
        for center in one["centers"]:
            center |= dict.fromkeys(CLOCKED, 9.0)
    assert verify(contracts, later).problems == (), "seconds stand outside"


def test_it_begins_with_the_contract():
    assert chained([FIRST], 1)[0][CHAIN] == linked(begun("", FIRST), line(0))
    assert chained([FIRST], 1) != chained([replace(LATER, from_round=0)], 1)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(relative_change=0.5),
        lambda one: one.update(relative_change=float("nan")),
        lambda one: one["centers"][1].update(data="sha256:0"),
        lambda one: one["centers"][0].update(examples=8),
        lambda one: one["centers"].pop(),
        lambda one: one["centers"].reverse(),
        lambda one: one.update(more=1),
        lambda one: one.update({CHAIN: "sha256:" + "0" * 64}),
    ],
)
def test_a_changed_line_is_found(change, number):
    lines = chained([FIRST, LATER], 5)
    change(lines[number])
    assert any(f"round {number}" in problem for problem in verify([FIRST, LATER], lines).problems)


def test_lines_that_are_missing_or_moved_are_found():
    lines = chained([FIRST], 5)
    assert verify([FIRST], [lines[0], *lines[2:]]).problems[0] == "the lines of rounds 1 to 1 are missing"
    for wrong in (lines[:1] + lines[2:], lines[1:], [lines[0], lines[0], *lines[1:]], lines[::-1]):
        assert verify([FIRST], wrong).problems
    cut = verify([FIRST], lines[:3])
    assert not cut.problems and cut.head != lines[-1][CHAIN], "the end alone can be cut off, and the head tells"


def test_another_contract_is_found():
    lines = chained([FIRST, LATER], 5)
    for wrong in ([FIRST], [LATER], [FIRST, replace(LATER, from_round=2)], [replace(FIRST, agreed={}), LATER]):
        assert verify(wrong, lines).problems


def test_a_rewind_cuts_it():
    lines = chained([FIRST], 5)
    kept = lines[:2]
    again = chained([FIRST], 5, start=2, before=kept)
    assert again == lines, "the same rounds again have the same digests"
    other = contracts_in_force([FIRST], replace(LATER, from_round=2))
    assert verify(other, chained(other, 5, start=2, before=kept)).problems == ()


def test_old_lines_have_none():
    old = [line(number) for number in range(3)]
    contracts = [LATER]
    lines = chained(contracts, 6, start=3, before=old)
    found = verify(contracts, lines)
    assert found.problems == () and found.unchained == (0, 1, 2)
    lines[4].pop(CHAIN)
    assert verify(contracts, lines).problems, "but not in the middle"


def test_small_things():
    assert digest_of_texts({}) == "" and digest_of_texts({"a": "b"}) != digest_of_texts({"a": "c"})
    assert texts_of({"a": "b"}) == {"a": "b"}
    for wrong in (None, {"a": 1}, {1: "a"}, {"a": "x" * 1001}, {str(k): "" for k in range(101)}):
        with pytest.raises(ValueError, match="no terms"):
            texts_of(wrong)
