"""How a mean travels: inside each data center to its carriers, between data centers, and back to all ranks."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.algorithm.slice_sums import Squares
from colearn_hpc.between import Between, MeanFacts, Offer, TensorSite, UnderWay
from colearn_hpc.trainer.stall import stall_watch

_ALIGNED = 16  # elements: parts begin with a cache line


def parts_of(size: int, lanes: int) -> list[slice]:
    """The part of a vector of ``size`` elements that each lane carries."""
    ends = [min(-(-size * end // (lanes * _ALIGNED)) * _ALIGNED, size) for end in range(lanes + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


class Means:
    """The means of a run. No caller may guard its collective methods by a condition that those ranks do not share.

    Args:
        site: inside this data center.
        between: between the data centers.
        patience: seconds that a mean may stand still; None: ``pacing.STALL``.
        sharded: each rank's vector is a shard of the model, and travels whole in this rank's lane.
        device: where this rank's model lies, and means are taken; None: in host memory.

    Attributes:
        under_way: the mean that has begun; None: there is none.
        waiting: this rank waits for a mean.
        device: where means are taken.
    """

    def __init__(
        self,
        site: TensorSite,
        between: Between,
        patience: float | None = None,
        sharded: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._site, self._between, self._patience, self.sharded = site, between, patience, sharded
        self.device, self._on_device = device or torch.device("cpu"), device is not None
        self.under_way: UnderWay | None = None
        self._present: tuple[int, ...] = ()
        self.waiting = False

    @property
    def carries(self) -> bool:
        """Whether this rank takes part in means: a leader, or one that shares the transfer with it."""
        return self._between.carries

    def advance(self) -> None:
        """Let messages of a mean that is under way pass: some transports move nothing by themselves. Never blocks."""
        if self.under_way is not None:
            self.under_way.advance()

    def part(self, size: int) -> slice:
        """What this carrier carries of a vector of ``size`` elements."""
        return parts_of(size, len(self._site.carriers))[list(self._site.carriers).index(self._site.rank)]

    def mean_in_center(self, vector: Tensor) -> None:
        """Put the mean over this data center's ranks into every carrier's vector. Collective over the data center.

        Args:
            vector: contiguous, on the CPU, shape ``(n,)``.
        """
        if self._site.size == 1 or not vector.numel():
            return
        rows = self._site.rows(vector)
        if rows is not None:
            weighted_mean(list(rows), [1.0] * len(rows), out=vector)
        if len(self._site.carriers) > 1:
            self._site.copy_to_all([vector])

    def begin(self, offer: Offer, present: tuple[int, ...]) -> None:
        """Begin this lane's part of eq. 2 over the data centers ``present``, right after the meeting that says so. It
        goes on at every :meth:`advance`. Collective over the carriers."""
        self._present = present
        if not self.sharded:
            offer = offer.part(self.part(offer.source.size))
        self.under_way = self._between.begin_mean(offer, present)
        self.under_way.advance()

    def finish(self) -> MeanFacts:
        """Wait until this rank's part of the mean is there. Collective over the carriers, right after a meeting.

        Raises:
            RoundTimeoutError: nothing has moved for too long.
        """
        assert self.under_way is not None, "begin comes first"
        self.waiting = True
        names = [self._between.names[k] for k in self._present]
        facts = self.under_way.finish(stall_watch(names, self._patience))
        self.under_way = None
        self.waiting = False
        return facts

    def take(self, offer: Offer, present: tuple[int, ...]) -> MeanFacts:
        """:meth:`begin` and :meth:`finish`."""
        self.begin(offer, present)
        return self.finish()

    def sum_of_shards(self, mine: Squares) -> Squares | None:
        """What all ranks of this data center have measured over their shards, on the leader; None elsewhere.
        Collective over the data center."""
        found = self._site.gather(mine)
        return None if found is None else functools.reduce(operator.add, found)

    def abandon(self) -> None:
        """Forget a mean that is under way, because the run is left. Collective over the carriers."""
        if self.under_way is not None:
            names = [self._between.names[k] for k in self._present]
            self.under_way.abandon(stall_watch(names, self._patience))
            self.under_way = None

    def spread(self, vector: Tensor, facts: MeanFacts | None, through_host: bool = False) -> MeanFacts | None:
        """Put the carriers' parts of the mean into every rank's vector, in place. Collective over the data center.

        Args:
            vector: the mean, shape ``(n,)``; on carriers their part is there.
            facts: what carriers know of theirs.
            through_host: the data center has no process group, for it has left that; equal on all its ranks.

        Returns:
            On the leader what is known of all of it, elsewhere ``facts``.
        """
        if self._site.size == 1:
            return facts
        lanes = len(self._site.carriers)
        found: Sequence[MeanFacts | None] | None = self._site.gather(facts) if lanes > 1 else None
        parts = parts_of(len(vector), lanes)
        if self._on_device and not self.sharded and not through_host:
            # By the data center's own process group, which is DDP's: NCCL on GPUs.
            self._site.bcast(None)  # who is early waits politely, and nobody's code runs from here on
            for carrier, part in zip(self._site.carriers, parts, strict=True):
                if len(vector[part]):
                    distributed.broadcast(vector[part], carrier)
        elif not self.sharded:
            self._site.spread(host := vector.cpu(), parts)
            if host is not vector:
                vector.copy_(host)
        return facts if found is None else functools.reduce(operator.add, filter(None, found))
