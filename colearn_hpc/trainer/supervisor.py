"""A data center that failed begins again from its own last resume point.

"If a participant fails, the server restarts it" (Mi et al. 2020). All ranks of the data center come together, whatever
each was doing, agree on what went wrong, and train again from the resume point; the other data centers go on training,
or wait. What the failed one had already heard from them is replayed (``protocol/journal.py``), so that the final
weights are bit for bit those of an undisturbed run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import colearn_hpc._lightning as pl
from colearn_hpc.errors import RoundTimeoutError
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.conversation import is_everywhere
from colearn_hpc.protocol.failures import Failure, RestartPolicy, Verdict, is_lost_gpu
from colearn_hpc.protocol.messages import describe_error
from colearn_hpc.trainer.environment import DataCenterEnvironment
from colearn_hpc.trainer.gpus import lost_gpu
from colearn_hpc.trainer.lightning_gaps import drop_tuners
from colearn_hpc.trainer.optimizers import LossScale
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.resume_points import NUMPY_NUMBERS, find_newest_point

log = logging.getLogger("colearn_hpc")

REGROUP_PATIENCE = 600.0  # s for the ranks of a data center to leave what they are doing
_NEEDS_A_NEW_PROCESS = (
    "after such an error only a new process can use the GPU: the run ends with exit code 86, start again"
)


@dataclass(frozen=True)
class Rejoin:
    """Where a data center goes on after a round without it, ahead of its resume point.

    Attributes:
        state: of the callback.
        vector: the shared model, shape (n,).
    """

    state: dict[str, Any]
    vector: Tensor


@dataclass(frozen=True)
class Attempt:
    """One call of ``trainer.fit``.

    Attributes:
        number: 0 for the first; later ones are restarts, and the other data centers are far from a run's start.
        rejoin: where to go on instead of at the resume point; None: there.
    """

    number: int = 0
    rejoin: Rejoin | None = None


class Supervisor:
    """Calls ``trainer.fit`` again when this data center fails, as far as the policy allows.

    Args:
        policy: how often, and what comes then.

    Attributes:
        loads_everything: checkpoints are loaded with ``weights_only=False``.
        supervises: somebody is there to begin again, :meth:`run`.
        attempt: the one under way.
        loss_scale: of training in float16, as it was before anything was restored; None: of another precision.
    """

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._verdict: Verdict | None = None
        self._modes: dict[str, bool] = {}  # by name: Lightning's teardown makes new layers of SyncBatchNorm's
        self.loss_scale: LossScale | None = None
        self.supervises = self.loads_everything = False
        self.attempt = Attempt()

    def point_written(self) -> None:
        """A resume point is at or after :attr:`Attempt.rejoin`: the next attempt begins there."""
        self.attempt = replace(self.attempt, rejoin=None)

    def judge(self, error: BaseException, place: Place, trainer: pl.Trainer, failure: Failure) -> Verdict:
        """Come together, and judge. Collective over the data center, in whatever state each rank is.

        Does not return where the ranks do not come together, or where one has lost its GPU: then all ranks of the run
        are ended, and a new start goes on.

        Args:
            error: what happened on this rank.
            place: this process's.
            trainer: that failed.
            failure: what this rank knows of it.
        """
        conversation = place.conversation
        if isinstance(error, RoundTimeoutError):
            conversation.abort(failure.text)
        if is_lost_gpu(error):
            conversation.abort(f"{describe_error(error)}\n({_NEEDS_A_NEW_PROCESS})")
        conversation.break_center(error)
        if (environment := environment_of(trainer)) is not None:
            environment.leave_process_group()
        if said := lost_gpu(trainer.strategy.root_device):
            conversation.abort(f"{describe_error(error)}\n{said}\n({_NEEDS_A_NEW_PROCESS})")
        try:
            patience = REGROUP_PATIENCE if failure.restartable else pacing.GRACE
            failures = cast("list[Failure]", place.regroup(failure, patience))
        except RoundTimeoutError as lost:
            conversation.abort(f"{failure.text}\n({lost})")
        verdict = self._verdict = self._policy.judge(failures)
        if place.center.is_leader:
            log.info("%s", verdict.text)  # its own log tells all
        if verdict.action == "restart":
            what = f"restarting ({verdict.number} of {self._policy.limit} in this round)"
            last_line = verdict.text.splitlines()[-1]
            heard = conversation.told(last_line, verdict.elsewhere.splitlines()[-1])
            conversation.progress(lambda: f"{what}: {heard}", now=True)
            if place.center.is_leader:
                log.warning("%s, %s: %s", place.center.name, what, last_line)
        elif verdict.action == "miss the round" and place.center.is_leader:
            log.warning("%s misses round %d: %s", place.center.name, failure.place[0], verdict.text)
        return verdict

    def can_restart(self, error: BaseException, place: Place) -> bool:
        """Whether beginning again may help against this error, and would find its way."""
        if not self.supervises or not isinstance(error, Exception) or isinstance(error, RoundTimeoutError):
            return False
        if place.means.sharded:  # its shards belong to the process group that is broken; a new start has another
            return False
        return place.can_begin_again and not is_everywhere(error)

    def fit_begins(self, model: pl.LightningModule) -> None:
        """Remember which parts of the model train, to be called when all of them have been made."""
        if not self._modes:
            self._modes = {name: part.training for name, part in model.named_modules(remove_duplicate=False)}

    def run(
        self,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        attempt: Callable[[Any], None],
        ckpt_path: Any,
        where: Callable[[], tuple[Place, Path]],
        settle: Callable[[], None],
        miss_round: Callable[[str], Rejoin],
    ) -> None:
        """Call ``attempt(ckpt_path)`` until it ends by itself, or the policy ends it.

        Args:
            trainer: whose ``fit`` is called.
            model: that it trains.
            attempt: one call of it.
            ckpt_path: where the first one begins.
            where: this process's place and the run folder, once an attempt has begun.
            settle: lets this data center know whether its last resume point is there.
            miss_round: takes part in the round's end without a model of one's own, and says where to go on.

        Raises:
            Exception: whatever ended the run.
        """
        self.supervises, self.attempt, self._verdict = True, Attempt(), None
        self._modes, forward = {}, vars(model).get("forward")
        while True:
            try:
                with torch.serialization.safe_globals(NUMPY_NUMBERS):
                    return attempt(ckpt_path)
            except Exception:
                verdict, self._verdict = self._verdict, None
                if verdict is None or verdict.action == "stop":
                    raise
            # The traceback is gone with its handler, and what it held: the failed attempt's batch, loader and graph.
            place, folder = where()
            try:
                settle()
                rejoin = self.attempt.rejoin
                if verdict.action == "miss the round":
                    rejoin = miss_round(place.conversation.told(verdict.text, verdict.elsewhere))
                _renew(trainer)
                if self.loss_scale is not None:
                    self.loss_scale.reset()
                restore_modes(model, self._modes)  # a failure in validation leaves them as validation wants them
                vars(model).pop("forward", None)  # DDP redirects it for a step; an error leaves it so
                if forward is not None:
                    vars(model)["forward"] = forward
                trainer.num_sanity_val_steps = 0
                drop_tuners(trainer)  # they have found what they search for
                ckpt_path = find_newest_point(folder, place)
                place.journal.replay()
                self.attempt = Attempt(self.attempt.number + 1, rejoin)
            except Exception as error:
                place.conversation.fail(error)
                raise


def restore_modes(model: torch.nn.Module, modes: Mapping[str, bool]) -> None:
    """Set ``training`` of every part of a model that has a name in ``modes``."""
    for name, part in model.named_modules(remove_duplicate=False):
        part.training = modes.get(name, part.training)


def environment_of(trainer: pl.Trainer) -> DataCenterEnvironment | None:
    """The Trainer's environment, if it is ours; a data center of one rank needs none."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment if isinstance(environment, DataCenterEnvironment) else None


def check_process_group(trainer: pl.Trainer) -> None:
    """:meth:`DataCenterEnvironment.check_process_group`, where the environment is ours."""
    if (environment := environment_of(trainer)) is not None:
        environment.check_process_group(trainer.strategy.root_device)


def _renew(trainer: pl.Trainer) -> None:
    """Give the data center's next process group an address of its own. Collective over the data center."""
    if (environment := environment_of(trainer)) is not None:
        environment.renew_address()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # after running out of memory, what the failed attempt held
