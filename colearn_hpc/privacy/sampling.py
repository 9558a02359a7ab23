"""Poisson sampling: every record is in every batch with the same probability, by itself.

The accountant's bound holds for batches drawn so, and not for a shuffled pass over the data. Opacus' own sampler for
several ranks leaves out a rank's batch when nobody was drawn for it; that rank then has fewer batches than the others,
which wait for it for ever. It cannot begin in the middle of an epoch either. Hence this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.site_random import poisson_batch


@dataclass(frozen=True)
class Sampling:
    """How the records of one site make up batches.

    Attributes:
        examples: records of the site.
        batch: expected records per batch, over all ranks of the site.

    Raises:
        ConfigurationError: a number below 1, or a batch larger than the data.
    """

    examples: int
    batch: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.examples < 1:
            raise ConfigurationError(f"examples={self.examples}, batch={self.batch}: both must be 1 or more")
        if self.batch > self.examples:
            raise ConfigurationError(
                f"batch={self.batch} (batch_size times ranks) is larger than the data, {self.examples} examples; make "
                "it smaller"
            )

    @property
    def rate(self) -> float:
        """q, the probability with which a record is in a batch."""
        return self.batch / self.examples

    @property
    def steps_per_epoch(self) -> int:
        """As many as a shuffled pass has."""
        return -(-self.examples // self.batch)


class DrawnBatch(list[int]):
    """The records of one batch, and the epoch they belong to: data sets that decode at random ask for it."""

    epoch = 0


class PoissonBatches(DistributedSampler):
    """This rank's part of batches drawn by Poisson sampling; whole batches, for a loader with ``batch_size=None``.

    All ranks draw the same batch and deal it out, so each has its part of every batch. Where a rank's part is empty it
    gets one record in its place, because few training steps can do with none; ``stand_ins`` tells for which steps, and
    the optimizer gives that record no weight. A ``DistributedSampler``, so that Lightning leaves it alone.

    Args:
        dataset: anything with a length.
        sampling: how to draw.
        key: the site's, the same on all its ranks.
        steps_done: asked when an epoch begins: how many steps the run has made.
        ranks: of the site.
        rank: this one.

    Attributes:
        sampling: how to draw.
        batch_size: expected records per batch on this rank.
        stand_ins: steps for which this rank got a record that was not drawn.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampling: Sampling,
        key: bytes,
        steps_done: Callable[[], int],
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, ranks, rank, shuffle=True)
        self.batch_size = sampling.batch // ranks
        self.stand_ins: set[int] = set()
        self.sampling, self._key, self._steps_done = sampling, key, steps_done
        self._begin = 0

    def start_at(self, batch: int) -> None:
        """Let the next pass, once, be the rest of an epoch of which this many batches were trained."""
        self._begin = batch

    def __iter__(self) -> Iterator[DrawnBatch]:
        batches, self._begin = len(self) - self._begin, 0
        first = self._steps_done()
        self.stand_ins.clear()
        for step in range(first, first + batches):
            drawn = poisson_batch(self._key, step, self.sampling.examples, self.sampling.rate)
            mine = DrawnBatch(drawn[self.rank :: self.num_replicas] or [0])
            mine.epoch = self.epoch
            if len(drawn) <= self.rank:
                self.stand_ins.add(step)
            yield mine

    def __len__(self) -> int:
        """Batches per local epoch."""
        return self.sampling.steps_per_epoch


class _Collated(Dataset):
    """Whole batches of a data set that gives single records."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: Sequence[int]) -> Any:
        return self.collate([self.dataset[index] for index in indices])


def private_loader(
    loader: Any, key: bytes, steps_done: Callable[[], int], ranks: int, rank: int
) -> tuple[DataLoader, PoissonBatches]:
    """The same loader with Poisson batches.

    Args:
        loader: a ``DataLoader`` over a data set with a length; with ``batch_size``, or with ``batch_size=None`` and a
            sampler of whole batches that has a ``batch_size`` of its own.
        key: see :class:`PoissonBatches`.
        steps_done: see :class:`PoissonBatches`.
        ranks: of the site.
        rank: this one.

    Returns:
        It, and its sampler.

    Raises:
        ConfigurationError: it is no such loader, or draws by a sampler of its own.
    """
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, Sized):
        raise ConfigurationError(
            f"private training needs one DataLoader over a data set of known length, found {type(loader).__name__}; "
            "return one from train_dataloader()"
        )
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler | DistributedSampler):
        raise ConfigurationError(
            f"the training DataLoader draws by {type(loader.sampler).__name__}; private training draws by Poisson "
            "sampling, so leave the sampler out and give a data set of the records to be trained on"
        )
    batch = loader.batch_size or getattr(loader.sampler, "batch_size", None)
    if batch is None:
        raise ConfigurationError("the training DataLoader has a batch_sampler of its own; set batch_size instead")
    whole = loader.batch_size is None
    sampling = Sampling(len(loader.dataset), batch * ranks)
    sampler = PoissonBatches(loader.dataset, sampling, key, steps_done, ranks, rank)
    private = DataLoader(
        loader.dataset if whole else _Collated(loader.dataset, loader.collate_fn),
        batch_size=None,
        sampler=sampler,
        collate_fn=loader.collate_fn if whole else None,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
    return private, sampler
