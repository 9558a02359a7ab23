"""Resume points are written while the next local epoch is trained.

a local epoch's end       the leader copies the state in memory; training does not change the copy
the next local epoch      a thread writes the copy under a temporary name, renames it, and removes what is obsolete
that epoch's last batch   all ranks learn what became of it, before they meet other data centers again

Between the copy and that last batch nothing is heard from other data centers. So at every meeting, and at every restart
from a resume point, all is as if points were written at once: each data center has the one of the epoch before, or has
said why not, and what was heard before it is forgotten (``protocol/journal.py``). Whoever stops, fails or ends waits
for the thread first; so does the process's end, because the thread is no daemon.

There is one thread for all points: CPython 3.11 before 3.11.10 can hang where a thread ends while a data loader forks.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import colearn_hpc._lightning as pl
from colearn_hpc import faults
from colearn_hpc.errors import CheckpointError, words_of
from colearn_hpc.trainer.lightning_gaps import checkpoint_of, writes_one_file
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.resume_points import check_readable, put_point, remove_obsolete, save_atomically
from colearn_hpc.trainer.run_folder import RunFolder
from colearn_hpc.trainer.state_copy import StateCopy
from colearn_hpc.trainer.supervisor import Supervisor, check_process_group

log = logging.getLogger("colearn_hpc")

_UNFINISHED = "it was interrupted"


class PointWriter:
    """Writes this data center's resume points, one after the other.

    A disk that is full or read-only ends nothing: the point before stays, and the next one may succeed.

    Args:
        place: this process's.
        folder: the run's.
        supervisor: who begins again after a failure.
        at_once: no point is left to the thread.
    """

    def __init__(self, place: Place, folder: RunFolder, supervisor: Supervisor, at_once: bool = False) -> None:
        self._place, self._folder, self._supervisor, self._at_once = place, folder, supervisor, at_once
        self._copy = StateCopy()
        self._thread = ThreadPoolExecutor(1, "colearn-resume-points")
        self._proved = False  # a resume point of this run has been written and read back
        self._path = Path()
        self._begun = False  # a point of which this data center has not learned yet what became of it
        # On the leader, of the last point:
        self._writing: Future[None] | None = None
        self._problem = ""  # why it is not there

    def write(self, trainer: pl.Trainer, path: Path, at_once: bool = False) -> None:
        """Write a resume point, or leave it to the thread. Collective over the data center.

        Args:
            trainer: whose state.
            path: of the point.
            at_once: it is there, or cannot be, when this returns.
        """
        check_process_group(trainer)
        self.settle()
        self._folder.check_lock()
        self._path, self._begun, self._writing, self._problem = path, True, None, _UNFINISHED
        at_once |= self._at_once or not self._proved or not writes_one_file(trainer)
        try:
            if at_once:
                self._write_now(trainer)
            else:
                self._write_later(trainer)
        except OSError as error:
            self._problem = words_of(error)
        if at_once:
            self.settle()

    def settle(self) -> None:
        """Wait for the point that is being written, if there is one. Collective over the data center.

        Raises:
            Exception: on the leader alone, what went wrong that was not the disk.
        """
        if self._begun:
            self._wait()
            self._learn(self._place.site.bcast(self._problem))

    def settle_after_failure(self) -> None:
        """The same when the ranks come from wherever the failure found them. Collective over the data center."""
        self.leave()
        problem = self._place.site.bcast(self._problem)
        if self._begun:
            self._learn(problem)

    def leave(self) -> None:
        """Wait for this rank's thread, whatever comes of it: nothing is written any more when this returns."""
        try:
            self._wait()
        except Exception as error:
            log.info("%s: %r", self._path, error)
        if self._begun and not self._problem:
            self._place.journal.forget()  # whether it can begin again is judged on this rank alone

    def close(self) -> None:
        """:meth:`leave`, and let the thread and its memory go."""
        self.leave()
        self._thread.shutdown()
        self._copy = StateCopy()

    def _write_now(self, trainer: pl.Trainer) -> None:
        save_atomically(trainer, self._path, self._place.center, private=True)
        if self._place.center.is_leader:
            if not (self._proved or self._supervisor.loads_everything):
                self._check_readable()
            remove_obsolete(self._path.parent)
        self._problem = ""

    def _write_later(self, trainer: pl.Trainer) -> None:
        checkpoint = checkpoint_of(trainer)  # callbacks may take part on every rank
        center = self._place.center
        if not center.is_leader:
            return
        rest = (self._path, center.start, faults.later("checkpoint"))
        try:
            copied = self._copy.take(checkpoint)
        except Exception as error:
            log.info("the state cannot be copied (%r); training waits for its resume point", error)
            put_point(checkpoint, *rest)
            self._problem = ""
        else:
            self._writing = self._thread.submit(put_point, copied, *rest)

    def _wait(self) -> None:
        if self._writing is not None:
            try:
                self._writing.result()
                self._problem = ""
            except OSError as error:
                self._problem = words_of(error)

    def _learn(self, problem: str) -> None:
        self._begun = False
        if problem:
            log.warning("%s could not be written (%s); the resume point before it stays", self._path, problem)
            return
        self._proved = True
        self._place.journal.forget()
        self._supervisor.point_written()

    def _check_readable(self) -> None:
        """The first resume point of a run is read back before anything relies on it."""
        try:
            check_readable(self._path)
        except CheckpointError as error:
            if self._supervisor.supervises:
                raise
            log.warning("%s", error)  # in `trainer.fit()` nobody tells us how it will be loaded
