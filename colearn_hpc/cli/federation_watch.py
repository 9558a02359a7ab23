"""What a coordinator knows of all sites, asked from any of them or read on its machine; and the order to stop all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import ColearnError, ConfigurationError, FederationError
from colearn_hpc.federation.link import Link, Membership
from colearn_hpc.studies.words import duration, printable

_PATIENCE = 30.0  # s for the coordinator's answer
_STALE = 15.0  # s after which what it has written is no news; it writes every 2


def sites_text(status: dict[str, Any]) -> str:
    """All sites, a line each: here, training, waiting, away since when and why, left out, last heard."""
    rows = [("site", "state", "", "last heard")]
    for site in status["sites"]:
        state = "left out" if site["left_out"] else str(site["state"])
        heard = site["heard_seconds_ago"]
        ago = "never" if heard is None else f"{duration(float(heard))} ago"
        rows.append((str(site["name"]), state, str(site["text"]), ago))
    widths = [max(len(printable(row[k])) for row in rows) for k in range(3)]
    lines = [
        "  ".join([*(printable(row[k]).ljust(widths[k]) for k in range(3)), printable(row[3])]).rstrip() for row in rows
    ]
    meeting = f", meeting at {status['meeting']}" if status["meeting"] else ""
    return "\n".join([f"run {printable(str(status['run']))}{printable(meeting)}", *lines])


def watch(
    federation: Path, site: str | None, identity: Path | None, state: Path | None, once: bool, interval: float
) -> int:
    """Show all sites, again and again; returns the exit code.

    Args:
        federation: the file.
        site: who asks; without it and ``identity``: somebody on the coordinator's machine.
        identity: folder of its certificate and key.
        state: the coordinator's state folder, on its machine; None: ``state`` beside the file.
        once: not again.
        interval: s between two looks.
    """
    try:
        if site is None and identity is None:
            look = partial(_written_by_coordinator, state or federation.parent / "state")
        else:
            look = partial(_told_by_coordinator, Link(Membership.read(federation, site, identity), session=""))
        while True:
            print(sites_text(look()), flush=True)
            if once:
                return 0
            time.sleep(max(0.5, interval))
            print()
    except ColearnError as error:
        print(f"colearn-hpc: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        return 0


def _told_by_coordinator(link: Link) -> dict[str, Any]:
    answer = link.ask_now(["status"], _PATIENCE)
    if answer is None:
        raise FederationError(f"the coordinator {link.where} does not answer; `colearn-hpc doctor --federation`")
    return answer["status"]


def _written_by_coordinator(state: Path) -> dict[str, Any]:
    path = state / "status.json"
    try:
        status = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}); at a site say --site NAME, on the coordinator's machine --state FOLDER"
        ) from None
    age = time.time() - status["written"]
    if age > _STALE:
        raise FederationError(f"the coordinator has not written {path} for {duration(age)}; it does not run, or hangs")
    return status


def main(argv: Sequence[str]) -> int:
    """``colearn-hpc stop``: ask every site to stop at its next safe point; returns the exit code."""
    parser = Parser(
        prog="colearn-hpc stop",
        description="Ask every site of a federation to stop at its next safe point, with a resume point (code 85). "
        "Only a site whose roster entry has stop_all may. To stop one site, send its job SIGUSR1.",
    )
    parser.add_argument("--all", action="store_true", required=True, help="all sites, by way of the coordinator")
    parser.add_argument("--federation", type=Path, required=True, metavar="FILE", help="federation.yaml")
    parser.add_argument("--site", help="who asks")
    parser.add_argument("--identity", type=Path, help="folder of its certificate and key")
    parser.add_argument("--reason", default="`colearn-hpc stop --all`", help="for people")
    options = parser.parse_args(argv)
    try:
        link = Link(Membership.read(options.federation, options.site, options.identity), session="")
        if link.ask_now(["stop", options.reason], _PATIENCE) is None:
            raise FederationError(f"the coordinator {link.where} does not answer; nobody was asked to stop")
    except ColearnError as error:
        print(f"colearn-hpc: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    print("every site that is at work was asked to stop; start them again as usual")
    return 0
