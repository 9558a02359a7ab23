"""``colearn-hpc report RUN``: how one run went, as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from colearn_hpc.cli import describe
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import ColearnError
from colearn_hpc.protocol.messages import describe_error
from colearn_hpc.studies.report import write_run_report


def main(argv: Sequence[str]) -> int:
    """Run ``report``; returns 0, or 2 where there is no run."""
    parser = Parser(prog="colearn-hpc report", description=describe("report"))
    parser.add_argument("run", type=Path, help="a run folder, e.g. runs/quickstart")
    try:
        print(f"report: {write_run_report(parser.parse_args(argv).run)}")
    except ColearnError as error:
        print(f"colearn-hpc: error: {describe_error(error)}", file=sys.stderr)
        return 2
    return 0
