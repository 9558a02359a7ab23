"""What `doctor` finds, a line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from colearn_hpc.studies.words import printable

OK, WARN, FAIL = "OK", "WARN", "FAIL"
_COLORS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: str
    topic: str
    text: str

    def __str__(self) -> str:
        return printable(f"{self.level:4}  {self.topic:9}  {self.text}")


def show(findings: Sequence[Finding]) -> None:
    """Print what was found: in columns and colours on a terminal, a line each elsewhere."""
    console = Console(highlight=False)
    # mpirun lets its ranks write to terminals that nobody sees, and that end in a file as likely as not; there is
    # nothing to read from them.
    if console.is_terminal and sys.stdin.isatty():
        table = Table.grid(padding=(0, 2))
        for finding in findings:
            level = Text(finding.level, style=_COLORS[finding.level])
            table.add_row(level, Text(finding.topic), Text(printable(finding.text)))
        console.print(table)
    else:
        print(*findings, sep="\n")
    sys.stdout.flush()
