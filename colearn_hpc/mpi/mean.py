"""Equation 2 on the wire: the weighted mean of the leaders' vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from colearn_hpc.algorithm.shared_model import squares
from colearn_hpc.algorithm.slice_sums import Squares, ratio_of_norms
from colearn_hpc.mpi.compression import Compression
from colearn_hpc.mpi.pipeline import Idle, Pipeline, Source

if TYPE_CHECKING:
    from mpi4py import MPI

_NONE = Squares()


@dataclass(frozen=True)
class Taken:
    """What is known about a mean beside its value, or about a share of it; that of disjoint shares adds up.

    Attributes:
        bytes_sent: payload this process sent.
        squares: the sums of eq. 4 over the parameters; the same in all data centers.
        finite: whether nothing in the mean is NaN or ±Inf; the same in all data centers.
        distance: ‖w_k - w̄‖² of this data center's parameters, with a codec as they arrived; NaN without a last
            shared model, or if it gave nothing.
    """

    bytes_sent: int
    squares: Squares
    finite: bool
    distance: float

    def __add__(self, other: Taken) -> Taken:
        return Taken(
            self.bytes_sent + other.bytes_sent,
            self.squares + other.squares,
            self.finite and other.finite,
            self.distance + other.distance,
        )

    @property
    def divergence(self) -> float:
        """‖w_k - w̄‖ / ‖w̄‖; NaN where the distance is."""
        return math.nan if math.isnan(self.distance) else ratio_of_norms(self.distance, self.squares.after)


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
        """Let messages pass, as far as no waiting is needed. Never blocks."""
        if self._pipeline is not None:
            self._pipeline.advance()

    def finish(self, idle: Idle | None = None) -> Taken:
        """The rest of the way, waiting politely. Collective over the leaders.

        Args:
            idle: called while this rank waits, see :meth:`Pipeline.run`; may raise to leave.

        Returns:
            What is known about the mean; its value is in ``result``.
        """
        mine, rest, apart, sent = self._squares, self._rest, [0.0], 0
        if (pipeline := self._pipeline) is not None:
            pipeline.run(idle)
            mine, rest, apart, sent = pipeline.squares, pipeline.rest, pipeline.distances, pipeline.sent
        _under_way.discard(self)
        total, others, distance, me = Squares(), Squares(), 0.0, self._leaders.Get_rank()
        for part, other, apart_there in self._leaders.allgather((mine, rest, apart)):
            total, others, distance = total + part, others + other, distance + apart_there[me]
        finite = math.isfinite(total.after) and math.isfinite(others.after)
        return Taken(sent, total, finite, distance if self._gave else math.nan)


# Their memory stays, even if a failure ends the run that has begun them: messages may still arrive in it.
_under_way: set[MeanUnderWay] = set()


def begin_mean(
    leaders: MPI.Comm,
    source: Source,
    result: Tensor,
    weights: Sequence[float],
    parameter_size: int | None = None,
    previous: Tensor | None = None,
    compression: Compression | None = None,
    gathering: int | None = None,
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
        source: this leader's vector, the same size on all leaders; not written to, unless ``result`` is its memory.
        result: contiguous CPU vector, shape ``(size,)``, in which the mean is put; not the source's memory, if there is
            a ``previous``.
        weights: n_k per rank of ``leaders``; whoever has 0 takes the mean without contributing to it, and may
            hold NaN.
        parameter_size: length of the leading part to which norms and codec apply; None: all of it.
        previous: the last shared model, the same bits on all leaders, shape ``(>= parameter_size,)``.
        compression: how parameters are written on the wire; needs ``previous``. Its residual is not yet committed.
        gathering: see :class:`Pipeline`.

    Raises:
        ValueError: all weights are 0, or ``result`` does not fit.
    """
    if result.shape != (source.size,) or result.dtype != source.dtype:
        raise ValueError(f"the mean needs {source.size} x {source.dtype}, found {tuple(result.shape)} x {result.dtype}")
    length = source.size if parameter_size is None else parameter_size
    if leaders.Get_size() == 1:
        result.copy_(source.read(0, source.size, result))
        source.wait()
        mine = squares(result[:length], None if previous is None else previous[:length])
        return MeanUnderWay(leaders, None, mine, squares(result[length:], None), gave=previous is not None)
    if compression is not None:
        compression.prepare(length)
    pipeline = Pipeline(leaders, source, result, weights, length, previous, compression, gathering)
    return MeanUnderWay(leaders, pipeline, gave=previous is not None and bool(weights[leaders.Get_rank()]))
