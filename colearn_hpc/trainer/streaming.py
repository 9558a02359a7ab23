"""Streaming DiLoCo: a round ends with the mean of one fragment of the model (``exchange: {fragments: P}``).

a round's last batch        the fragment that is due is averaged, and takes its outer step; all else stays as it is
validation, checkpoints     see the shared model: the last mean of every fragment. `shared.ckpt` is it
the epoch's end             the module becomes the local model again, in which one fragment is the shared one
the run's last round        all fragments are averaged, so that one model is the result

Until each fragment has been averaged once, the shared model holds what the run started from. A run that somebody stops
at a round's end (``EarlyStopping``) ends with the shared model as it was then.

With overlap the fragment is sent at the round's end and arrives at the end of the next one's first local epoch, as in
``overlapped.py``: it becomes w_k + (w̄ - s_k), in that fragment, or with ``mixing`` the paper's α w_k + (1 - α) w̄.

A fragment is some neighbouring layers, with their BatchNorm statistics. What optimizers know of it is reset with its
mean, where it is reset.

Source: Douillard et al. 2025 (Streaming DiLoCo, arXiv 2501.18512), Algorithm 2.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from colearn_hpc._lightning import LightningModule
from colearn_hpc.algorithm.fragments import fragment_due, fragment_slices
from colearn_hpc.algorithm.overlap import correct
from colearn_hpc.algorithm.shared_model import FlatModel, trainable_parameters
from colearn_hpc.between import Vector
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.run import Decision
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import HoldsOneModel, MeanResult
from colearn_hpc.trainer.last_shared import NewShared, SharedModel, committed, staying_names
from colearn_hpc.trainer.overlapped import CHUNKS_AHEAD
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import Contributions, RoundEnd, arrive


class StreamingAverager(HoldsOneModel):
    """An :class:`~colearn_hpc.trainer.averager.Averager` of fragments: each is a shared model of its own, with its last
    mean, its outer state and what the codec's messages lacked.

    Args:
        place: this process's.
        settings: of the run.
    """

    def __init__(self, place: Place, settings: Settings) -> None:
        self._place, self._settings = place, settings
        self._fragments = [SharedModel(place, settings) for _ in range(settings.fragments or 1)]
        self._dealt: list[list[str]] = []  # names of the parameters in each
        # The local model while the module is the shared one. Its memory is kept between rounds.
        self._local: Tensor | None = None
        self._shows_shared = False
        # With overlap: the fragment that is under way as it was sent, and what was said of it.
        self._sent: Tensor | None = None
        self._given: Contributions | None = None

    # --- the model in fragments -------------------------------------------------------------------------

    def watch(self, module: LightningModule) -> None:
        """Deal the module's tensors to fragments.

        Raises:
            ConfigurationError: it has fewer trainable tensors than fragments.
        """
        dealt = fragments_of(module, staying_names(module, self._settings.local_layers), len(self._fragments))
        names = frozenset().union(*dealt)
        for fragment, inside in zip(self._fragments, dealt, strict=True):
            fragment.watch(module, names - inside)
        self._dealt = self._trainable(module)

    def _trainable(self, module: LightningModule) -> list[list[str]]:
        """Names of each fragment's trainable parameters."""
        return [[name for name, _ in fragment.trainable_of(module)] for fragment in self._fragments]

    def start_from(self, module: LightningModule) -> None:
        for fragment in self._fragments:
            fragment.start_from(module)

    def begin_epoch(self, module: LightningModule) -> None:
        for fragment in self._fragments:
            fragment.begin_epoch(module)
        self._check_dealt(self._trainable(module))

    def end_epoch(self, module: LightningModule) -> None:
        for fragment in self._fragments:
            fragment.end_epoch(module)

    def _check_dealt(self, found: list[list[str]]) -> None:
        if found != self._dealt:
            before, now = ({name for names in dealt for name in names} for dealt in (self._dealt, found))
            name = next(iter(sorted(before ^ now)), "a parameter")
            raise ConfigurationError(
                f"exchange: fragments={len(self._fragments)} deals the parameters to fragments once, and {name} was "
                "frozen or unfrozen since; freeze before the run begins, or leave fragments out"
            )

    def _due(self, round_index: int) -> SharedModel:
        return self._fragments[fragment_due(round_index, len(self._fragments))]

    def _whole(self, module: LightningModule) -> FlatModel:
        """All fragments, one after the other."""
        parameters = [one for fragment in self._fragments for one in fragment.parameters_of(module)]
        return FlatModel(parameters, [one for fragment in self._fragments for one in fragment.buffers_of(module)])

    # --- a round's end ----------------------------------------------------------------------------------

    def take(self, end: RoundEnd) -> MeanResult:
        given, end = arrive(self._place, self._settings, self._whole(end.module), None, end)
        return self._take(given, end)

    def _take(self, given: Contributions, end: RoundEnd) -> MeanResult:
        """The mean of the fragment that is due, or of all where no round follows. Collective over the world."""
        place, means, round_index = self._place, self._place.means, given.place.round
        clock, new = time.monotonic(), list[NewShared]()
        for fragment in self._fragments if end.place.last or given.leaves else [self._due(round_index)]:
            model, facts = fragment.model_of(end.module), None
            if place.center.size > 1:
                # DDP keeps parameters equal inside a data center, buffers not.
                means.mean_in_center(model.stage_others())
            if means.carries:
                facts = means.take(fragment.offer(model, model, given.weights, follows=bool(new)), given.present)
            new.append(fragment.following(model, facts))
        seconds = time.monotonic() - clock

        decision = self._decided(end, given, new)
        clock = time.monotonic()
        for one in new:
            one.model.unpack(one.vector)
            one.shared.begin_round()
        report = self._commit(end, new)
        place.conversation.settled()
        report = replace(report, exchange_seconds=seconds + time.monotonic() - clock)
        return MeanResult(report, decision, given.place)

    def begin(self, end: RoundEnd, again: bool = False) -> MeanResult:
        """Send the fragment that is due, or take the means of all at once where no epoch follows in which it could
        come. Collective over the world. See :meth:`OverlappedAverager.begin`."""
        module, fragment, shown = end.module, self._due(end.place.round), self._shows_shared
        self.show_local(module)
        model = fragment.sent_model_of(module)
        if not again:
            self._sent = model.pack()
            self._place.means.mean_in_center(self._sent[model.parameter_size :])
        sent = self._sent
        assert sent is not None, "a checkpoint with a mean under way holds what was sent"
        given, end = arrive(self._place, self._settings, self._whole(module), None, end)
        if end.place.last or given.leaves:
            model.unpack(sent)
            self._sent = None
            return self._take(given, end)
        self._given = given
        fragment.begin_round()
        if self._place.means.carries:
            offer = fragment.offer(model, Vector(sent), given.weights, gathering=CHUNKS_AHEAD)
            self._place.means.begin(offer, given.present)
        if shown:
            self._show_shared(module)
        return MeanResult(end.report, None, given.place)

    def finish(self, end: RoundEnd) -> MeanResult:
        """Wait for the fragment that is under way. Collective over the world. See :meth:`OverlappedAverager.finish`."""
        conversation, means, fragment = self._place.conversation, self._place.means, self._due(end.place.round)
        sent, given, report = self._sent, self._given, end.report
        assert sent is not None and given is not None
        clock = time.monotonic()
        conversation.meet(Topic(TopicKind.UNDER_WAY, end.place.round))
        waited = time.monotonic() - clock

        clock = time.monotonic()
        self.show_local(end.module)
        model = fragment.sent_model_of(end.module)
        new = fragment.following(model, means.finish() if means.carries else None)
        seconds = time.monotonic() - clock
        decision = self._decided(end, given, [new])

        clock = time.monotonic()
        correct(model, sent, new.vector, self._settings.mixing)
        model.unpack(sent)
        self._sent = self._given = None
        report = self._commit(end, [new])
        conversation.settled()
        report = replace(
            report,
            wait_seconds=report.wait_seconds + waited,
            exchange_seconds=report.exchange_seconds + seconds + time.monotonic() - clock,
        )
        return MeanResult(report, decision, end.place)

    def _decided(self, end: RoundEnd, given: Contributions, new: Sequence[NewShared]) -> Decision:
        """What is decided on fragments' means, all of them aside still: eq. 4 is taken over what was averaged."""
        round_index = end.place.round

        def decide() -> Any:
            total = functools.reduce(operator.add, (one.squares(round_index) for one in new))
            return end.decide(total.relative_change, given)

        return Decision.from_plain(self._place.conversation.decide(Topic(TopicKind.MEAN, round_index), decide))

    def _commit(self, end: RoundEnd, new: Sequence[NewShared]) -> CenterReport:
        """The fragments are the shared ones from here on, and the module is the shared model until :meth:`show_local`;
        returns the report. Collective over the data center."""
        report = committed(new, end.report)
        if self._settings.optimizer_state == "reset":
            inside = {entry.name for one in new for entry in one.model.entries}
            end.reset_optimizers(None if len(new) == len(self._fragments) else inside)
        self._show_shared(end.module)
        return report

    # --- what the module is -----------------------------------------------------------------------------

    def _show_shared(self, module: LightningModule) -> None:
        """Make the module the last mean of every fragment. Collective over the data center."""
        whole = self._whole(module)
        self._local = whole.pack(None if self._local is None or len(self._local) != whole.size else self._local)
        self._shows_shared = True
        self.show_result(module)

    def show_local(self, module: LightningModule) -> None:
        if self._shows_shared:
            assert self._local is not None
            self._whole(module).unpack(self._local)
            self._shows_shared = False

    def show_result(self, module: LightningModule) -> None:
        if self._place.means.carries:
            for fragment in self._fragments:
                assert fragment.previous is not None, "carriers hold the last shared model"
                fragment.sent_model_of(module).unpack(fragment.previous)
        if self._place.site.size > 1:
            whole = self._whole(module)
            shared = whole.pack()
            self._place.site.copy_to_all([shared])
            whole.unpack(shared)

    def keep_shared(self) -> None:
        """No epoch follows: the module stays the shared model."""
        self._shows_shared = False

    # --- checkpoints ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        fragments = [fragment.state_dict() for fragment in self._fragments]
        local = self._local if self._shows_shared else None
        return {"fragments": fragments, "dealt": self._dealt, "local": local, "sent": self._sent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state.get("fragments", ())) != len(self._fragments):
            raise ConfigurationError(
                f"exchange: fragments={len(self._fragments)} is set, and the run began with "
                f"{len(state['fragments']) if 'fragments' in state else 'none'}; leave it as it was, or begin a new run"
            )
        for fragment, saved in zip(self._fragments, state["fragments"], strict=True):
            fragment.load_state_dict(saved)
        self._check_dealt([list(names) for names in state["dealt"]])
        self._local, self._sent = state["local"], state["sent"]
        self._shows_shared = self._local is not None


def fragments_of(module: nn.Module, stays: frozenset[str], count: int) -> list[frozenset[str]]:
    """Names of the parameters and buffers in each fragment. What is not trained is where the parameter before it is:
    BatchNorm's statistics with their layer.

    Args:
        module: whose.
        stays: names of what no fragment holds, since it stays in its data center.
        count: P.

    Raises:
        ConfigurationError: fewer trainable tensors than fragments.
    """
    entries = FlatModel([one for one in trainable_parameters(module) if one[0] not in stays]).entries
    try:
        pieces = fragment_slices(entries, count)
    except ValueError as error:
        raise ConfigurationError(f"exchange: {error}") from error
    place = {one.name: p for one in entries for p, piece in enumerate(pieces) if piece.start <= one.offset < piece.stop}
    found, p = [set[str]() for _ in pieces], 0
    for prefix, layer in module.named_modules():
        for name, _ in (*layer.named_parameters(prefix, False), *layer.named_buffers(prefix, False)):
            p = place.get(name, p)
            found[p].add(name)
    return [frozenset(names - stays) for names in found]
