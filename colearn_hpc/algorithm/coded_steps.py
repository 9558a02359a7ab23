"""Steps of parameters as a codec writes them, with error feedback: by torch, or by compiled loops with the same bits.

Source: see ``codec.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colearn_hpc.algorithm import compiled
from colearn_hpc.algorithm.codec import Codec
from colearn_hpc.algorithm.combine import Combine
from colearn_hpc.algorithm.encoding import Encoding, Ground, Middle, Plain, Slices
from colearn_hpc.algorithm.slice_sums import are_float32

_NOTHING, _NO_MESSAGE = np.empty(0, np.float32), np.empty(0, np.uint8)


@dataclass
class Coded:
    """A codec for the steps of parameters, and what its messages could not say so far (error feedback).

    What follows the parameters goes as it is: a variance that a codec rounds below zero would make NaN.

    Attributes:
        codec: for parameters; their steps are from the last shared model, so there must be one.
        combiner: how the rows of a slice become one; None: eq. 2.
        residual: shape ``(parameters,)``. In this leader's own slices: what was missing in the means it sent;
            elsewhere: what was missing in its own steps. In a star no slice is its own: who is in the middle remembers
            what was missing in means. None before the first mean, or without feedback.
        pending: the residual after the mean that is under way; takes its place when that is committed.
    """

    codec: Codec
    combiner: Combine | None = None
    residual: Tensor | None = None
    pending: Tensor | None = None

    @property
    def middle(self) -> Middle | None:
        return "coded" if self.combiner is None else None

    def again(self) -> None:
        """Nothing: the residual changes when the mean is committed."""

    def source_dtype(self, result: torch.dtype) -> torch.dtype:
        return result

    def begin(self, ground: Ground) -> tuple[Slices, Slices]:
        plain = Plain(self.combiner)
        if ground.previous is None:
            raise ValueError("a codec is for steps since a last shared model, and there is none")
        vectors = (ground.result, ground.previous, self.residual, self.pending)
        in_host_memory = all(v is None or (v.dtype == torch.float32 and not v.is_cuda) for v in vectors)
        kernels = compiled.kernels(self.codec.name) if in_host_memory else None
        steps = CodedSlices(self, ground) if kernels is None else CompiledSlices(self, ground, kernels)
        return steps, plain.begin(ground)[1]

    def prepare(self, parameters: int) -> None:
        """Make room for the residuals. One of another size is forgotten."""
        if parameters >= compiled.WORTH:
            compiled.prepare(self.codec.name)
        if not self.codec.feedback:
            return
        if self.residual is None or len(self.residual) != parameters:
            self.residual = torch.zeros(parameters)
        if self.pending is None or len(self.pending) != parameters:
            self.pending = torch.empty(parameters)

    def part(self, place: slice) -> Encoding:
        """Itself: where messages lack something, one rank carries the whole vector."""
        return self

    def keep(self) -> Any:
        return self.pending

    def take_over(self, kept: Any) -> None:
        self.pending = kept

    def commit(self) -> None:
        """The mean that was under way is the shared model."""
        self.residual, self.pending = self.pending, self.residual


class CodedSlices:
    """:class:`Slices` of steps that a codec has written."""

    unit, copies, waits = torch.uint8, True, True

    def __init__(self, coded: Coded, ground: Ground) -> None:
        assert ground.previous is not None, "Coded.begin has looked"
        self._coded, self._codec, self._ground, self._previous = coded, coded.codec, ground, ground.previous
        self._combine = ground.combine(coded.combiner)
        # One for each row, one for their mean.
        self._decoded = torch.empty((len(ground.weights) + 1, ground.width))

    def length(self, count: int) -> int:
        return self._codec.nbytes(count)

    def write(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        """This leader's step since the last shared model, and what earlier messages lacked."""
        return self._encoded(self._step(values, place, self._decoded[-1]), place, room)

    def skip(self, place: slice) -> None:
        """Whoever gives nothing sends nothing, so what its messages lacked before is lacking still."""
        if self._coded.pending is not None:
            assert self._coded.residual is not None, "prepare makes both"
            self._coded.pending[place] = self._coded.residual[place]

    def mean(self, rows: Sequence[Tensor], mine: int, place: slice, room: Tensor) -> Tensor:
        """The mean step: applied here, and as the message with which the others do the same."""
        message = self._encoded(self._mean_step(rows, mine, place), place, room)
        self.read(message, place)
        return message

    def _mean_step(self, rows: Sequence[Tensor], mine: int, place: slice) -> Tensor:
        length = place.stop - place.start
        steps = []
        for index, row in enumerate(rows):
            step = self._decoded[index, :length]
            if index == mine:
                step = self._step(row, place, step)
            else:
                self._codec.decode(row, step)
            steps.append(step)
        mean = self._combine(steps, self._ground.weights, self._decoded[-1, :length])
        self._ground.measure(steps, mean)
        return mean

    def arrival(self, place: slice, room: Tensor) -> Tensor:
        return room[: self._codec.nbytes(place.stop - place.start)]

    def read(self, message: Tensor, place: slice) -> None:
        """Last shared model + decoded mean step: the same two operations, so the same bits, on all leaders."""
        decoded = self._decoded[0][: place.stop - place.start]
        self._codec.decode(message, decoded)
        torch.add(self._previous[place], decoded, out=self._ground.result[place])

    def take(self, message: Tensor, place: slice) -> None:
        self.read(message, place)

    def measure(self, place: slice) -> float | None:
        return None

    def _encoded(self, step: Tensor, place: slice, room: Tensor) -> Tensor:
        """The message of a step, and of what earlier messages lacked."""
        message = room[: self._codec.nbytes(len(step))]
        residual, pending = self._coded.residual, self._coded.pending
        if residual is not None:
            step = step + residual[place]
        self._codec.encode(step, message)
        if pending is not None:
            lacking = pending[place]
            self._codec.decode(message, lacking)
            torch.sub(step, lacking, out=lacking)
        return message

    def _step(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        step, previous = room[: len(values)], self._previous[place]
        if previous.dtype == step.dtype:
            return torch.sub(values, previous, out=step)
        return step.copy_(values - previous)


class CompiledSlices(CodedSlices):
    """The same bits from compiled loops, of float32 in host memory."""

    def __init__(self, coded: Coded, ground: Ground, kernels: compiled.Kernels) -> None:
        super().__init__(coded, ground)
        self._kernels = kernels
        self._base, self._result, self._lacked, self._lacking = (
            _NOTHING if vector is None else vector.numpy()
            for vector in (ground.previous, ground.result, coded.residual, coded.pending)
        )
        name, weights = coded.codec.name, ground.weights
        self._weights, self._total = np.array(weights, np.float64), float(sum(weights))
        self._squares, self._sums = np.empty(len(weights)), None
        if coded.combiner is None and are_float32(weights):
            compiled.prepare_coded_sums(name, len(weights))
            self._sums = compiled.coded_sums(name, len(weights))

    def write(self, values: Tensor, place: slice, room: Tensor) -> Tensor:
        return self._message(values, self._base, place, room)

    def _mean_step(self, rows: Sequence[Tensor], mine: int, place: slice) -> Tensor:
        if self._sums is None:
            return super()._mean_step(rows, mine, place)
        messages = tuple(_NO_MESSAGE if k == mine else row.numpy() for k, row in enumerate(rows))
        own = _NOTHING if mine < 0 else rows[mine].numpy()
        mean = self._decoded[-1, : place.stop - place.start]
        sums = self._weights, self._total, mean.numpy(), self._squares
        self._sums.mean(messages, mine, own, self._base, place.start, *sums)
        self._ground.add(self._squares)
        return mean

    def read(self, message: Tensor, place: slice) -> None:
        count = place.stop - place.start
        self._kernels.decode(message.numpy(), self._base, self._result, place.start, count)

    def _encoded(self, step: Tensor, place: slice, room: Tensor) -> Tensor:
        return self._message(step, _NOTHING, place, room)

    def _message(self, values: Tensor, base: Any, place: slice, room: Tensor) -> Tensor:
        message = room[: self._codec.nbytes(place.stop - place.start)]
        self._kernels.encode(values.numpy(), base, self._lacked, self._lacking, place.start, message.numpy())
        return message
