"""How a round's mean travels: inside each data center to its carriers, over the lanes, and back to all ranks."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.mpi.center_link import CenterLink
from colearn_hpc.mpi.compression import Compression
from colearn_hpc.mpi.copies import copy_to_all
from colearn_hpc.mpi.journal import Journal, Mean
from colearn_hpc.mpi.lanes import Lanes, Share
from colearn_hpc.mpi.mean import MeanUnderWay, Taken, begin_mean
from colearn_hpc.mpi.pipeline import Source, Vector
from colearn_hpc.mpi.stall import stall_watch
from colearn_hpc.mpi.topology import DataCenter


class Transfer:
    """The means of a run. No caller may guard its collective methods by a condition that those ranks do not share.

    Args:
        center: this process's data center. Collective over the world.
        link: the conversation inside it.
        journal: what it has heard since its last resume point.
        lanes: how many ranks of each data center share the transfer; None: one per node.
        timeout: seconds that a mean may stand still; None: for ever.

    Attributes:
        present: indices of the data centers that take part in the next mean.
        waiting: this rank waits for messages of a mean.

    Raises:
        TopologyError: on all ranks, when there cannot be so many lanes.
    """

    def __init__(
        self,
        center: DataCenter,
        link: CenterLink,
        journal: Journal,
        lanes: int | None = 1,
        timeout: float | None = None,
    ) -> None:
        self.center, self.link, self.journal, self.timeout = center, link, journal, timeout
        self.present = tuple(range(len(center.topology.centers)))
        self.waiting = False
        self._lanes = Lanes(center, lanes)
        self._under_way: MeanUnderWay | None = None

    @property
    def carries(self) -> bool:
        """Whether this rank takes part in means: a leader, or one that shares the transfer with it (``lanes.py``)."""
        return self._lanes.index is not None

    def advance(self) -> None:
        """Let messages of a mean that is under way pass: MPI moves nothing by itself. Never blocks."""
        if self._under_way is not None:
            self._under_way.advance()

    def mean_in_center(self, vector: Tensor) -> None:
        """Put the mean over this data center's ranks into every carrier's vector. Collective over the data center."""
        if self.center.size == 1 or not vector.numel():
            return
        rows = torch.empty((self.center.size, *vector.shape), dtype=vector.dtype) if self.center.is_leader else None
        self.link.enter().Gather(vector.numpy(), None if rows is None else rows.numpy(), 0)
        if rows is not None:
            weighted_mean(list(rows), [1.0] * self.center.size, out=vector)
        if self._lanes.count > 1:
            copy_to_all(self.link.enter(), 0, [vector])

    def mean_of_leaders(self, vector: Tensor, weights: Sequence[float]) -> None:
        """:meth:`take` of the leaders alone, of contiguous CPU vectors, shape ``(n,)``, in place."""
        self.take(Vector(vector), vector, weights, place=slice(0, len(vector)))

    def take(
        self,
        source: Source,
        result: Tensor,
        weights: Sequence[float],
        parameter_size: int | None = None,
        previous: Tensor | None = None,
        compression: Compression | None = None,
        place: slice | None = None,
    ) -> Taken:
        """Take this lane's share of the weighted mean of the data centers' vectors (eq. 2); :meth:`spread` follows.
        Collective over the carriers.

        See :func:`~colearn_hpc.mpi.mean.begin_mean`, also for the arguments. To be called right after a meeting.

        Args:
            source: this data center's model, the same size in all of them.
            result: where the mean goes, shape ``(size,)``.
            weights: n_k per data center, in order; 0 takes the mean without contributing to it.
            place: of which elements; None: this lane's share.
        """
        if self.journal.replaying:
            mean = self.journal.again("mean")
            assert isinstance(mean, Mean), "no meeting is called so"
            result.copy_(mean.result)
            if compression is not None:
                compression.pending = mean.pending
            return mean.taken
        self.begin(source, result, weights, parameter_size, previous, compression, place=place)
        taken = self.finish()
        self.journal.note("mean", Mean(taken, result, None if compression is None else compression.pending))
        return taken

    def begin(
        self,
        source: Source,
        result: Tensor,
        weights: Sequence[float],
        parameter_size: int | None = None,
        previous: Tensor | None = None,
        compression: Compression | None = None,
        gathering: int | None = None,
        place: slice | None = None,
    ) -> None:
        """Begin what :meth:`take` does, which says what these are: it goes on at every :meth:`advance`. Until
        :meth:`finish` nothing may write to them. Collective over the carriers.

        Args:
            gathering: see :class:`~colearn_hpc.mpi.pipeline.Pipeline`.
        """
        place = self._lanes.share(source.size) if place is None else place
        size = source.size if parameter_size is None else parameter_size
        self._under_way = begin_mean(
            self._lanes.group(self.present),
            Share(source, place),
            result[place],
            [weights[k] for k in self.present],
            min(max(size - place.start, 0), place.stop - place.start),
            None if previous is None else previous[place],
            compression,
            gathering,
        )
        self._under_way.advance()

    def finish(self) -> Taken:
        """Wait until this rank's share of the mean is there. Collective over the carriers, right after a meeting."""
        assert self._under_way is not None, "begin comes first"
        self.waiting = True
        names = [self.center.topology.centers[k].name for k in self.present]
        taken = self._under_way.finish(stall_watch(names, self.timeout))
        self._under_way = None
        self.waiting = False
        return taken

    def abandon(self) -> None:
        """Bring a mean that is under way to its end, and forget it. Collective over the carriers."""
        if self._under_way is not None:
            self.finish()

    def spread(self, vector: Tensor, taken: Taken | None) -> Taken | None:
        """Put the carriers' shares of the mean into every rank's vector, in place. Collective over the data center.

        The others wait politely first: carriers may be busy with a slow link for minutes.

        Args:
            vector: the mean, shape ``(n,)``; on carriers their share is there.
            taken: what carriers know of theirs.

        Returns:
            On the leader what is known of all of it, elsewhere ``taken``.
        """
        if self.center.size == 1:
            return taken
        shares = self.link.gather(taken) if self._lanes.count > 1 else None
        self._lanes.spread(vector, self.link)
        return taken if shares is None else functools.reduce(operator.add, filter(None, shares))
