"""``colearn-hpc verify runs/NAME``: which members, settings and data made ``shared.ckpt``; was any of it changed?

It computes the chain of digests through ``contract.json`` and ``rounds.jsonl`` again, and the digest of the shared
model. The chain's last digest, its head, is equal at all sites of a run: compare it with another site's, or say --head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from colearn_hpc.cli.findings import FAIL, OK, WARN, Finding, show
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.protocol.contract import Contract, Verdict, is_digest, is_roster, verify
from colearn_hpc.protocol.messages import plural


def main(argv: Sequence[str]) -> int:
    """Run ``verify``; returns 0 where everything holds, otherwise 1."""
    parser = Parser(prog="colearn-hpc verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the run's: runs/NAME")
    parser.add_argument("--head", help="the chain's last digest, as another site says it")
    arguments = parser.parse_args(argv)
    findings = examine(arguments.folder, arguments.head)
    show(findings)
    failed = any(finding.level == FAIL for finding in findings)
    print("does not hold" if failed else "holds", flush=True)
    return 1 if failed else 0


def examine(folder: Path, head: str | None = None) -> list[Finding]:
    """All findings.

    Args:
        folder: of the run.
        head: the chain's last digest, as somebody else has it; None: it is not compared.
    """
    try:
        contracts = _contracts(folder / "contract.json")
        lines = _lines(folder / "rounds.jsonl")
    except (OSError, ValueError, RecursionError) as error:
        return [Finding(FAIL, "files", str(error))]
    verdict = verify(contracts, lines)
    lines = [line for line in lines if not is_roster(line)]
    return [
        *_of_contracts(contracts),
        *_of_chain(verdict, lines, head),
        *_of_members(contracts, lines),
        *_of_models(lines),
        _of_shared(folder / "shared.ckpt", lines),
    ]


def _contracts(path: Path) -> list[Contract]:
    if not path.exists():
        raise ValueError(f"{path} is missing: the run is of a version before 0.2, or no run; nothing can be verified")
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("contracts"), list) or not content["contracts"]:
        raise ValueError(f"{path} holds no contract")
    try:
        contracts = [Contract.from_plain(one) for one in content["contracts"]]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; it was changed, or damaged") from None
    rounds = [one.from_round for one in contracts]
    if rounds != sorted(set(rounds)):
        raise ValueError(f"{path}: contracts from rounds {rounds} on are out of order; it was changed")
    return contracts


def _lines(path: Path) -> list[dict[str, Any]]:
    """All lines: here a damaged one is no line that a kill cut off, but a reason not to believe the file."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and is_roster(line):
            lines.append(line)
            continue
        parts = line.get("centers") if isinstance(line, dict) else None
        if not isinstance(parts, list) or not all(isinstance(part, dict) and "name" in part for part in parts):
            raise ValueError(f"{path}: line {number} is damaged")
        lines.append(line)
    return lines


def _of_contracts(contracts: Sequence[Contract]) -> Iterator[Finding]:
    for before, contract in zip([None, *contracts], contracts, strict=False):
        text = f"from round {contract.from_round} on {', '.join(contract.members)} agreed on {contract.digest()}"
        former = contract.former if before is None else before.members
        for what, names in (
            ("joined", [name for name in contract.members if name not in former]),
            ("left for good", [name for name in former if name not in contract.members]),
        ):
            text += f"; {what}: {', '.join(names)}" if former and names else ""
        if before is not None:
            text += f"; what changed first: {before.difference(contract)}"
        elif contract.head:
            text += f"; joined here after {contract.head}, as the others said"
        yield Finding(OK, "contract", text)
    apart = ("parameter ", "buffer ")
    agreed = contracts[-1].agreed
    for key, value in agreed.items():
        if not key.startswith(apart):
            yield Finding(OK, "agreed", f"{key} = {value}")
    yield Finding(OK, "agreed", f"{sum(key.startswith(apart) for key in agreed)} names and shapes of the model")


def _of_chain(verdict: Verdict, lines: Sequence[dict[str, Any]], head: str | None) -> Iterator[Finding]:
    yield from (Finding(FAIL, "chain", text) for text in verdict.problems)
    if verdict.unchained:
        text = f"rounds {_span(verdict.unchained)} were written before there was a chain, so nothing is known of them"
        yield Finding(WARN if len(verdict.unchained) < len(lines) else FAIL, "chain", text)
    if not verdict.problems and verdict.head:
        count = plural(len(lines) - len(verdict.unchained), "round")
        yield Finding(OK, "chain", f"{count} in it, each after the one before; head {verdict.head}")
    if head is not None and head != verdict.head:
        text = f"the head is {verdict.head or '(none)'}, and elsewhere it is {head[:80]}: the two folders tell two runs"
        yield Finding(FAIL, "chain", text)
    if not lines:
        yield Finding(WARN, "chain", "no round has ended yet")


def _of_members(contracts: Sequence[Contract], lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for name in dict.fromkeys(name for contract in contracts for name in contract.members):
        parts = [part for line in lines for part in line["centers"] if part.get("name") == name]
        gave = [part for part in parts if not part.get("absent")]
        data = list(dict.fromkeys(part["data"] for part in gave if part.get("data")))
        said = next((one.terms[name] for one in reversed(contracts) if name in one.terms), {})
        text = f"{name} gave to {len(gave)} of {len(parts)} rounds, trained on {', '.join(data) or 'unnamed data'}"
        text += "".join(f"; {key}: {value}" for key, value in said.items())
        yield Finding(OK if len(data) < 2 else FAIL, "member", text)


def _of_models(lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Sites that write the shared model say its digest; two sites that differ have taken two means."""
    for line in lines:
        found = {part["name"]: part["model"] for part in line["centers"] if is_digest(str(part.get("model")))}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name}: {digest[:23]}…" for name, digest in found.items())
            yield Finding(FAIL, "model", f"after round {line['round']} the sites held different shared models: {said}")


def _of_shared(path: Path, lines: Sequence[dict[str, Any]]) -> Finding:
    if not path.exists():
        return Finding(
            WARN, "model", f"there is no {path.name} here: no round has ended, or models stay in their sites"
        )
    try:
        mine = _digest_of(path)
    except Exception as error:  # whatever torch says of a file that somebody changed
        return Finding(FAIL, "model", f"{path.name} cannot be read ({type(error).__name__})")
    for line in reversed(lines):
        known = {part["model"] for part in line["centers"] if is_digest(str(part.get("model")))}
        if mine in known:
            if line is lines[-1]:
                return Finding(OK, "model", f"{path.name} is the shared model after round {line['round']}: {mine}")
            text = f"{path.name} is that of round {line['round']}, and {lines[-1]['round']} is the last: an older file"
            return Finding(FAIL, "model", text)
    if not any(part.get("model") for line in lines for part in line["centers"]):
        return Finding(WARN, "model", f"no round says a model's digest, so nothing is known of {path.name}: {mine}")
    text = (
        f"{path.name} has {mine}, which no round has: it was changed, or the run was killed between a mean and its "
        "line (then it goes on by --resume)"
    )
    return Finding(FAIL, "model", text)


def _digest_of(path: Path) -> str:
    import torch

    from colearn_hpc.trainer.model_digest import model_digest

    return model_digest(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])


def _span(rounds: Sequence[int]) -> str:
    return f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
