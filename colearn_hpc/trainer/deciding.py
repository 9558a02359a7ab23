"""What the presiding leader does when a round's mean is there: the outcome that the rule is asked about."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

from colearn_hpc.algorithm.local_epochs import LocalEpochsRule, RoundOutcome, checked_epochs, counts_steps
from colearn_hpc.protocol.run import PastRound, Round, Run
from colearn_hpc.trainer.round_end import Contributions, Decide

log = logging.getLogger("colearn_hpc")


def decider(run: Run, rule: LocalEpochsRule, round_: Round, epochs_done: int) -> Decide:
    """What decides on ``round_`` when its mean is there.

    Args:
        run: whose history the rule may look back at.
        rule: for the local epochs.
        round_: i.
        epochs_done: local epochs of the run at its end.
    """

    def decide(change: float, given: Contributions) -> Any:
        rate = round_.rates[-1] if round_.rates else 0.0
        ended = PastRound(round_.index, round_.chosen, change, epochs_done, rate, given.loss)
        before = [one for one in run.state.history if one.round < round_.index]
        outcome = replace(_outcome(ended), history=tuple(map(_outcome, before)))
        chosen = checked_epochs(rule.next(outcome))
        if given.epochs_left is not None and chosen > max(given.epochs_left, 1):
            log.warning(
                "round %d: T would be %d, and a data center's privacy budget allows %d more %s: T is %d",
                round_.index + 1,
                chosen,
                given.epochs_left,
                "steps" if counts_steps(rule) else "local epochs",
                max(given.epochs_left, 1),
            )
            chosen = max(given.epochs_left, 1)
        told = (*(one for one in before if one.round >= given.known), ended)
        return run.decision(round_, change, chosen, given.leaves, told).to_plain()

    return decide


def _outcome(past: PastRound) -> RoundOutcome:
    return RoundOutcome(**asdict(past))
