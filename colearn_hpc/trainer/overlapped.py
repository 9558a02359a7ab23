"""Overlap: the mean travels while the next round's first local epoch is trained (``exchange: {overlap: true}``).

    round i, its last batch            all meet; each sends its model s_k as it is now, and trains on from it
    round i+1, every batch of epoch 0  messages pass
    its last batch                     all meet; the mean w̄ⁱ is here, T_{i+1} is decided, the module is made w̄ⁱ
    validation, checkpoints            see w̄ⁱ, as they do without overlap, but an epoch later
    the epoch's end                    the module becomes w_k + (w̄ⁱ - s_k): w̄ⁱ, and what was learned meanwhile; with
                                       ``mixing`` it becomes α w_k + (1 - α) w̄ⁱ

With an outer optimizer w̄ⁱ is what it made of the mean. What was learned since s_k was sent is in the next mean alone.

Epoch 0 has the rate of T_i, because T_{i+1} is not known yet. With T = 1 a mean arrives and the next leaves at the same
batch. The last round has no epoch after it: its mean is waited for, and is the mean of what all have, w̄ of eq. 2.

Only parameters are corrected. Running statistics (float buffers) of w̄ⁱ are the mean's, for validation and checkpoints;
those of the local model stay its own: they forget what was before within batches, and a variance that is corrected can
become negative. Optimizer state is reset where the weights jump, or kept.

While a mean is under way every data center is needed: a failure ends the run, and is not restarted in place. Resume
points hold what was sent, and a resumed run sends it again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from colearn_hpc._lightning import LightningModule
from colearn_hpc.algorithm.overlap import correct
from colearn_hpc.between import Vector
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.run import Decision
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import MeanResult
from colearn_hpc.trainer.averaging import SharedModelAverager
from colearn_hpc.trainer.last_shared import committed
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import Contributions, RoundEnd, arrive
from colearn_hpc.trainer.sums import Void, WholeSums

# Chunks that can move from one batch's end to the next.
CHUNKS_AHEAD = 16


class OverlappedAverager(SharedModelAverager):
    """An :class:`~colearn_hpc.trainer.averager.Averager` whose mean is begun by :meth:`begin` and comes with
    :meth:`finish`, unless the round is the last.

    Holds one vector more than :class:`~colearn_hpc.trainer.averaging.MeanAverager`, on all ranks: the model as it was
    sent, and when the mean has come, the model with which to train on.

    Args:
        place: this process's.
        settings: of the run.
        sums: where means are taken of whole numbers.
    """

    def __init__(self, place: Place, settings: Settings, sums: WholeSums | None = None) -> None:
        super().__init__(place, settings, sums)
        # What was sent, or the local model while the module is the shared one. Its memory is kept between rounds.
        self._local: Tensor | None = None
        self._sent = False
        self._given: Contributions | None = None  # what was said of the mean under way; said again after a resume
        self._shows_shared = False

    def state_dict(self) -> dict[str, Any]:
        kept = self._local if self._sent or self._shows_shared else None
        return super().state_dict() | {"sent": kept, "shows_shared": self._shows_shared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._local = state.get("sent")
        self._shows_shared = state.get("shows_shared", False)

    def begin(self, end: RoundEnd, again: bool = False) -> MeanResult:
        """Send the model, or take the mean at once where no epoch follows in which it could come. Collective over the
        world.

        Args:
            end: of the round.
            again: send what a checkpoint says was sent.

        Returns:
            Without a decision where the mean has begun.
        """
        model = self.shared.sent_model_of(end.module) if again else self.shared.model_of(end.module)
        if not again:
            if self._local is None or len(self._local) != model.size:  # other parameters are trained than before
                self.show_local(end.module)
                self._local = None
            if not self._shows_shared:
                self._local = model.pack(self._local)
            assert self._local is not None
            self.shared.align(model)
            # DDP keeps parameters equal inside a data center, buffers not, and gives the leader's to all at the next
            # batch.
            self._place.means.mean_in_center(self._local[model.parameter_size :])
        sent = self._local
        assert sent is not None, "a checkpoint with a mean under way holds what was sent"
        given, end = arrive(self._place, self._settings, model, sent, end)
        if end.place.last or given.leaves:
            model.unpack(sent)
            self._shows_shared = False
            return self._take_mean(model, given, end)
        prepared = self._prepare(model, Vector(sent), given, end)
        assert not isinstance(prepared, Void), "only secure sums are void, and those do not overlap"
        self._sent, self._given = True, given
        self.shared.begin_round()
        if self._place.means.carries:
            offer = self.shared.offer(model, prepared.source, given.weights, prepared.encoding, CHUNKS_AHEAD)
            self._place.means.begin(offer, given.present)
        return MeanResult(end.report, None, given.place)

    def take(self, end: RoundEnd) -> MeanResult:
        return self.begin(replace(end, place=replace(end.place, leaving=True)))

    def finish(self, end: RoundEnd) -> MeanResult:
        """Wait for the mean that is under way, and make it the module's. Collective over the world.

        Args:
            end: of the round that is averaged. Its module stays the shared model until :meth:`show_local`.
        """
        conversation, means, round_index = self._place.conversation, self._place.means, end.place.round
        model, sent, report = self.shared.sent_model_of(end.module), self._local, end.report
        given = self._given
        assert sent is not None and self._sent and given is not None
        clock = time.monotonic()
        # Whoever failed since the mean was begun says so here. After it no user's code runs until the mean is in place.
        conversation.meet(Topic(TopicKind.UNDER_WAY, round_index))
        waited = time.monotonic() - clock

        clock = time.monotonic()
        new = self.shared.following(model, means.finish() if means.carries else None)
        seconds = time.monotonic() - clock
        decision = conversation.decide(
            Topic(TopicKind.MEAN, round_index),
            lambda: end.decide(new.squares(round_index).relative_change, given),
        )

        clock = time.monotonic()
        correct(model, sent, new.vector, self._settings.mixing)
        model.unpack(new.vector)
        self._sent, self._shows_shared = False, True
        report = committed([new], report)
        if self._settings.optimizer_state == "reset":
            end.reset_optimizers()
        conversation.settled()
        report = replace(
            report,
            wait_seconds=report.wait_seconds + waited,
            exchange_seconds=report.exchange_seconds + seconds + time.monotonic() - clock,
        )
        return MeanResult(report, Decision.from_plain(decision), end.place)

    def show_local(self, module: LightningModule) -> None:
        """Make the module the local model again, corrected by the mean."""
        if self._shows_shared:
            assert self._local is not None
            self.shared.sent_model_of(module).unpack(self._local)
            self._shows_shared = False

    def keep_shared(self) -> None:
        """No epoch follows: the module stays the shared model."""
        self._shows_shared = False
