"""Where traces.py listens to the package's inside: meetings and means. All that it knows of internals is in this file.

A trace must mean the same whatever the code is like, so what is told here has neutral names and is plain data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from colearn_hpc.protocol.conversation import Conversation
from colearn_hpc.protocol.messages import Absent, TopicKind
from colearn_hpc.protocol.run import Decision
from colearn_hpc.trainer.round_end import Contribution
from colearn_hpc.trainer.ensemble import EnsembleAverager
from colearn_hpc.trainer.means import Means

KINDS = {
    TopicKind.ROUND: "round",
    TopicKind.MEAN: "decision",
    TopicKind.NO_MEAN: "decision",
    TopicKind.REPORT: "report",
}


def tap(meeting: Callable[[dict[str, Any]], None], mean: Callable[[Tensor], None]) -> None:
    """Listen to all that follows.

    Args:
        meeting: is called on every rank with each meeting at a round's end, also with one that is replayed to a
            restarted data center: its kind ("round", "decision", "report"), the round, the data centers that were
            there, and what each brought, as its leader says.
        mean: is called with each mean, shape (n,), when all of it is on this rank.
    """
    judged, spread, take = Conversation._judged, Means.spread, Means.take
    takes_predictions = EnsembleAverager.shared_metrics

    def tapped_judged(self, outcome):
        attendance = judged(self, outcome)  # raises where somebody failed or stops
        if (kind := KINDS.get(outcome.topic.kind)) is not None:
            here = {self.between.names[k]: attendance.brought[k] for k in attendance.present}
            brought = {name: _plain(kind, one) for name, one in here.items() if one.content is not None}
            meeting({"kind": kind, "round": outcome.topic.round, "present": list(here), "brought": brought})
        return attendance

    def tapped_spread(self, vector, facts, **how):
        facts = spread(self, vector, facts, **how)
        mean(vector)
        return facts

    def tapped_shared_metrics(self, trainer, module):
        # Predictions are averaged by leaders alone, and not spread.
        def tapped_take(means, offer, present):
            facts = take(means, offer, present)
            mean(offer.result)
            return facts

        Means.take = tapped_take
        try:
            return takes_predictions(self, trainer, module)
        finally:
            Means.take = take

    Conversation._judged = tapped_judged
    Means.spread, EnsembleAverager.shared_metrics = tapped_spread, tapped_shared_metrics


def without_new_fields(report: dict[str, Any]) -> dict[str, Any]:
    """A data center's report as version 0.1.0 wrote it."""
    return {key: value for key, value in report.items() if key not in ("steps", "data", "model", "loss", "epsilon")}


def _plain(kind, brought) -> dict[str, Any]:
    content = brought.content
    if kind == "decision":
        decision = Decision.from_plain(content)
        reason = None if decision.stop is None else decision.stop.name.lower().replace("_", " ")
        return {"change": decision.change, "next_epochs": decision.next_epochs, "stop": reason}
    if kind == "report":
        report, stop = content
        return {"record": without_new_fields(report), "stop": stop}
    given = Contribution.from_plain(content)
    absent = isinstance(brought, Absent)
    return {"size": given.size, "examples": given.examples, "absent": absent} | asdict(given.place)
