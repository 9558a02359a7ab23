"""Equation 2 on the wire: the weighted mean of the leaders' vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np

from colearn_hpc.algorithm.shared_model import squares
from colearn_hpc.algorithm.slice_sums import Squares
from colearn_hpc.between import Idle, MeanFacts, Offer
from colearn_hpc.mpi.pipeline import Pipeline
from colearn_hpc.mpi.tensor_wire import MpiWire, TensorWire

if TYPE_CHECKING:
    from mpi4py import MPI

_NONE = Squares()


class MeanUnderWay:
    """A mean that has begun: the messages of :meth:`advance` pass while other things are done.

    Memory of it may be written to by messages until :meth:`finish` has returned.

    Args:
        leaders: see :func:`begin_mean`.
        pipeline: its way, or None where nobody else takes part.
        squares, rest: the sums over what needed no way.
        gave: this leader's part in it is measured.
    """

    def __init__(
        self,
        leaders: MPI.Comm,
        pipeline: Pipeline | None,
        squares: Squares = _NONE,
        rest: Squares = _NONE,
        gave: bool = True,
    ) -> None:
        self._leaders, self._pipeline, self._gave = leaders, pipeline, gave
        self._squares, self._rest = squares, rest
        _under_way.add(self)

    def advance(self) -> None:
        if self._pipeline is not None:
            self._pipeline.advance()

    def finish(self, idle: Idle | None = None) -> MeanFacts:
        mine, rest, apart, sent = self._squares, self._rest, [0.0] * self._leaders.Get_size(), 0
        distance = 0.0
        if (pipeline := self._pipeline) is not None:
            pipeline.run(idle)
            mine, rest, apart, sent = pipeline.squares, pipeline.rest, pipeline.distances, pipeline.sent
            distance = pipeline.own_distance  # told to nobody
        _under_way.discard(self)
        known = np.array([*astuple(mine), *astuple(rest), *apart], dtype=np.float64)
        all_known = np.empty((self._leaders.Get_size(), len(known)))
        self._leaders.Allgather(known, all_known)
        total, others, me = Squares(), Squares(), self._leaders.Get_rank()
        for row in all_known.tolist():
            total, others, distance = total + Squares(*row[:3]), others + Squares(*row[3:6]), distance + row[6 + me]
        finite = math.isfinite(total.after) and math.isfinite(others.after)
        return MeanFacts(sent, total, finite, distance if self._gave else math.nan)

    def abandon(self, idle: Idle | None = None) -> None:
        self.finish(idle)  # nobody may leave while messages are under way


# Their memory stays, even if a failure ends the run that has begun them: messages may still arrive in it.
_under_way: set[MeanUnderWay] = set()


def begin_mean(
    leaders: MPI.Comm, offer: Offer, weights: Sequence[float], wire: TensorWire | None = None, ahead: int = 0
) -> MeanUnderWay:
    """Begin to take the mean of the leaders' vectors (eq. 2), and to measure its change (eq. 4). Collective over
    ``leaders``, but waits for nobody: :meth:`MeanUnderWay.finish` does.

    An Allreduce in two halves, chunk by chunk: each leader is sent its slice of every vector, sums the slices
    in float64 in the order of the data centers, and sends the result to all. The bits therefore do not depend
    on the MPI's vendor, algorithm or message sizes. Bytes sent: 2 (K-1)/K of the vector per leader. Each leader
    measures its own slices, so the norms cost n/K.

    To be called right after a meeting.

    Args:
        leaders: one rank per data center that takes part, in the order of the data centers.
        offer: of this leader.
        weights: n_k per rank of ``leaders``; whoever has 0 takes the mean without contributing to it, and may
            hold NaN.
        wire: of the same leaders, by which tensors go; None: by ``leaders``.
        ahead: see :class:`Pipeline`.

    Raises:
        ValueError: all weights are 0, or the offer's result does not fit.
    """
    source, result, length, previous = offer.source, offer.result, offer.parameter_size, offer.previous
    alone = leaders.Get_size() == 1
    expected = result.dtype if alone else offer.encoding.source_dtype(result.dtype)
    if result.shape != (source.size,) or source.dtype != expected:
        raise ValueError(
            f"a mean of {tuple(result.shape)} x {result.dtype} needs {expected}, found {source.size} x {source.dtype}"
        )
    if alone:
        result.copy_(source.read(0, source.size, result))
        source.wait()
        mine = squares(result[:length], None if previous is None else previous[:length])
        return MeanUnderWay(leaders, None, mine, squares(result[length:], None), gave=previous is not None)
    offer.encoding.prepare(length)
    gave = previous is not None and bool(weights[leaders.Get_rank()])
    return MeanUnderWay(leaders, Pipeline(wire or MpiWire(leaders), offer, weights, ahead), gave=gave)
