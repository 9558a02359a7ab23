"""``colearn-hpc explain KEY``: what lies behind an error, by the key at its end; or an exit code, by its number."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from colearn_hpc.cli import describe
from colearn_hpc.cli.parsing import Parser, nearest

PAGE = Path(__file__).with_name("troubleshooting.md")
_EXIT_CODES = "exit-codes"


def main(argv: Sequence[str]) -> int:
    """Run ``explain``; returns 0, or 2 for an unknown key."""
    parser = Parser(prog="colearn-hpc explain", description=describe("explain"))
    parser.add_argument("key", nargs="?", help="what stands at the end of the error, or an exit code, e.g. 86")
    key = parser.parse_args(argv).key
    found = sections()
    if key is None:
        print(f"keys: {', '.join(found)}")
        return 0
    if key.isdigit():
        key = _EXIT_CODES
    if key not in found:
        says = nearest(key, found) or f"there are {', '.join(found)}"
        print(f"colearn-hpc: error: no key {key!r}; {says}", file=sys.stderr)
        return 2
    console = Console()
    if console.is_terminal:
        console.print(Markdown(found[key]))
    else:
        print(found[key])
    return 0


def sections() -> dict[str, str]:
    """Key -> its text, in the order of the page."""
    parts = re.split(r"^## ([\w-]+)\n", PAGE.read_text(), flags=re.MULTILINE)
    return {key: text.strip() for key, text in zip(parts[1::2], parts[2::2], strict=True)}
