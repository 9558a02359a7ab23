"""From local models to the shared one: what happens between the last batch of a round and its validation."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from colearn_hpc._lightning import LightningModule
from colearn_hpc.algorithm.shared_model import FlatModel
from colearn_hpc.between import MeanFacts, Source
from colearn_hpc.errors import ConfigurationError, PrivacyError
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.run import Decision
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import HoldsOneModel, MeanResult
from colearn_hpc.trainer.correcting import Corrector
from colearn_hpc.trainer.last_shared import SharedModel, committed
from colearn_hpc.trainer.optimizers import averaged_state
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import Contributions, RoundEnd, arrive
from colearn_hpc.trainer.sharded import fresh_state
from colearn_hpc.trainer.sums import Mean, Prepared, Void, WholeSums

log = logging.getLogger("colearn_hpc")


def changes_model(place: Place, settings: Settings) -> bool:
    """Whether a round's end leaves another model than was trained; with one data center a mean does not."""
    return not place.alone or settings.outer_optimizer is not None


class SharedModelAverager(HoldsOneModel):
    """What all averagers have in common that average the whole model.

    Args:
        place: this process's.
        settings: of the run.
        sums: where means are taken of whole numbers.
    """

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

    def handed_on(self) -> dict[str, Any]:
        """What a data center that joins goes on with."""
        corrector = {} if self.corrector is None else {"correction": self.corrector.handed_on()}
        return self.shared.handed_on() | corrector

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "fragments" in state:
            raise ConfigurationError(
                f"the run began with exchange: {{fragments: {len(state['fragments'])}}}, which is not set; leave it as "
                "it was, or begin a new run"
            )
        self.shared.load_state_dict(state)
        if self.corrector is not None:
            self.corrector.load_state_dict(state["correction"], state)

    def _prepare(self, model: FlatModel, source: Source, given: Contributions, end: RoundEnd) -> Prepared | Void:
        """Agree on how the round's vectors are written. Collective over the world."""
        # Whoever is alone has nobody to average with; under masks it shows its model to nobody, a coordinator included.
        if self._sums is None or (len(given.present) == 1 and not self._settings.secure):
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
        prepared = self._hand_on(model, given) or self._prepare(model, model, given, end)
        if isinstance(prepared, Void):
            return self._void(prepared, given, end)
        facts = None
        if means.carries:
            facts = means.take(shared.offer(model, prepared.source, given.weights, prepared.encoding), given.present)
        if void := self._why_void(facts):
            return self._void(Void(void), given, end)
        new = shared.following(model, facts, changes, bool(end.absent))
        seconds = time.monotonic() - clock

        # The decision comes in a meeting of its own: once it is here, everyone has the mean, and all commit.
        decision = place.conversation.decide(
            Topic(TopicKind.MEAN, round_index),
            lambda: end.decide(new.squares(round_index).relative_change, given),
        )
        clock = time.monotonic()
        if changes:
            model.unpack(new.vector)
        report = committed([new], report)
        shared.begin_round()
        if changes and self._settings.optimizer_state == "reset":
            end.reset_optimizers()
            if means.sharded:
                fresh_state(end.optimizers)
        place.conversation.settled()
        report = replace(report, exchange_seconds=seconds + time.monotonic() - clock)
        return MeanResult(report, Decision.from_plain(decision), given.place)

    def _hand_on(self, model: FlatModel, given: Contributions) -> Void | None:
        """Let those have the last shared model who have missed it, where steps are averaged: they are steps from it.
        Who comes when the run is over finds it at the coordinator. Collective over the world."""
        place, shared, means = self._place, self.shared, self._place.means
        missing = len(given.present) < len(place.between.roster) and (given.leaves or given.place.last)
        left = missing and place.between.separate
        if not (shared.averages_steps and (given.behind or left)):
            return None
        facts = None
        if means.carries and (given.behind or place.between.index == given.knows):
            weights = [float(k == given.knows) for k in range(given.number)]
            facts = means.take(shared.last_offer(model, weights), given.present)
        if void := self._why_void(facts):
            shared.stale |= place.between.index in given.behind
            return Void(void)
        if means.carries:
            shared.take_last(model, behind=place.between.index in given.behind)
        return None

    def _why_void(self, facts: MeanFacts | None) -> str:
        """Why a mean has come to nothing; only between sites that share no MPI world one may leave in its middle.
        Collective over the data center."""
        if not (self._place.between.separate and self.shared.averages_steps):
            return ""
        return self._place.site.bcast("" if facts is None else facts.void)

    def _void(self, void: Void, given: Contributions, end: RoundEnd) -> MeanResult:
        """Close a round without a mean: everyone goes on with its own model. Collective over the world."""
        decision = self._place.conversation.decide(
            Topic(TopicKind.NO_MEAN, given.place.round),
            lambda: end.decide(math.nan, given),
        )
        self._place.conversation.settled()
        log.warning("round %d is void: %s; training goes on without a mean", given.place.round, void.why)
        report = replace(end.report, divergence=math.nan, absent=f"the round is void: {void.why}")
        others = given.place if end.report.absent else end.place  # who had been left out goes on with the others
        return MeanResult(report, Decision.from_plain(decision), others, void=True)


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
        end = replace(end, known=0) if self.shared.stale else end
        given, end = arrive(self._place, self._settings, model, None, end)
        found = self._take_mean(model, given, end)
        if self.corrector is not None and not found.void:
            self.corrector.commit()
        return found
