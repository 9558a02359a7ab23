"""Equation 2 on the wire: the weighted mean of the leaders' vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from colearn_hpc.algorithm.shared_model import Squares, squares
from colearn_hpc.mpi.pipeline import Compression, Idle, Pipeline, Source, Vector

if TYPE_CHECKING:
    from mpi4py import MPI

_NONE = Squares()
CHUNK = 1 << 24  # elements per message inside a data center: counts stay far below 2^31 bytes


@dataclass(frozen=True)
class Taken:
    """What is known about a mean beside its value; the same on all leaders, but for the bytes.

    Attributes:
        bytes_sent: payload this process sent.
        squares: the sums of eq. 4 over the whole of the parameters.
        finite: whether nothing in the mean is NaN or ±Inf.
    """

    bytes_sent: int
    squares: Squares
    finite: bool


def mean_over_leaders(leaders: MPI.Comm, vector: Tensor, weights: Sequence[float]) -> int:
    """Replace the leaders' vectors by their weighted mean (eq. 2), in place. Collective over ``leaders``.

    :func:`take_mean` in its plainest form.

    Args:
        leaders: one rank per data center that takes part, in the order of the data centers.
        vector: contiguous CPU vector, shape ``(n,)``, the same n on all leaders.
        weights: n_k per rank of ``leaders``; whoever has 0 takes the mean without contributing to it.

    Returns:
        Payload bytes this process sent.
    """
    return take_mean(leaders, Vector(vector), vector, weights).bytes_sent


class MeanUnderWay:
    """A mean that has begun: the messages of :meth:`advance` pass while other things are done.

    Memory of it may be written to by messages until :meth:`finish` has returned.

    Args:
        leaders: see :func:`begin_mean`.
        pipeline: its way, or None where nobody else takes part.
        squares, rest: the sums over what needed no way.
    """

    def __init__(
        self, leaders: MPI.Comm, pipeline: Pipeline | None, squares: Squares = _NONE, rest: Squares = _NONE
    ) -> None:
        self._leaders, self._pipeline = leaders, pipeline
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
        mine, rest, sent = self._squares, self._rest, 0
        if self._pipeline is not None:
            self._pipeline.run(idle)
            mine, rest, sent = self._pipeline.squares, self._pipeline.rest, self._pipeline.sent
        _under_way.discard(self)
        total, others = Squares(), Squares()
        for part, other in self._leaders.allgather((mine, rest)):
            total, others = total + part, others + other
        return Taken(sent, total, math.isfinite(total.after) and math.isfinite(others.after))


# Their memory stays, even if a failure ends the run that has begun them: messages may still arrive in it.
_under_way: set[MeanUnderWay] = set()


def take_mean(
    leaders: MPI.Comm,
    source: Source,
    result: Tensor,
    weights: Sequence[float],
    parameter_size: int | None = None,
    previous: Tensor | None = None,
    compression: Compression | None = None,
    idle: Idle | None = None,
) -> Taken:
    """Take the mean of the leaders' vectors (eq. 2) and measure its change (eq. 4). Collective over ``leaders``.

    See :func:`begin_mean` and :meth:`MeanUnderWay.finish` for the arguments.
    """
    return begin_mean(leaders, source, result, weights, parameter_size, previous, compression).finish(idle)


def begin_mean(
    leaders: MPI.Comm,
    source: Source,
    result: Tensor,
    weights: Sequence[float],
    parameter_size: int | None = None,
    previous: Tensor | None = None,
    compression: Compression | None = None,
    ahead: int | None = None,
) -> MeanUnderWay:
    """Begin to take a mean. Collective over ``leaders``, but waits for nobody.

    An Allreduce in two halves, chunk by chunk: each leader is sent its slice of every vector, sums the slices
    in float64 in the order of the data centers, and sends the result to all. The bits therefore do not depend
    on the MPI's vendor, algorithm or message sizes. Bytes sent: 2 (K-1)/K of the vector per leader. Each leader
    measures its own slices, so the norms cost n/K.

    To be called right after a meeting.

    Args:
        leaders: one rank per data center that takes part, in the order of the data centers.
        source: this leader's vector, the same size on all leaders; not written to, unless ``result`` is its memory.
        result: contiguous CPU vector, shape ``(size,)``, in which the mean is put.
        weights: n_k per rank of ``leaders``; whoever has 0 takes the mean without contributing to it, and may
            hold NaN.
        parameter_size: length of the leading part to which norms and codec apply; None: all of it.
        previous: the last shared model, the same bits on all leaders, shape ``(>= parameter_size,)``.
        compression: how parameters are written on the wire; needs ``previous``. Its residual is not yet committed.
        ahead: see :class:`Pipeline`.

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
        return MeanUnderWay(leaders, None, mine, squares(result[length:], None))
    if compression is not None:
        compression.prepare(length)
    return MeanUnderWay(leaders, Pipeline(leaders, source, result, weights, length, previous, compression, ahead))
