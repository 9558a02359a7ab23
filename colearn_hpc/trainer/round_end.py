"""A round's end: what each data center says when it arrives there, and whether that makes a mean."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from colearn_hpc._lightning import LightningModule
from colearn_hpc.algorithm.shared_model import FlatModel, first_non_finite
from colearn_hpc.errors import ParticipantError
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.run import RoundPlace
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.optimizers import LossScale, reset_state
from colearn_hpc.trainer.place import Place


@dataclass(frozen=True)
class RoundEnd:
    """What is at hand in a data center when a round ends.

    Attributes:
        module: the local model; becomes the shared one.
        optimizers: its optimizers.
        report: this data center's part in the round.
        place: where this data center is.
        decide: called on the presiding leader; its answer is everyone's.
        absent: why this data center takes the mean without giving to it; empty if it gives.
        loss: sum of this rank's training losses over the round's examples, and their number.
        known: rounds that this data center has heard of.
        epochs_left: local epochs that its privacy budget still allows; None: any number.
        loss_scale: of training in float16; None: of another precision.
    """

    module: LightningModule
    optimizers: Sequence[Optimizer]
    report: CenterReport
    place: RoundPlace
    decide: Decide
    absent: str = ""
    loss: tuple[float, float] = (0.0, 0.0)
    known: int = 0
    epochs_left: int | None = None
    loss_scale: LossScale | None = None

    def reset_optimizers(self, names: Collection[str] | None = None) -> None:
        """Forget what the optimizers know: it is of the local model, not of the shared one.

        Args:
            names: of the parameters of which they forget it; None: of all, and the loss's scale too.
        """
        if names is not None:
            return reset_state(self.optimizers, [p for name, p in self.module.named_parameters() if name in names])
        reset_state(self.optimizers)
        if self.loss_scale is not None:
            self.loss_scale.reset()


@dataclass(frozen=True)
class Contribution:
    """What a data center says when it arrives at a round's end.

    Attributes:
        size: length of the vector it offers.
        examples: training examples it went through in the round.
        place: where it is.
        layout: digest of the names of the tensors in the vector, in order.
        loss: its mean training loss over the round; NaN where it was not measured.
        known: rounds that it has heard of.
        epochs_left: local epochs that its privacy budget still allows; None: any number.
    """

    size: int
    examples: int
    place: RoundPlace
    layout: str = ""
    loss: float = math.nan
    known: int = 0
    epochs_left: int | None = None

    def to_plain(self) -> Any:
        return [
            self.size,
            self.examples,
            self.place.to_plain(),
            self.layout,
            self.loss,
            self.known,
            self.epochs_left,
        ]

    @classmethod
    def from_plain(cls, plain: Any) -> Contribution:
        """Raises ValueError where ``plain`` is no contribution."""
        match plain:
            case [
                int(size),
                int(examples),
                place,
                str(layout),
                float() | int() as loss,
                int(known),
                None | int() as epochs_left,
            ]:
                return cls(size, examples, RoundPlace.from_plain(place), layout, float(loss), known, epochs_left)
        raise ValueError(f"no contribution to a mean: {plain!r:.200}")


@dataclass(frozen=True)
class Contributions:
    """What all who give to a mean have said.

    Attributes:
        by_center: by index.
        present: who was at the meeting: they take the mean, whether or not they give to it.
        number: of data centers.
        weighting: how they are weighted.
        known: rounds that all who are present have heard of.
        behind: indices of those who are present and have heard of fewer rounds than others.
    """

    by_center: dict[int, Contribution]
    present: tuple[int, ...]
    number: int
    weighting: str
    known: int = 0
    behind: frozenset[int] = frozenset()

    @property
    def knows(self) -> int:
        """The first one that is present and not behind."""
        return next(k for k in self.present if k not in self.behind)

    @property
    def loss(self) -> float:
        """Mean training loss over the data centers that measured one, weighted like their models; NaN without any."""
        weights = self.weights
        found = [(weights[k], one.loss) for k, one in self.by_center.items() if not math.isnan(one.loss)]
        total = math.fsum(weight for weight, _ in found)
        return math.fsum(weight * loss for weight, loss in found) / total if total else math.nan

    @property
    def place(self) -> RoundPlace:
        """Where those are who give."""
        return next(iter(self.by_center.values())).place

    @property
    def leaves(self) -> bool:
        """Whether some data center takes part in no further round."""
        return any(one.place.leaving for one in self.by_center.values())

    @property
    def epochs_left(self) -> int | None:
        """Local epochs that everyone's privacy budget still allows; None: any number."""
        return min((one.epochs_left for one in self.by_center.values() if one.epochs_left is not None), default=None)

    @property
    def weights(self) -> list[float]:
        """n_k per data center; 0 for who gives nothing."""
        weights = [0.0] * self.number
        for index, one in self.by_center.items():
            weights[index] = float(one.examples) if self.weighting == "examples" else 1.0
        return weights


# (relative change of eq. 4, what all say who give) -> the decision, as plain data
Decide = Callable[[float, Contributions], Any]


def arrive(
    place: Place, settings: Settings, model: FlatModel, vector: Tensor | None, end: RoundEnd
) -> tuple[Contributions, RoundEnd]:
    """Meet at a round's end. Collective over the world.

    Args:
        place: this process's.
        settings: of the run.
        model: of the module, with what it offers.
        vector: what is offered instead of the model's tensors, shape ``(size,)``.
        end: of the round; the examples in its report are this rank's.

    Returns:
        What those say who give to the mean; and the round's end, whose report now has the data center's examples (on
        the leader; 0 elsewhere) and the seconds of waiting.

    Raises:
        ParticipantError: see :meth:`Averager.take`.
    """
    names, round_index = place.between.names, end.place.round
    looks = (place.center.is_leader or place.means.sharded) and not end.absent  # ranks hold the same, or shards
    wrong = first_non_finite(vector, model) if looks else ""
    counts = place.site.gather((end.report.examples, *end.loss, wrong))
    examples, loss = 0, math.nan
    if counts is not None:
        examples, measured = sum(one[0] for one in counts), sum(one[2] for one in counts)
        loss = sum(one[1] for one in counts) / measured if measured else math.nan
    if name := next((one[3] for one in counts or () if one[3]), ""):
        raise ParticipantError(
            f"round {round_index}: NaN or Inf in the model of data center {place.center.name} ({name}); the mean "
            "was not taken. Lower the learning rate or clip gradients; shared.ckpt holds the last good shared model"
        )
    if settings.hides_examples and place.center.is_leader and not end.absent and not examples:
        raise ParticipantError(
            f'round {round_index}: weighting="examples", but no batch size could be read; use "uniform"'
        )
    clock = time.monotonic()
    told = 0 if settings.secure else examples
    told_loss = math.nan if settings.secure and not settings.share_metrics else loss
    mine = Contribution(model.size, told, end.place, layout_of(model), told_loss, end.known, end.epochs_left)
    attendance = place.conversation.arrive(round_index, mine.to_plain(), end.absent)
    why_absent = getattr(attendance.brought[place.between.index], "why", "")
    waited = time.monotonic() - clock
    report = replace(end.report, examples=examples, wait_seconds=waited, absent=why_absent, loss=loss)
    given = {k: Contribution.from_plain(content) for k, content in attendance.contents.items()}
    here = {k: getattr(attendance.brought[k], "content", None) for k in attendance.present}
    heard = {k: 0 if content is None else Contribution.from_plain(content).known for k, content in here.items()}
    behind = frozenset(k for k, known in heard.items() if known < max(heard.values()))
    if not given:
        raise ParticipantError(
            f"round {round_index}: no data center has anything to give to the mean; see centers/*/log.txt"
        ).on_all_ranks()
    weighting = "uniform" if settings.secure else settings.weighting  # n_k is then a factor that stays at home
    found = Contributions(given, attendance.present, len(names), weighting, min(heard.values()), behind)
    if len({one.size for one in given.values()}) > 1:
        sizes = ", ".join(f"{names[index]}: {one.size}" for index, one in given.items())
        raise ParticipantError(
            f"round {found.place.round}: the data centers offer vectors of different sizes ({sizes}); freeze and "
            'unfreeze the same parameters everywhere, and where optimizer_state="average" is set, see that every '
            'parameter has a state in every data center, or use "reset" or "keep"'
        ).on_all_ranks()
    if len({one.layout for one in given.values()}) > 1:
        # Sizes are equal, so it is a matter of order or of which of equal layers is frozen.
        raise ParticipantError(
            f"round {found.place.round}: the data centers have trained different parameters since the last mean "
            f"({', '.join(names[k] for k in given)}); freeze and unfreeze the same ones everywhere, in the same epochs"
        ).on_all_ranks()
    if found.weighting == "examples" and not all(one.examples for one in given.values()):
        raise ParticipantError(
            f'round {found.place.round}: weighting="examples", but no batch size could be read; use "uniform"'
        ).on_all_ranks()
    if settings.combiner is not None and len(names) > 1:
        nothing = torch.empty(0)
        try:  # it says so of empty slices as well, and now all ranks hear it
            settings.combiner.combine([nothing] * len(given), [w for w in found.weights if w], nothing)
        except ValueError as error:
            raise ParticipantError(f"round {found.place.round}: {error}").on_all_ranks() from error
    return found, replace(end, report=report)


def layout_of(model: FlatModel) -> str:
    """A digest of the names and lengths in a model's vector."""
    return hashlib.sha256("\n".join(f"{one.name} {one.length}" for one in model.entries).encode()).hexdigest()[:16]
