"""From local models to the shared one: what happens between the last batch of a round and its validation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from colearn_hpc._lightning import LightningModule, Trainer
from colearn_hpc.algorithm.encoding import Coded, Encoding, Plain
from colearn_hpc.algorithm.fixed_point import largest_of
from colearn_hpc.algorithm.shared_model import (
    FlatModel,
    batch_norm_names,
    first_non_finite,
    float_buffers,
    infinite_buffers,
    relative_change,
    shard_of,
    squares,
    trainable_parameters,
)
from colearn_hpc.algorithm.slice_sums import Squares
from colearn_hpc.between import MeanFacts, Offer, Source
from colearn_hpc.errors import ConfigurationError, ParticipantError, PrivacyError
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.run import Decision
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import MeanResult
from colearn_hpc.trainer.correcting import Corrector
from colearn_hpc.trainer.optimizers import averaged_state
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import Contributions, RoundEnd, arrive
from colearn_hpc.trainer.sharded import Shards, fresh_state
from colearn_hpc.trainer.sums import Mean, Prepared, Void, WholeSums

log = logging.getLogger("colearn_hpc")


class SharedModel:
    """The last shared model as a flat vector, and the memory for the next mean.

    Args:
        place: this process's.
        settings: codec and outer optimizer.

    Attributes:
        previous: on carriers, the last shared model, parameters first. It is the vector that was committed, not a copy.
        coded: the codec, and what its messages lacked; None: parameters go as they are.
    """

    def __init__(self, place: Place, settings: Settings) -> None:
        self._place, self._outer = place, settings.outer_optimizer
        self.previous: Tensor | None = None
        self._outer_state: Tensor | None = None
        # Where the next mean goes. Kept between rounds: fresh memory of a model's size costs more than the sums in it.
        self._buffer: Tensor | None = None
        self.coded = None if settings.codec is None else Coded(settings.codec, settings.combiner)
        self._encoding: Encoding = self.coded or Plain(settings.combiner)
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

    def watch(self, module: LightningModule) -> None:
        """Collective over the data center."""
        self.constant = infinite_buffers(module)
        self._stays = staying_names(module, self._local_layers)
        if self._place.means.sharded:
            self._shards = Shards(module, self._place.site)
            if self.coded is not None:
                self._shards.check_codec(self.coded.codec.name)

    def begin_epoch(self, module: LightningModule) -> None:
        """Whatever is trainable now will be in the next mean, whether or not it is then still trainable."""
        known = {name for name, _ in self._layout}
        trainable = self._travelling(trainable_parameters(module))
        for name, parameter in trainable:
            if self._layout and name not in known and name not in self._joined:
                # It was frozen, so all data centers hold the same: that is its last shared value.
                self._joined[name] = shard_of(parameter).cpu().reshape(-1).clone()
            self._trained[name] = True
        self._trainable = [name for name, _ in trainable]

    def end_epoch(self, module: LightningModule) -> None:
        now = [name for name, _ in self._travelling(trainable_parameters(module))]
        changed = sorted(set(now) ^ set(self._trainable))
        if self._trainable and changed:  # an epoch that is resumed in its middle has no beginning here
            raise ConfigurationError(
                f"parameter {changed[0]} was frozen, unfrozen or added in the middle of a local epoch; do it in "
                "on_train_epoch_start, where all ranks and data centers do it alike"
            )

    def parameters_of(self, module: LightningModule) -> list[tuple[str, Tensor]]:
        """What has been trained since the last mean, in the module's order."""
        if not self._trained:
            return self._travelling(trainable_parameters(module))
        return [(name, parameter) for name, parameter in module.named_parameters() if name in self._trained]

    def model_of(self, module: LightningModule) -> FlatModel:
        """What of the module is averaged."""
        return self.flat(self.parameters_of(module), self.buffers_of(module))

    def flat(self, parameters: Sequence[tuple[str, Tensor]], others: Sequence[tuple[str, Tensor]]) -> FlatModel:
        """What this rank brings to a mean of these (name, tensor) pairs."""
        elsewhere = frozenset() if self._shards is None else self._shards.counted_elsewhere
        return FlatModel(sorted(parameters, key=lambda one: one[0] in elsewhere), others, elsewhere)

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
            return self.flat(self._travelling(trainable_parameters(module)), self.buffers_of(module))
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
            pieces = [before[places[n]] if n in places else self._joined[n].to(before.dtype) for n, _ in layout]
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
        kept = {"previous": self.previous, "outer": self._outer_state, "residual": residual}
        measured = {"rest": [list(one) for one in self._rest], "sizes": dict(self._sizes)} if self._measures else {}
        return kept | {"layout": layout, "trained": trained, "joined": joined} | measured

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._layout = [(name, length) for name, length in state.get("layout", ())]
        self._trained, self._joined = dict.fromkeys(state.get("trained", ()), True), dict(state.get("joined", {}))
        self._rest, self._sizes = (
            [(name, length) for name, length in state.get("rest", ())],
            dict(state.get("sizes", {})),
        )
        if self._place.means.carries:
            self.previous, self._outer_state = state["previous"], state["outer"]
            if self.coded is not None:
                self.coded.residual = state.get("residual")

    def offer(
        self,
        model: FlatModel,
        source: Source,
        weights: Sequence[float],
        encoding: Encoding | None = None,
        gathering: int | None = None,
    ) -> Offer:
        """What a carrier brings to a mean of ``source``.

        Args:
            model: of the module.
            source: the vector that is averaged; the model itself, or a copy of it.
            weights: n_k per data center.
            encoding: how it is written; None: as the settings say.
            gathering: see :class:`Offer`.
        """
        result = self.buffer(model)
        last = self._last(model)
        return Offer(source, result, weights, model.counted_size, last, encoding or self._encoding, gathering)

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

    def change(
        self, model: FlatModel, shared: Tensor, facts: MeanFacts | None, round_index: int, in_shards: Squares | None
    ) -> float:
        """Equation 4's relative change; on the presiding leader only.

        Args:
            model, shared, facts, round_index: of the mean.
            in_shards: the sums of eq. 4 over all ranks' shards of a model that :meth:`differs`; otherwise None.

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
            return in_shards.relative_change
        if self.differs(model):
            return relative_change(shared[: model.parameter_size], self._last(model))
        return facts.squares.relative_change

    def differs(self, model: FlatModel) -> bool:
        """Whether the shared model is another vector than the mean, whose sums are known: stepped or rounded."""
        return self._outer is not None or model.is_narrow

    def in_shards(self, model: FlatModel, shared: Tensor) -> Squares | None:
        """What :meth:`change` is to be given, on the leader. Collective over the data center."""
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


def changes_model(place: Place, settings: Settings) -> bool:
    """Whether a round's end leaves another model than was trained; with one data center a mean does not."""
    return not place.alone or settings.outer_optimizer is not None


class SharedModelAverager:
    """What all averagers have in common whose data centers hold one model after a round.

    Args:
        place: this process's.
        settings: of the run.
        sums: where means are taken of whole numbers.
    """

    shares_model = True

    def __init__(self, place: Place, settings: Settings, sums: WholeSums | None = None) -> None:
        self._place, self._settings = place, settings
        self.shared, self._sums = SharedModel(place, settings), sums
        corrects = settings.local_correction is not None and not place.alone
        self.corrector = Corrector(settings.local_correction) if corrects else None

    def watch(self, module: LightningModule) -> None:
        self.shared.watch(module)

    def begin_epoch(self, module: LightningModule) -> None:
        self.shared.begin_epoch(module)
        if self.corrector is not None:
            self.corrector.begin_epoch(module)

    def end_epoch(self, module: LightningModule) -> None:
        self.shared.end_epoch(module)

    def start_from(self, module: LightningModule) -> None:
        self.shared.start_from(module)

    def state_dict(self) -> dict[str, Any]:
        corrector = {} if self.corrector is None else {"correction": self.corrector.state_dict()}
        return self.shared.state_dict() | corrector

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shared.load_state_dict(state)
        if self.corrector is not None:
            self.corrector.load_state_dict(state["correction"], state)

    def predict(self, trainer: Trainer, module: LightningModule, batch: Any, batch_index: int) -> None:
        """Validation itself measures the shared model."""

    def shared_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, float] | None:
        return None

    def checkpoint_path(self, run_folder: Path, center_folder: Path) -> Path:
        return run_folder / "shared.ckpt"

    def _prepare(self, model: FlatModel, source: Source, given: Contributions, end: RoundEnd) -> Prepared | Void:
        """Agree on how the round's vectors are written. Collective over the world."""
        if self._sums is None or len(given.present) == 1:
            return Prepared(None, source)
        last, sizes = self.shared.whole(model)
        found = self._sums.prepare(Mean(model, source, last, sizes, given, end.report.examples))
        if isinstance(found, Void) and not self._settings.may_miss:
            raise PrivacyError(
                f"round {given.place.round}: {found.why}; bring the missing data centers back, or set "
                'on_failure="continue_without" to go on without this round\'s mean'
            ).on_all_ranks()
        return found

    def _take_mean(self, model: FlatModel, given: Contributions, end: RoundEnd) -> MeanResult:
        """The mean of those who have arrived, made every rank's model. Collective over the world.

        Args:
            model: of the module, with what it offers.
            given, end: what :func:`arrive` returned.
        """
        place, shared, means = self._place, self.shared, self._place.means
        round_index, report = given.place.round, end.report
        clock, changes = time.monotonic(), changes_model(place, self._settings)
        prepared = self._prepare(model, model, given, end)
        if isinstance(prepared, Void):
            return self._void(prepared, given, end)
        vector, facts, outer_state = shared.buffer(model), None, None
        if means.carries:
            facts = means.take(shared.offer(model, prepared.source, given.weights, prepared.encoding), given.present)
            vector, outer_state = shared.stepped(model, vector)
        if changes or means.sharded:
            facts = means.spread(vector, facts)
        if changes:
            model.round_(vector)
        in_shards = shared.in_shards(model, vector)
        seconds = time.monotonic() - clock

        # The decision comes in a meeting of its own: once it is here, everyone has the mean, and all commit.
        decision = place.conversation.decide(
            Topic(TopicKind.MEAN, round_index),
            lambda: end.decide(shared.change(model, vector, facts, round_index, in_shards), given),
        )
        clock = time.monotonic()
        if changes:
            model.unpack(vector)
        if facts is not None:
            report = replace(report, divergence=facts.divergence, bytes_sent=facts.bytes_sent)
            shared.commit(model, vector, outer_state)
        shared.begin_round()
        if changes and self._settings.optimizer_state == "reset":
            end.reset_optimizers()
            if means.sharded:
                fresh_state(end.optimizers)
        place.conversation.settled()
        report = replace(report, exchange_seconds=seconds + time.monotonic() - clock)
        return MeanResult(report, Decision.from_plain(decision), given.place)

    def _void(self, void: Void, given: Contributions, end: RoundEnd) -> MeanResult:
        """Close a round without a mean: everyone goes on with its own model. Collective over the world."""
        decision = self._place.conversation.decide(
            Topic(TopicKind.NO_MEAN, given.place.round),
            lambda: end.decide(math.nan, given),
        )
        self._place.conversation.settled()
        log.warning("round %d is void: %s; training goes on without a mean", given.place.round, void.why)
        report = replace(end.report, divergence=math.nan, absent=f"the round is void: {void.why}")
        return MeanResult(report, Decision.from_plain(decision), end.place, void=True)


class MeanAverager(SharedModelAverager):
    """Takes the mean (eq. 2), measures its change (eq. 4), commits it everywhere or nowhere.

    With one data center there is nobody to average with: weights, buffers and optimizers stay untouched. Only an outer
    optimizer steps there too, for its step is another than to the mean.
    """

    def take(self, end: RoundEnd) -> MeanResult:
        others, parameters = self.shared.buffers_of(end.module), self.shared.parameters_of(end.module)
        if self._settings.optimizer_state == "average":
            others += averaged_state(end.optimizers)
        if self.corrector is not None:
            others += self.corrector.offer(parameters, absent=bool(end.absent))
        self.shared.check_ranks(end.module)
        model = self.shared.flat(parameters, others)
        self.shared.align(model)
        if changes_model(self._place, self._settings) and self._place.center.size > 1:
            # DDP keeps parameters equal inside a data center, buffers not.
            self._place.means.mean_in_center(model.stage_others())
        given, end = arrive(self._place, self._settings, model, None, end)
        found = self._take_mean(model, given, end)
        if self.corrector is not None and not found.void:
            self.corrector.commit()
        return found

    def show_local(self, module: LightningModule) -> None:
        """The module is the shared model until it is trained on."""
