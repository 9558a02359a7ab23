"""Equation 2 on the wire: the weighted mean of the leaders' vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from colearn_hpc.algorithm.shared_model import Squares, ratio_of_norms, squares
from colearn_hpc.mpi.pipeline import Compression, Idle, Pipeline, Source

if TYPE_CHECKING:
    from mpi4py import MPI

CHUNK = 1 << 24  # elements per message inside a data center: counts stay far below 2^31 bytes


@dataclass(frozen=True)
class Taken:
    """What is known about a mean beside its value; the same on all leaders, but for bytes and divergence.

    Attributes:
        bytes_sent: payload this process sent.
        squares: the sums of eq. 4 over the whole of the parameters.
        finite: whether nothing in the mean is NaN or ±Inf.
        divergence: ‖w_k - w̄‖ / ‖w̄‖ of this leader's parameters, with a codec as they arrived; NaN without
            a last shared model, or if it gave nothing.
    """

    bytes_sent: int
    squares: Squares
    finite: bool
    divergence: float


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
        idle: called again and again while this rank waits, see :class:`Pipeline`; may raise to leave.

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
        rest, apart, sent = squares(result[length:], None), [0.0], 0
    else:
        if compression is not None:
            compression.prepare(length)
        pipeline = Pipeline(leaders, source, result, weights, length, previous, compression, idle)
        pipeline.run()
        mine, rest, apart, sent = pipeline.squares, pipeline.rest, pipeline.distances, pipeline.sent
    total, others, distance, me = Squares(), Squares(), 0.0, leaders.Get_rank()
    for part, other, apart_there in leaders.allgather((mine, rest, apart)):
        total, others, distance = total + part, others + other, distance + apart_there[me]
    divergence = ratio_of_norms(distance, total.after) if previous is not None and weights[me] else math.nan
    return Taken(sent, total, math.isfinite(total.after) and math.isfinite(others.after), divergence)
