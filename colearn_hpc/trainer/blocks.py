"""Blocks of optimizer steps in place of passes over the data: what a run that counts steps trains between two resume
points (``local_steps``, :class:`~colearn_hpc.algorithm.local_epochs.InSteps`).

    the loader    |  pass 0         |  pass 1         |  pass 2 ...
    Lightning     |  epoch 0  |  epoch 1  |  epoch 2  |  epoch 3 ...       an epoch of Lightning is a block of T_0 steps
    the run       |  round 0  |  round 1  |  round 2              |       here T_2 is doubled

A block ends where its steps are done, and the next one goes on with the next batch. Where the loader has no further
batch its next pass begins, in the middle of a block or of a gradient that is accumulated. So no loader needs a length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import kinds
from colearn_hpc.errors import ConfigurationError, DataError
from colearn_hpc.trainer.generators import generators, set_generators
from colearn_hpc.trainer.lightning_gaps import (
    callbacks_of,
    replace_fetcher,
    resumes_loaders,
    set_epoch_length,
    set_sampler_epochs,
    tell_place,
)


def check_counts_steps(trainer: pl.Trainer) -> None:
    """Refuse what counts epochs, where the run counts steps. In ``setup``.

    Raises:
        ConfigurationError: there is such a thing.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for name, found, usual in (
        ("max_epochs", trainer.max_epochs, -1),
        ("min_epochs", trainer.min_epochs, None),
        ("reload_dataloaders_every_n_epochs", vars(trainer)["reload_dataloaders_every_n_epochs"], 0),
    ):
        if found != usual and not (name == "min_epochs" and not found):
            instead = "max_epochs=-1 with rounds or max_steps" if name == "max_epochs" else f"{name}={usual}"
            raise ConfigurationError(
                f"Trainer({name}={found}) counts passes over the data, and with local_steps the run counts optimizer "
                f"steps; set {instead}"
            )
    if any(isinstance(one, kinds("callbacks", "GradientAccumulationScheduler")) for one in callbacks_of(trainer)):
        raise ConfigurationError(
            "GradientAccumulationScheduler changes by epochs how many batches a step has, and with local_steps the run "
            "counts steps; use Trainer(accumulate_grad_batches=...)"
        )


class Blocks:
    """Stands where Lightning's data fetcher stood, and serves batches block by block.

    Args:
        trainer: whose.

    Attributes:
        fetched: batches of the block that were served.
        length: batches of the block.
        done: whether these are all. Lightning takes that for the epoch's last batch.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._loader: Any = None
        self._iterator: Iterator[Any] = iter(())
        self._waiting: list[Any] = []  # fetched by Lightning, to know whether they are the last
        self._pass_length: int | None = None
        self._start: dict[str, Any] = {}  # the generators, before the pass's iterator was made
        self._pass = self._served = 0
        self.fetched = self.length = 0
        self.done = False

    def take_over(self) -> None:
        """Take the place of Lightning's fetcher, which has made the first pass's iterator. In ``on_train_start``.

        Raises:
            ConfigurationError: ``training_step`` fetches by itself.
        """
        fetcher = replace_fetcher(self._trainer, self)
        self._loader, self._iterator = fetcher.combined_loader, fetcher.iterator
        self._waiting, self._pass_length = list(getattr(fetcher, "batches", ())), fetcher.length

    # --- what Lightning calls ---------------------------------------------------------------------------

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> Any:
        """A batch, its number in the pass, and its loader's number."""
        self._start_profiler()
        try:
            batch = self._next()
        finally:
            self._stop_profiler()
        self.fetched += 1
        self.done = self.fetched >= self.length
        return batch

    def _start_profiler(self) -> None:
        """Replaced by Lightning."""

    def _stop_profiler(self) -> None:
        """Replaced by Lightning."""

    @property
    def combined_loader(self) -> Any:
        """All training loaders."""
        return self._loader

    def teardown(self) -> None:
        """End the loaders' workers."""
        self._loader.reset()
        self._iterator = iter(())

    # --- what the run calls -----------------------------------------------------------------------------

    def begin(self, steps: int) -> None:
        """A block of so many optimizer steps begins.

        In manual optimization a step is a call of ``training_step``.
        """
        self.fetched, self.length, self.done = 0, steps * self._trainer.accumulate_grad_batches, False
        set_epoch_length(self._trainer, self.length)
        # Lightning has just told the samplers the block's number.
        set_sampler_epochs(self._loader, self._pass)

    def steps(self, batches: int) -> int:
        """How many optimizer steps so many batches are."""
        return batches // self._trainer.accumulate_grad_batches

    def start_from(self, start: dict[str, Any]) -> None:
        """Remember this rank's generators, as they were before the first pass's iterator was made."""
        self._start = start

    @property
    def place(self) -> dict[str, Any]:
        """Where this rank is in its data: the pass, batches of it that are trained, and its generators before the
        pass began."""
        return {"pass": self._pass, "batches": self._served, "start": self._start}

    def restore(self, place: dict[str, Any]) -> None:
        """Go on from such a place, with the generators of the pass's beginning and what the batches until there have
        drawn from them."""
        self._pass, self._served, self._start = place["pass"], place["batches"], place["start"]
        resumes_loaders()
        if self._is_over:
            return
        set_generators(self._start)
        skip = tell_place(self._loader, self._pass, self._served)
        if skip is None:
            return
        self._iterator, self._waiting = iter(self._loader), []
        for _ in range(skip):
            next(self._iterator)

    @property
    def _is_over(self) -> bool:
        """Whether the pass is, where its length is known."""
        return self._pass_length is not None and self._served >= self._pass_length

    def _next(self) -> Any:
        if not self._is_over:
            try:
                batch = self._waiting.pop(0) if self._waiting else next(self._iterator)
            except StopIteration:
                pass
            else:
                self._served += 1
                return batch
        self._pass, self._served, self._waiting = self._pass + 1, 0, []
        self._start = generators()
        set_sampler_epochs(self._loader, self._pass)
        self._iterator = iter(self._loader)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DataError(
                f"the training data has no batch in its pass {self._pass} (from 0): with local_steps a loader is "
                "asked again when it has ended; let its __iter__ begin anew each time"
            ) from None
        self._served = 1
        return batch
