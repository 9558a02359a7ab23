"""The last shared model as a flat vector, by the names of what is in it, and the memory for the next mean."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from colearn_hpc._lightning import LightningModule
from colearn_hpc.algorithm.coded_steps import Coded
from colearn_hpc.algorithm.encoding import Encoding, Plain
from colearn_hpc.algorithm.fixed_point import largest_of
from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    batch_norm_names,
    first_non_finite,
    float_buffers,
    infinite_buffers,
    shard_of,
    squares,
    trainable_parameters,
)
from colearn_hpc.algorithm.slice_sums import Squares
from colearn_hpc.between import MeanFacts, Offer, Source, Vector
from colearn_hpc.errors import ConfigurationError, ParticipantError
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.sharded import Shards


class SharedModel:
    """The last shared model as a flat vector, and the memory for the next mean.

    Args:
        place: this process's.
        settings: codec and outer optimizer.

    Attributes:
        previous: on carriers, the last shared model, parameters first. It is the vector that was committed, not a copy.
        coded: the codec, and what its messages lacked; None: parameters go as they are.
        averages_steps: what is averaged is steps since the last shared model: without that a mean means nothing.
        stale: this data center still lacks the last shared model, though it has heard of all rounds.
    """

    def __init__(self, place: Place, settings: Settings) -> None:
        self._place, self._outer = place, settings.outer_optimizer
        self.previous: Tensor | None = None
        self._outer_state: Tensor | None = None
        # Where the next mean goes. Kept between rounds: fresh memory of a model's size costs more than the sums in it.
        self._buffer: Tensor | None = None
        self.coded = None if settings.codec is None else Coded(settings.codec, settings.combiner)
        self._encoding: Encoding = self.coded or Plain(settings.combiner)
        self.stale = False
        self.averages_steps = self.coded is not None or settings.whole_numbers
        self.constant: dict[str, Tensor] = {}  # buffers that are infinite by design
        self._local_layers, self._stays = settings.local_layers, frozenset[str]()
        self._shards: Shards | None = None
        # Parameters of the last shared model, in order; what has been trained since; what joined, as it was then.
        self._layout: list[tuple[str, int]] = []
        self._trained: dict[str, bool] = {}
        self._joined: dict[str, Tensor] = {}
        self._trainable: list[str] = []  # when the epoch began
        # For whole numbers: what follows the parameters in the last shared model, and the largest number of each tensor
        # in the last mean step. All data centers hold the same.
        self._measures = settings.whole_numbers
        self._rest: list[tuple[str, int]] = []
        self._sizes: dict[str, float] = {}

    def watch(self, module: LightningModule, elsewhere: frozenset[str] = frozenset()) -> None:
        """Collective over the data center.

        Args:
            module: that is trained.
            elsewhere: names of what is in other fragments (``streaming.py``).
        """
        self.constant = infinite_buffers(module)
        self._stays = staying_names(module, self._local_layers) | elsewhere
        if self._place.means.sharded:
            self._shards = Shards(module, self._place.site)
            if self.coded is not None:
                self._shards.check_codec(self.coded.codec.name)

    def begin_epoch(self, module: LightningModule) -> None:
        """Whatever is trainable now will be in the next mean, whether or not it is then still trainable."""
        known = {name for name, _ in self._layout}
        trainable = self.trainable_of(module)
        for name, parameter in trainable:
            if self._layout and name not in known and name not in self._joined:
                # It was frozen, so all data centers hold the same: that is its last shared value.
                self._joined[name] = shard_of(parameter).cpu().reshape(-1).clone()
            self._trained[name] = True
        self._trainable = [name for name, _ in trainable]

    def end_epoch(self, module: LightningModule) -> None:
        now = [name for name, _ in self.trainable_of(module)]
        changed = sorted(set(now) ^ set(self._trainable))
        if self._trainable and changed:  # an epoch that is resumed in its middle has no beginning here
            raise ConfigurationError(
                f"parameter {changed[0]} was frozen, unfrozen or added in the middle of a local epoch; do it in "
                "on_train_epoch_start, where all ranks and data centers do it alike"
            )

    def parameters_of(self, module: LightningModule) -> list[tuple[str, Tensor]]:
        """What has been trained since the last mean, in the module's order."""
        if not self._trained:
            return self.trainable_of(module)
        return [(name, parameter) for name, parameter in module.named_parameters() if name in self._trained]

    def trainable_of(self, module: LightningModule) -> list[tuple[str, Tensor]]:
        """What is trained now, of what travels."""
        return self._travelling(trainable_parameters(module))

    def model_of(self, module: LightningModule) -> FlatModel:
        """What of the module is averaged."""
        return self.flat(self.parameters_of(module), self.buffers_of(module))

    def flat(self, parameters: Sequence[tuple[str, Tensor]], others: Sequence[tuple[str, Tensor]]) -> FlatModel:
        """What this rank brings to a mean of these (name, tensor) pairs."""
        elsewhere = frozenset() if self._shards is None else self._shards.counted_elsewhere
        parameters = sorted(parameters, key=lambda one: one[0] in elsewhere)
        return FlatModel(parameters, others, elsewhere, self._place.means.device)

    def check_ranks(self, module: LightningModule) -> None:
        """Collective over the data center.

        Raises:
            ParticipantError: on all its ranks, if they hold different values of one parameter of a model in shards.
        """
        if self._shards is not None:
            self._shards.check_copies(module)

    def buffers_of(self, module: LightningModule) -> list[tuple[str, Tensor]]:
        """The floating-point buffers that are averaged."""
        return self._travelling(float_buffers(module, self.constant))

    def _travelling(self, named: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        """Without what stays in its data center."""
        return [(name, tensor) for name, tensor in named if name not in self._stays]

    def sent_model_of(self, module: LightningModule) -> FlatModel:
        """The part of the module that the last shared model, or the vector under way, is laid out for."""
        names = dict(self._layout)
        if not names:
            return self.flat(self.trainable_of(module), self.buffers_of(module))
        parameters = [(name, parameter) for name, parameter in module.named_parameters() if name in names]
        return self.flat(parameters, self.buffers_of(module))

    def begin_round(self) -> None:
        """What was trained is in the mean that was taken or sent."""
        self._trained.clear()
        self._joined.clear()

    def start_from(self, module: LightningModule) -> None:
        model = self.model_of(module)
        self._layout = _parameters_in(model)
        if self._place.means.carries:
            self.previous = model.pack()
            self._measure(model, self.previous)
        if self._place.means.device.type != "cpu":
            self.buffer(model)  # what a GPU has no memory for is to be known before training

    def align(self, model: FlatModel) -> None:
        """Lay the last shared model out as ``model`` is, where other parameters are trained than before."""
        layout = _parameters_in(model)
        if not self._layout or layout == self._layout:
            self._layout = layout
            return
        if self.previous is not None:
            before, residual = self.previous, None if self.coded is None else self.coded.residual
            places, start = {}, 0
            for name, length in self._layout:
                places[name] = slice(start, start + length)
                start += length
            # A tensor that joins has nothing that earlier messages lacked.
            pieces = [before[places[n]] if n in places else self._joined[n].to(before) for n, _ in layout]
            self.previous = torch.cat([*pieces, before[start:]])
            if residual is not None:
                owed = [residual[places[n]] if n in places else torch.zeros(size) for n, size in layout]
                self.coded.residual = torch.cat(owed) if owed else residual[:0]  # type: ignore[union-attr]
            self._outer_state = None  # an outer optimizer's state is of the parameters that it had
        self._layout = layout

    def state_dict(self) -> dict[str, Any]:
        """The last shared model, the outer optimizer's state, what the codec's messages lacked; and by name, of which
        parameters that is, and what has been trained since."""
        residual = None if self.coded is None else self.coded.residual
        layout = [list(one) for one in self._layout]
        trained, joined = list(self._trained), dict(self._joined)
        # A file of vectors in a GPU's memory could not be read where there is none.
        last, outer = (None if one is None else one.cpu() for one in (self.previous, self._outer_state))
        kept = {"previous": last, "outer": outer, "residual": residual}
        measured = {"rest": [list(one) for one in self._rest], "sizes": dict(self._sizes)} if self._measures else {}
        stale = {"stale": True} if self.stale else {}
        return kept | {"layout": layout, "trained": trained, "joined": joined} | measured | stale

    def handed_on(self) -> dict[str, Any]:
        """As :meth:`state_dict`, without what is this data center's own or of the round that it trains."""
        return self.state_dict() | {"residual": None, "trained": [], "joined": {}}

    def stays(self, name: str) -> bool:
        """Whether a parameter or buffer stays in its data center."""
        return name in self._stays

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._layout, self.stale = (
            [(name, length) for name, length in state.get("layout", ())],
            state.get("stale", False),
        )
        self._trained, self._joined = dict.fromkeys(state.get("trained", ()), True), dict(state.get("joined", {}))
        self._rest, self._sizes = (
            [(name, length) for name, length in state.get("rest", ())],
            dict(state.get("sizes", {})),
        )
        if self._place.means.carries:
            where = self._place.means.device
            found = (state["previous"], state["outer"])
            self.previous, self._outer_state = (None if one is None else one.to(where) for one in found)
            if self.coded is not None:
                self.coded.residual = state.get("residual")

    def offer(
        self,
        model: FlatModel,
        source: Source,
        weights: Sequence[float],
        encoding: Encoding | None = None,
        gathering: int | None = None,
        follows: bool = False,
    ) -> Offer:
        """What a carrier brings to a mean of ``source``.

        Args:
            model: of the module.
            source: the vector that is averaged; the model itself, or a copy of it.
            weights: n_k per data center.
            encoding: how it is written; None: as the settings say.
            gathering, follows: see :class:`Offer`.
        """
        result = self.buffer(model)
        last = self._last(model)
        encoding = encoding or self._encoding
        return Offer(source, result, weights, model.counted_size, last, encoding, gathering, follows=follows)

    def last_offer(self, model: FlatModel, weights: Sequence[float]) -> Offer:
        """The last shared model, for those who have missed it; ``weights`` is 1 for the one who gives it."""
        last, _ = self.whole(model)
        assert last is not None, "carriers hold the last shared model"
        return Offer(Vector(last), self.buffer(model), weights, 0, last_model=True)

    def take_last(self, model: FlatModel, behind: bool) -> None:
        """What :meth:`last_offer` has brought is the last shared model from here on, where one has missed it."""
        if behind:
            self._buffer, self.previous = None, self.buffer(model)
            self._rest, self.stale = _rest_of(model), False

    def buffer(self, model: FlatModel) -> Tensor:
        """Where the mean is put, shape ``(size,)``: it must not touch the model before all have it."""
        if self._buffer is None or self._buffer.shape != (model.size,) or self._buffer.dtype != model.dtype:
            self._buffer = model.staging(model.size)
        return self._buffer

    def stepped(self, model: FlatModel, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """The shared model that follows from the mean, shape ``(size,)``, and the outer optimizer's new state.

        Without an outer optimizer it is the mean's own vector. With one it is a new vector, because the mean must stay
        as it is: a data center that begins again is told it again. Each leader steps by itself: same inputs, same
        elementwise operations, same bits.
        """
        if self._outer is None:
            return mean, self._outer_state
        size = model.parameter_size
        parameters, state = self._outer.step(self._last(model), mean[:size], self._outer_state)
        return torch.cat((parameters, mean[size:])), state

    def following(
        self, model: FlatModel, facts: MeanFacts | None, changes: bool = True, absent: bool = False
    ) -> NewShared:
        """The shared model that follows from a mean that is in the buffer, on all ranks. Collective over the data
        center.

        Args:
            model: of the module; it stays as it is.
            facts: what this rank knows of the mean.
            changes: the mean is another model than was trained.
            absent: this data center sits the round out, and has left its process group.
        """
        means, vector, outer_state = self._place.means, self.buffer(model), None
        if means.carries:
            vector, outer_state = self.stepped(model, vector)
        if changes or means.sharded:
            facts = means.spread(vector, facts, through_host=absent)
        if changes:
            model.round_(vector)
        return NewShared(self, model, vector, facts, outer_state, self.in_shards(model, vector))

    def squares(
        self, model: FlatModel, shared: Tensor, facts: MeanFacts | None, round_index: int, in_shards: Squares | None
    ) -> Squares:
        """The sums of eq. 4; on the presiding leader only.

        Args:
            model, shared, facts, round_index: of the mean.
            in_shards: the sums over all ranks' shards of a model that :meth:`differs`; otherwise None.

        Raises:
            ParticipantError: the mean of finite models is not finite, because a codec could not hold a step.
        """
        assert facts is not None, "leaders carry"
        name = "" if facts.finite else first_non_finite(shared, model)
        if name or (self._place.means.sharded and not facts.finite):
            raise ParticipantError(
                f"round {round_index}: NaN or Inf in the mean ({name or 'another shard'}), though every model in it is "
                "finite: a step since the last shared model is too large for the codec; set exchange: {codec: fp32}"
            )
        if in_shards is not None:
            return in_shards
        if self.differs(model):
            return squares(shared[: model.parameter_size], self._last(model))
        return facts.squares

    def differs(self, model: FlatModel) -> bool:
        """Whether the shared model is another vector than the mean, whose sums are known: stepped or rounded."""
        return self._outer is not None or model.is_narrow

    def in_shards(self, model: FlatModel, shared: Tensor) -> Squares | None:
        """What :meth:`squares` is to be given, on the leader. Collective over the data center."""
        if not (self._place.means.sharded and self.differs(model)):
            return None
        size = model.counted_size
        return self._place.means.sum_of_shards(squares(shared[:size], self._last(model)[:size]))

    def whole(self, model: FlatModel) -> tuple[Tensor | None, list[float]]:
        """What a step is measured from, and how large the last mean step was.

        Returns:
            On carriers, the last shared model as ``model`` is laid out, shape ``(size,)``, with zeros for what was not
            in it; and per tensor the largest number of the last mean step. Elsewhere None, and zeros.
        """
        rest = _rest_of(model)
        # What was not in the last mean has no last step that all know. Numbers of 64 bits have room for any guess.
        sizes = [self._sizes.get(entry.name, 1.0) for entry in model.entries]
        if self.previous is None:
            return None, sizes
        last = self.previous
        if rest != self._rest or len(last) != model.size:
            last = torch.cat([self._last(model), torch.zeros(model.size - model.parameter_size, dtype=model.dtype)])
        return last, sizes

    def _measure(self, model: FlatModel, step: Tensor) -> None:
        if self._measures:
            self._rest = _rest_of(model)
            found = largest_of(model.entries, step)
            self._sizes = {entry.name: size for entry, size in zip(model.entries, found, strict=True)}

    def commit(self, model: FlatModel, shared: Tensor, outer_state: Tensor | None) -> None:
        """The vector is the shared model from here on. On carriers."""
        if self._measures:
            last, _ = self.whole(model)
            assert last is not None, "carriers hold the last shared model"
            self._measure(model, shared - last)
        if shared is self._buffer:
            self._buffer = self.previous  # the older one's memory serves the next mean
        self.previous, self._outer_state = shared, outer_state
        if self.coded is not None:
            self.coded.commit()

    def _last(self, model: FlatModel) -> Tensor:
        """The parameters of the last shared model."""
        assert self.previous is not None, "carriers hold the last shared model"
        return self.previous[: model.parameter_size].to(model.dtype)


@dataclass(frozen=True)
class NewShared:
    """A shared model, or a fragment of one, that nobody has committed yet.

    Attributes:
        shared: what it follows.
        model: of the module.
        vector: it, shape ``(size,)``.
        facts: of its mean, on carriers.
        outer_state: the outer optimizer's new one, on carriers.
        in_shards: see :meth:`SharedModel.squares`.
    """

    shared: SharedModel
    model: FlatModel
    vector: Tensor
    facts: MeanFacts | None
    outer_state: Tensor | None
    in_shards: Squares | None

    def squares(self, round_index: int) -> Squares:
        """See :meth:`SharedModel.squares`."""
        return self.shared.squares(self.model, self.vector, self.facts, round_index, self.in_shards)


def committed(new: Sequence[NewShared], report: CenterReport) -> CenterReport:
    """They are the shared model from here on; where the module holds it is the caller's affair.

    Returns:
        ``report``, on carriers with what their means told.
    """
    known = []
    for one in new:
        if one.facts is not None:
            one.shared.commit(one.model, one.vector, one.outer_state)
            known.append(one.facts)
    if not known:
        return report
    facts = functools.reduce(operator.add, known)
    return replace(report, divergence=facts.divergence, bytes_sent=facts.bytes_sent)


def _rest_of(model: FlatModel) -> list[tuple[str, int]]:
    return [(one.name, one.length) for one in model.entries if one.offset >= model.parameter_size and one.length]


def staying_names(module: LightningModule, layers: Literal["batch_norm"] | tuple[str, ...] | None) -> frozenset[str]:
    """Names of the parameters and buffers that stay in their data center.

    Raises:
        ConfigurationError: there are none of that name.
    """
    if layers is None:
        return frozenset()
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    found = {layer: {name for name in names if name == layer or name.startswith(f"{layer}.")} for layer in layers}
    if layers == "batch_norm":
        found = {"BatchNorm": set(batch_norm_names(module))}
    if missing := [layer for layer, inside in found.items() if not inside]:
        known = ", ".join(name for name, _ in module.named_modules() if name)
        raise ConfigurationError(
            f"local_layers={layers!r}: {type(module).__name__} has nothing to keep in {', '.join(missing)}; its layers "
            f"are {known}"
        )
    return frozenset(set().union(*found.values()))


def _parameters_in(model: FlatModel) -> list[tuple[str, int]]:
    return [(one.name, one.length) for one in model.entries if one.offset < model.parameter_size and one.length]
