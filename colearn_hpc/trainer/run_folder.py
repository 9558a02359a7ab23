"""The files of a run folder that users and tools read.

    RUN/contract.json         what all data centers agreed on, see :mod:`~colearn_hpc.protocol.contract`
    RUN/rounds.jsonl          one line per round, see :class:`~colearn_hpc.protocol.reports.RoundReport`; and one where
                              somebody joined the run or left it for good, see :mod:`~colearn_hpc.protocol.contract`
    RUN/rounds.damaged.jsonl  lines of it that could not be read, as they were, if there ever were any
    RUN/shared.ckpt           the shared model, an ordinary Lightning checkpoint
    RUN/summary.json          how the run stands or ended
    RUN/writer.json           who writes here (see writer_lock.py)
    RUN/status/NAME.json      what data center NAME is doing, for `colearn-hpc watch` (see heartbeat.py)
    RUN/centers/NAME/status.json  the same with its loss
    RUN/centers/NAME/log.txt  the data center's log
    RUN/centers/NAME/own.ckpt the shared model with the data center's own layers, where there are `local_layers`
    RUN/centers/NAME/resume-*.ckpt  its resume points (see epoch_end.py)
    RUN/centers/NAME/local.ckpt  its own model as it was before the last mean (see local_model.py)

All files but the log are replaced whole, so a reader never sees half a record. ``centers/NAME`` belongs to the data
center alone: the folder has mode 0700, its files 0600. Whoever may read the run folder may read the rest. A data center
that does not see the first one's run folder writes all of these files into its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from torch import nn

from colearn_hpc.errors import words_of
from colearn_hpc.protocol.contract import (
    CHAIN,
    Contract,
    begins,
    contracts_in_force,
    end_of,
    is_roster,
    linked,
    openings,
)
from colearn_hpc.protocol.reports import RoundReport
from colearn_hpc.protocol.run import RunState
from colearn_hpc.trainer.writer_lock import WriterLock
from colearn_hpc.trainer.writing import PRIVATE, private_folder, remove_leftovers, write_atomically

log = logging.getLogger("colearn_hpc")


class RunFolder:
    """Writes a run folder.

    The presiding leader writes the run's files, and so does each leader that does not see its folder. Every leader
    writes its data center's log.

    Args:
        folder: the run folder.
        center: the data center's name.
        writes_run: whether this rank presides.
        writes_center: whether this rank leads its data center.
        start: a word for this start of the run; temporary files have it in their names.

    Attributes:
        folder, center_folder: the run's folder and the data center's.
        start: the word for this start.
        lock: the lock on the folder, in the process that holds it.
        writes_shared: whether this data center writes the shared model, and its leader the run's files.
        last: the last line that was written.
    """

    def __init__(self, folder: Path, center: str, writes_run: bool, writes_center: bool, start: str = "") -> None:
        self.folder = folder
        self.center_folder = folder / "centers" / center
        self.start = start
        self.lock: WriterLock | None = None
        self.writes_shared = False
        self.last: RoundReport | None = None
        self._presides, self._leads, self._center = writes_run, writes_center, center
        self._contracts: list[Contract] = []
        self._chain = ("", -1)  # see end_of
        self._started = time.monotonic()
        self._model: dict[str, Any] = {}
        self._unwritten: list[str] = []
        if writes_run:
            folder.mkdir(parents=True, exist_ok=True)
        self._handler: logging.Handler | None = None
        if writes_center:
            private_folder(self.center_folder)
            remove_leftovers(self.center_folder)
            for old in [one for one in log.handlers if isinstance(one, _RunLog)]:
                log.removeHandler(old)  # of a run in this process that failed, and was not torn down
                old.close()
            self._handler = _RunLog(_own_log(self.center_folder / "log.txt"))
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(self._handler)
            if log.level == logging.NOTSET:
                log.setLevel(logging.INFO)
            if len(log.handlers) == 1 and not logging.getLogger().handlers:
                console = logging.StreamHandler()  # our own handler would otherwise silence warnings
                console.setLevel(logging.WARNING)
                console.setFormatter(logging.Formatter("colearn-hpc: %(message)s"))
                log.addHandler(console)

    @property
    def writes_run(self) -> bool:
        """Whether this rank writes the run's files here."""
        return self._presides or (self._leads and self.writes_shared)

    def agree(self, contract: Contract) -> None:
        """Write down what holds from ``contract.from_round`` on, after :meth:`rewind`; the chain goes on from there.

        Raises:
            OSError: the disk refuses it; nothing that follows could be verified.
        """
        self._contracts = [contract]
        if not self.writes_run:
            return
        path = self.folder / "contract.json"
        self._contracts = contracts_in_force(read_contracts(path), contract)
        content = {"contracts": [one.to_plain() for one in self._contracts]}
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", self.start)
        self._rechain()

    def members(self, round_index: int) -> tuple[str, ...]:
        """Who takes part in a round, as the contract has it; empty where nothing was agreed on."""
        holds = [one for one in self._contracts if one.from_round <= round_index] or self._contracts[:1]
        return holds[-1].members if holds else ()

    @property
    def head(self) -> str:
        """The chain's digest after the last line."""
        return self._chain[0]

    def begin(self, module: nn.Module) -> None:
        """Training begins here; the summary's seconds count from now.

        Args:
            module: the module that is trained; the summary says how large it is.
        """
        self._started = time.monotonic()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._model = {
            "model": type(module).__name__,
            "parameters": sum(parameter.numel() for parameter in trained),
            "parameter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in trained),
        }

    def continues(self, before: RunFolder) -> None:
        """The data center begins again in place: the run goes on where ``before`` has left it."""
        self.writes_shared, self.last, self._started = before.writes_shared, before.last, before._started
        self._model = before._model
        self._contracts, self._chain = before._contracts, before._chain
        self._unwritten, self.lock = before._unwritten, before.lock

    def append(self, record: RoundReport) -> None:
        """Add a round's line. Where the disk refuses, it is added with the next one."""
        self.last = record
        if not self.writes_run:
            return
        self.check_lock()
        path = self.folder / "rounds.jsonl"
        line = jsonable(record.to_plain())
        if self._contracts:
            opening, before = openings(self._contracts, self._chain, record.round)
            line[CHAIN] = linked(before, line)
            self._chain = (line[CHAIN], record.round)
            self._unwritten += [json.dumps(one) + "\n" for one in opening]
        self._unwritten.append(json.dumps(line) + "\n")
        try:
            # Whole and atomically: a line that a full disk cut in the middle would hide all after it.
            lines = [json.dumps(line) + "\n" for line in self._lines(path)]
            write_atomically(path, "".join(lines + self._unwritten), self.start)
            self._unwritten.clear()
        except OSError as error:
            log.warning("%s could not be written (%s); the line is kept for the next round", path, words_of(error))

    def rewind(self, rounds_done: int) -> None:
        """Drop the lines of rounds that a resumed run will do again."""
        path = self.folder / "rounds.jsonl"
        if self.writes_run and path.exists():
            kept = [line for line in self._lines(path) if begins(line) < rounds_done]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept), self.start)
        self._unwritten = [one for one in self._unwritten if begins(json.loads(one)) < rounds_done]
        self._rechain()

    def summarize(self, state: RunState, centers: list[str], ranks: int, **content: Any) -> None:
        """Replace ``summary.json``.

        Args:
            state: how far the run has come.
            centers: names of all data centers.
            ranks: the number of ranks of all data centers; in a federation, of this site.
            content: ``status`` and what belongs to it.

        Raises:
            OSError: the disk refuses it and the run has finished: its result would be lost in silence.
        """
        if not self.writes_run:
            return
        content = (
            {
                "run_id": state.run_id,
                "centers": centers,
                "ranks": ranks,
                "rounds": state.rounds_done,
                "epochs": state.epochs_done,
                "relative_change": state.change,
                "seconds": round(time.monotonic() - self._started, 3),
                "shared_metrics": self.last.centers[0].shared_metrics if self.last else {},
            }
            | self._model
            | content
        )
        try:
            write_atomically(self.folder / "summary.json", json.dumps(jsonable(content), indent=2) + "\n", self.start)
        except OSError as error:
            if content.get("status") == "finished":
                raise
            log.warning("summary.json could not be written (%s)", words_of(error))

    def _rechain(self) -> None:
        """The chain ends where the lines do that are kept."""
        path = self.folder / "rounds.jsonl"
        if self.writes_run and self._contracts:
            lines = [*self._lines(path), *map(json.loads, self._unwritten)]
            self._chain = end_of(lines)

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        """The records of ``rounds.jsonl``; none where it is not there. What cannot be read is set aside, and said.

        Raises:
            OSError: the disk refuses.
        """
        if not path.exists():
            return []
        lines = path.read_text(errors="backslashreplace").split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        records = [_record(line) for line in lines]
        damaged = [number for number, record in enumerate(records) if record is None]
        if damaged:
            aside = path.with_name("rounds.damaged.jsonl")
            before = aside.read_text() if aside.exists() else ""
            write_atomically(aside, before + "".join(lines[number] + "\n" for number in damaged), self.start)
            kept = [record for record in records if record is not None]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept), self.start)
            where = ", ".join(str(number + 1) for number in damaged[:10]) + (", ..." if len(damaged) > 10 else "")
            log.warning(
                "%s: line %s of %d cannot be read; what it said of its round is missing there, and kept as it is in %s",
                path,
                where,
                len(lines),
                aside.name,
            )
        return [record for record in records if record is not None]

    def check_lock(self) -> None:
        """Raises ConfigurationError where another start has taken this folder over."""
        if self.lock is not None:
            self.lock.check()

    def release(self) -> None:
        """Nothing more is written: another start may have the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def close(self) -> None:
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
            self._handler = None


def _record(line: str) -> dict[str, Any] | None:
    """A line of ``rounds.jsonl``; None where a kill or a bad disk has cut or changed it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and is_roster(record):
        return record
    number = record.get("round") if isinstance(record, dict) else None
    return record if isinstance(number, int) and not isinstance(number, bool) else None


def read_contracts(path: Path) -> list[Contract]:
    """The contracts in a ``contract.json``, in order; empty where there is no file.

    A damaged file counts as no file. Its contracts are lost, and ``colearn-hpc verify`` will say so.
    """
    try:
        plain = json.loads(path.read_text())["contracts"]
        return [Contract.from_plain(one) for one in plain]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s); it begins anew", path, error)
        return []


class _RunLog(logging.FileHandler):
    """The log of a data center. A process writes one at a time."""


def _own_log(path: Path) -> Path:
    """The file, there and nobody else's to read."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, PRIVATE)
    os.fchmod(number, PRIVATE)
    os.close(number)
    return path


def jsonable(value: Any) -> Any:
    """The value, with None in the place of numbers that JSON cannot say."""
    # JSON has no NaN and no infinity: null, so that every reader can read it.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value
