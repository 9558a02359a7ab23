"""``colearn-hpc watch``: a run from its folder alone, live or afterwards. It never touches the job."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from colearn_hpc.cli import describe
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.protocol.messages import plural
from colearn_hpc.studies.records import read_json
from colearn_hpc.studies.run_folder import read_rounds, read_statuses
from colearn_hpc.studies.words import duration, printable

_SILENT = 30.0  # s without a sign of life, after which a data center is said to be silent
_ENDED = ("finished", "interrupted", "failed")
_COLORS = {"training": "green", "validating": "green", "exchanging": "cyan", "waiting": "yellow", "failed": "red"}
_AS_WIDE_AS_IT_IS = 10_000  # columns: outside a terminal nothing is cut


def main(argv: Sequence[str]) -> int:
    """Run ``watch``; returns 0, or 2 where there is no run and nobody to wait for one."""
    parser = Parser(prog="colearn-hpc watch", description=describe("watch"))
    parser.add_argument(
        "folder", type=Path, nargs="?", help="the run folder, e.g. runs/NAME; on a terminal it may come later"
    )
    parser.add_argument(
        "--federation", type=Path, metavar="FILE", help="instead: all sites, as the coordinator sees them"
    )
    parser.add_argument("--site", help="who asks (with --federation); on the coordinator's machine: nobody")
    parser.add_argument("--identity", type=Path, help="folder of its certificate and key (with --federation)")
    parser.add_argument(
        "--state", type=Path, help="on the coordinator's machine: its state folder; default: `state` beside the file"
    )
    parser.add_argument("--once", action="store_true", help="show it once (also: when the output is no terminal)")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks (default 2)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of the history to show (default 10)")
    arguments = parser.parse_args(argv)
    if (arguments.folder is None) == (arguments.federation is None):
        parser.error("give a run folder, or --federation FILE")
    if arguments.federation is not None:
        from colearn_hpc.cli.federation_watch import watch

        once = arguments.once or not sys.stdout.isatty()
        asks = arguments.site, arguments.identity, arguments.state
        return watch(arguments.federation, *asks, once, arguments.interval)
    folder, history = arguments.folder, arguments.rounds
    console = Console(highlight=False)
    if arguments.once or not sys.stdout.isatty() or console.is_dumb_terminal:
        if not _is_there(folder):
            found = "it has no centers/" if folder.is_dir() else "it is not there"
            print(f"colearn-hpc: error: {folder} is no run folder: {found}; give runs/NAME", file=sys.stderr)
            return 2
        print(view(folder, time.time(), history))
        return 0
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                now = time.time()
                page = Page(folder, now, history)
                live.update(page.fitted(*console.size), refresh=True)
                if page.over:
                    return 0
                time.sleep(max(0.1, arguments.interval))
    except KeyboardInterrupt:
        return 0


def view(folder: Path, now: float, history: int = 10) -> str:
    """The page as plain text, as long and as wide as it is.

    Args:
        folder: the run folder.
        now: seconds since 1970.
        history: rounds to show.
    """
    console = Console(file=io.StringIO(), width=_AS_WIDE_AS_IT_IS, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(Page(folder, now, history).whole())
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _is_there(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("centers", "status", "rounds.jsonl", "summary.json"))


class Page:
    """What ``watch`` shows of a run folder at one moment.

    Args:
        folder: the run folder; it need not be there yet.
        now: seconds since 1970.
        history: rounds to show.

    Attributes:
        over: the run has come to its end; an interrupted one has not, because its job will be started again.
    """

    def __init__(self, folder: Path, now: float, history: int) -> None:
        self._name, self._now, self._history = printable(str(folder)), now, max(0, history)
        self._there = _is_there(folder)
        self._problems: list[str] = []
        self._summary = read_json(folder / "summary.json")
        self._rounds = read_rounds(folder, self._problems) if (folder / "rounds.jsonl").exists() else []
        self._statuses = read_statuses(folder, self._summary)
        self.over = self._summary.get("status") in ("finished", "failed") and not self._alive()

    def whole(self) -> RenderableType:
        """All of it."""
        parts: list[RenderableType] = [Text(self._headline()), *(Text(problem) for problem in self._problems)]
        if self._statuses:
            parts += ["", self._center_table()]
        if self._rounds and self._history:
            parts += ["", self._round_table(self._history)]
        return Group(*parts)

    def fitted(self, columns: int, lines: int) -> RenderableType:
        """As much as a terminal takes: old rounds go first, then all of the data centers but their states."""
        top = [Text(self._headline()), *(Text(problem, style="yellow") for problem in self._problems)]
        used = sum(len(text.wrap(Console(width=columns), columns)) for text in top) + 1  # a line stays free
        parts: list[RenderableType] = [*top]
        if self._statuses:
            room = max(lines - used - 1, 2)
            shown: RenderableType = _Cut(self._center_table())
            height = len(self._statuses) + 1
            if height > room:
                shown, height = self._states(columns, room)
            parts += ["", shown]
            used += 1 + height
        if self._rounds and (room := min(self._history, lines - used - 2)) > 0:
            parts += ["", _Cut(self._round_table(room))]
        return Group(*parts)

    def _alive(self) -> list[dict[str, Any]]:
        """Data centers that give signs of life: a resumed run's summary is the last start's until a round ends."""
        seen = [status for status in self._statuses.values() if status]
        return [s for s in seen if s["state"] not in _ENDED and self._now - s["time"] < _SILENT]

    def _headline(self) -> str:
        if not self._there:
            return f"{self._name}: not there yet; waiting for the run to begin"
        alive, seen = self._alive(), any(self._statuses.values())
        said = self._summary.get("status", "starting")
        status = "running" if alive else said if said in _ENDED or not seen else "silent"
        text = f"{self._name}: {status}, {plural(len(self._rounds), 'round')} done"
        reason = self._summary.get("stopped_by" if status == "finished" else "error")
        if reason and status in _ENDED:
            text += f" ({str(reason).splitlines()[-1]})"
        if status == "interrupted":
            text += "; waiting for it to be started again"
        left = [max(0.0, s["seconds_left"] - (self._now - s["time"])) for s in alive if s["seconds_left"] is not None]
        if left:
            # The round ends when its slowest data center arrives.
            text += f"; this round's end in about {duration(max(left))}"
        return text

    def _center_table(self) -> Table:
        steps = any(status and status["unit"] == "steps" for status in self._statuses.values())
        numbers = ("round", "step" if steps else "local epoch", "batch", "samples/s", "loss", "last seen")
        table = _table("center", "state", *numbers, "host", texts=("center", "state", "host"))
        for name, status in self._statuses.items():
            if not status:
                table.add_row(Text(name), Text("no sign of life yet", "dim"))
                continue
            table.add_row(
                Text(name),
                self._state(status),
                str(status["round"]),
                f"{status['local_epoch']}/{status['local_epochs']}",
                f"{status['batch']}/{status['batches'] or '?'}",
                f"{status['samples_per_second']:.1f}",
                "-" if status["loss"] is None else f"{status['loss']:.4f}",
                f"{duration(max(0.0, self._now - status['time']))} ago",
                Text(status["host"]),
            )
        return table

    def _state(self, status: dict[str, Any]) -> Text:
        state = status["state"]
        if self._now - status["time"] > _SILENT and state not in _ENDED:
            return Text(f"silent ({state})", "red")
        return Text(state, _COLORS.get(state, ""))

    def _states(self, columns: int, room: int) -> tuple[RenderableType, int]:
        """Every data center with its state alone, side by side, and the height; the silent ones come first."""
        cells = [
            Text.assemble(f"{name} ", self._state(status) if status else ("-", "dim"))
            for name, status in self._statuses.items()
        ]
        cells.sort(key=lambda cell: " silent (" not in cell.plain)
        width = min(columns - 2, max(len(cell.plain) for cell in cells))
        side_by_side = max(1, columns // (width + 2))
        parts: list[RenderableType] = []
        if len(cells) > side_by_side * room:
            hidden = len(cells) - side_by_side * (room - 1)
            left = f"... {hidden} more data centers; --once shows all"
            parts.append(Text(left, "dim", no_wrap=True, overflow="ellipsis"))
            cells = cells[:-hidden]
        height = -(-len(cells) // side_by_side) + len(parts)
        return Group(Columns(cells, width=width, padding=(0, 2)), *parts), height

    def _round_table(self, history: int) -> Table:
        rounds = self._rounds[-history:]
        metrics = list(dict.fromkeys(name for record in rounds for name in record["centers"][0]["shared_metrics"]))
        spends = any(center["epsilon"] is not None for record in rounds for center in record["centers"])
        spent = ["ε spent"] if spends else []
        unit = rounds[0]["unit"] if rounds else "epochs"
        table = _table("round", "T", unit, "change", *metrics, *spent, "train s", "wait s", "exchange s")
        for record in rounds:
            shared, centers = record["centers"][0]["shared_metrics"], record["centers"]
            table.add_row(
                str(record["round"]),
                str(record["local_epochs"]),
                str(record["epochs_done"]),
                _digits(record["relative_change"]),
                *(_digits(shared.get(name)) for name in metrics),
                *(_digits(max((c["epsilon"] or 0.0 for c in centers), default=0.0)) for _ in spent),
                f"{max(center['train_seconds'] for center in centers):.1f}",
                f"{max(center['wait_seconds'] for center in centers):.1f}",
                f"{max(center['exchange_seconds'] for center in centers):.2f}",
            )
        return table


def _table(*columns: str, texts: Collection[str] = ()) -> Table:
    """A table without lines; its cells are numbers, but those of the columns in ``texts``."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(Text(name), justify="left" if name in texts else "right", no_wrap=True)
    return table


class _Cut:
    """A table as wide as it is, cut where a narrow terminal ends: rich would rather cut every cell."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._table, options.update(width=_AS_WIDE_AS_IT_IS), pad=False):
            yield from Segment.adjust_line_length(line, options.max_width)
            yield Segment.line()


def _digits(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"
