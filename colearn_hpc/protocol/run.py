"""When a round ends, what is due, and what follows. Pure: no torch, MPI, Lightning, clock or file.

The shell (``trainer/callback.py``) tells the run what happened; the run answers with the next :class:`Step`, or None.
The shell performs it, tells how it went, and gets the next one. All else is a :class:`ProtocolError`, and changes
nothing. :class:`RunState` is the one value that says where a run stands: it is what is saved, logged and shown.

A run counts local epochs, or optimizer steps. What lies between two calls of :meth:`Run.count_epoch` is an epoch of
Lightning's: one local epoch, or a *block* of steps. Where steps are counted, read steps for local epochs, and block for
the epoch that begins or ends.

The table of transitions is in README.md; the numbers in comments are its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from enum import Enum
from typing import Any

from colearn_hpc.errors import CheckpointError
from colearn_hpc.protocol.meeting import ProtocolError
from colearn_hpc.protocol.plain import PlainError
from colearn_hpc.protocol.reports import CenterReport


class Shown(Enum):
    """What the module holds."""

    LOCAL = "local"  # w_k
    SHARED = "shared"  # the mean of the round that is to be logged


class Step(Enum):
    """What the shell is to do next; behind it, with what it answers."""

    TAKE_MEAN = "take the mean"  # mean_taken
    BEGIN_MEAN = "begin the mean"  # mean_begun, or mean_taken where somebody leaves
    FINISH_MEAN = "finish the mean"  # mean_finished
    ASK_WHO_GOES_ON = "ask who goes on"  # going_on
    LOG_ROUND = "log the round"  # round_logged
    STOP_TRAINER = "stop the Trainer"  # nothing


class StopReason(Enum):
    """Why no round follows; the value is its text for people."""

    ROUNDS = "rounds={rounds}"
    TRAINER_ENDED = "a data center's Trainer ended"

    def text(self, rounds: int | None) -> str:
        """For people, and for ``summary.json``."""
        return self.value.format(rounds=rounds)


@dataclass(frozen=True)
class PastRound:
    """What a rule for the local epochs may look back at: a round whose mean is there.

    The same in all data centers, because it travels with the presiding leader's decision.

    Attributes:
        round: i.
        local_epochs: T_i as the rule chose it.
        relative_change: of eq. 4; NaN where no weights travel.
        epochs_done: local epochs of the run finished at its end.
        learning_rate: of its last local epoch (first parameter group).
        loss: mean training loss over the round and the data centers; NaN where it was not measured.
    """

    round: int
    local_epochs: int
    relative_change: float
    epochs_done: int
    learning_rate: float
    loss: float = math.nan

    def to_plain(self) -> Any:
        return list(astuple(self))

    @classmethod
    def from_plain(cls, plain: Any) -> PastRound:
        """Raises PlainError where ``plain`` is no round."""
        match plain:
            case [int(index), int(epochs), float() | int() as change, int(done), float() | int() as rate, loss]:
                if isinstance(loss, float | int):
                    measured = math.nan if math.isnan(loss) else float(loss)  # one NaN, so that states can be equal
                    return cls(index, epochs, float(change), done, float(rate), measured)
        raise PlainError(f"no past round: {plain!r:.200}")


@dataclass(frozen=True)
class Decision:
    """What the presiding leader found and decided when a mean was there.

    Attributes:
        change: relative change of eq. 4; NaN where no weights travel.
        next_epochs: T_{i+1}.
        stop: why no round follows; None: one does.
        past: the round that ended, and before it those that some data center has not heard of, because it was left out;
            oldest first.
    """

    change: float
    next_epochs: int
    stop: StopReason | None = None
    past: tuple[PastRound, ...] = ()

    def to_plain(self) -> Any:
        stop = None if self.stop is None else self.stop.name
        return [self.change, self.next_epochs, stop, [one.to_plain() for one in self.past]]

    @classmethod
    def from_plain(cls, plain: Any) -> Decision:
        """What :meth:`to_plain` made, or made before there was a ``past``.

        Raises:
            PlainError: it is no decision.
        """
        match plain:
            case [float() | int() as change, int(epochs), None | str() as stop, *more] if epochs >= 1:
                if (stop is None or stop in StopReason.__members__) and len(more) <= 1:
                    listed = more[0] if more else []
                    if isinstance(listed, list):
                        past = tuple(map(PastRound.from_plain, listed))
                        return cls(float(change), epochs, None if stop is None else StopReason[stop], past)
        raise PlainError(f"no decision: {plain!r:.200}")


@dataclass(frozen=True)
class RoundPlace:
    """Where a data center is when it comes to a round's end.

    Attributes:
        round: i.
        local_epochs: T_i, as trained.
        epochs_done: local epochs finished before the one that ends.
        leaving: its Trainer ended, and this is its last round.
        last: no round follows, which all data centers know.
    """

    round: int
    local_epochs: int
    epochs_done: int
    leaving: bool = False
    last: bool = False

    def to_plain(self) -> Any:
        return [self.round, self.local_epochs, self.epochs_done, self.leaving, self.last]

    @classmethod
    def from_plain(cls, plain: Any) -> RoundPlace:
        """Raises PlainError where ``plain`` is no place."""
        match plain:
            case [int(), int(), int(), bool(), bool()]:
                return cls(*plain)
        raise PlainError(f"no place in a run: {plain!r:.200}")


@dataclass(frozen=True)
class Round:
    """A round that is trained, or whose mean is awaited, or whose line is to be written.

    Attributes:
        index: i.
        chosen: T_i as the rule chose it.
        epochs: T_i as trained: the Trainer's limit may cut it short.
        epochs_done: local epochs of the run finished at its end; 0 before.
        rates: of its local epochs so far (first parameter group).
        report: this data center's part.
        decision: what was decided when its mean was there.
    """

    index: int
    chosen: int
    epochs: int
    epochs_done: int = 0
    rates: tuple[float, ...] = ()
    report: CenterReport = field(default_factory=lambda: CenterReport(""))
    decision: Decision | None = None


@dataclass(frozen=True)
class RunState:
    """Where a run stands in one data center.

    Attributes:
        round: the round that is trained.
        epoch: local epochs of it that are done.
        epochs_done: local epochs of the run that are done.
        block: of the epoch that is trained: 1, or how many steps it has.
        dirty: something was trained that no mean holds.
        travelling: the round whose mean is under way.
        unlogged: rounds whose means have come and whose lines are not written; two where T = 1 overlaps.
        shown: what the module holds.
        stop: why the run ends.
        leaving: somebody trains no further, so the mean under way is the run's last.
        over: the Trainer has ended: what is taken is logged at once.
        due: what the shell has been told to do.
        change: relative change of the last mean (eq. 4); None before the first.
        run_id: of the run.
        settings: its fingerprint.
        data: what this data center trains on.
        history: the rounds whose means are there, oldest first; a run that an earlier version began has none of then.
    """

    round: Round
    epoch: int = 0
    epochs_done: int = 0
    block: int = 1
    dirty: bool = False
    travelling: Round | None = None
    unlogged: tuple[Round, ...] = ()
    shown: Shown = Shown.LOCAL
    stop: StopReason | None = None
    leaving: bool = False
    over: bool = False
    due: Step | None = None
    change: float | None = None
    run_id: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    history: tuple[PastRound, ...] = ()

    @classmethod
    def new(cls, name: str, local_epochs: int) -> RunState:
        """A run that begins.

        Args:
            name: the data center's.
            local_epochs: T_0.
        """
        return cls(Round(0, local_epochs, local_epochs, report=CenterReport(name)))

    @property
    def rounds_done(self) -> int:
        """Rounds whose mean is there."""
        late = self.travelling is not None and self.travelling.index < self.round.index
        return self.round.index - late

    @property
    def mean_is_taken(self) -> bool:
        """Whether the mean of the round that is trained is there, and its line not yet written."""
        return bool(self.unlogged) and self.unlogged[-1].index == self.round.index

    @property
    def ends_round(self) -> bool:
        """Whether a mean was taken, begun or finished at the last batch, and what follows at the epoch's end is due."""
        return bool(self.unlogged) or self.mean_is_begun

    @property
    def mean_is_begun(self) -> bool:
        """Whether the mean of the round that is trained is under way, and the next round has not begun."""
        return self.travelling is not None and self.travelling.index == self.round.index

    @property
    def lines(self) -> int:
        """Rounds whose lines are written."""
        return self.unlogged[0].index if self.unlogged else self.rounds_done

    @property
    def is_done(self) -> bool:
        """Whether the run has ended, and no other data center can wait for anything more of this one."""
        open_ = self.dirty or self.travelling is not None or self.unlogged or self.due is not None
        return self.stop is not None and not open_

    def to_plain(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        plain = asdict(self)
        plain["shown"], plain["due"] = self.shown.value, None if self.due is None else self.due.value
        plain["stop"] = None if self.stop is None else self.stop.name
        for key in ("round", "travelling"):
            plain[key] = _round_to_plain(getattr(self, key))
        plain["unlogged"] = [_round_to_plain(one) for one in self.unlogged]
        plain["history"] = [one.to_plain() for one in self.history]
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RunState:
        """What :meth:`to_plain` made."""
        read = dict(plain)
        first = _round_from_plain(plain["round"])
        assert first is not None, "a run is always in a round"
        unlogged = tuple(one for one in map(_round_from_plain, plain["unlogged"]) if one is not None)
        read |= {"round": first, "travelling": _round_from_plain(plain["travelling"]), "unlogged": unlogged}
        read |= {"shown": Shown(plain["shown"]), "due": None if plain["due"] is None else Step(plain["due"])}
        read["stop"] = None if plain["stop"] is None else StopReason[plain["stop"]]
        read["history"] = tuple(map(PastRound.from_plain, plain.get("history", ())))
        return cls(**read)

    @classmethod
    def from_first_version(cls, old: Mapping[str, Any]) -> RunState:
        """What the callback of 0.1.0 wrote into its resume points, at a local epoch's end or in its middle.

        Raises:
            CheckpointError: written by somebody else between a mean and its round's line: that was never whole.
        """
        if old.get("averaged"):
            raise CheckpointError(
                "this checkpoint of colearn_hpc 0.1.0 was written in the middle of a round's end and cannot be "
                "continued; continue from a resume point (`--resume`, or ckpt_path=colearning.resume_path())"
            )
        report = CenterReport(**old["record"])
        now = Round(old["round"], old["rule_epochs"], old["local_epochs"], 0, tuple(old["rates"]), report)
        travelling, ended = None, old.get("ended")
        if ended is not None:
            # Its T_i was the rule's too: the rule had not been asked again.
            travelling = Round(
                ended["round"],
                old["rule_epochs"],
                ended["local_epochs"],
                ended["epochs_done"],
                tuple(ended["rates"]),
                CenterReport(**ended["record"]),
            )
        return cls(
            now,
            epoch=old["epoch_in_round"],
            epochs_done=old["epochs_done"],
            dirty=old["_untaken"],
            travelling=travelling,
            change=old["relative_change"],
            run_id=old["run_id"],
            settings=dict(old["settings"]),
            data=dict(old["data"]),
        )


class Run:
    """The only writer of :class:`RunState`.

    Args:
        state: where to begin.
        rounds: stop after so many; None: the Trainer's own limits end the run.
        overlap: a mean is begun at a round's end, and finished at the end of the next epoch.
        block: 1 where local epochs are counted; steps between two ends of an epoch at most, where steps are.
    """

    def __init__(self, state: RunState, *, rounds: int | None, overlap: bool, block: int = 1) -> None:
        self.state, self._rounds, self._overlap, self._block = state, rounds, overlap, block

    # --- notes: they do not depend on what is due, and nothing follows from them ------------------------

    def note(self, **known: Any) -> None:
        """Write down ``run_id``, ``settings`` or ``data``."""
        if others := set(known) - {"run_id", "settings", "data"}:
            raise ProtocolError(f"not to be noted: {sorted(others)}")
        self._set(**known)

    def handed_on(self) -> Any:
        """Where the run stands at the beginning of the round that is trained: for a data center that joins with it."""
        s = self.state
        history = [one.to_plain() for one in s.history if one.round < s.round.index]
        return [s.round.index, s.round.chosen, s.epochs_done - s.epoch, s.change, history]

    def join(self, told: Any, round_index: int) -> None:
        """This data center joins at the beginning of a round.

        Args:
            told: what another one has :meth:`handed_on`.
            round_index: of the round.

        Raises:
            PlainError: it tells of no run, or of another round.
        """
        match told:
            case [int(index), int(chosen), int(done), None | float() | int() as change, [*history]] if (
                index == round_index and chosen >= 1 and done >= 0
            ):
                past = tuple(map(PastRound.from_plain, history))
            case _:
                raise PlainError(f"no place where round {round_index} begins: {told!r:.200}")
        name = self.state.round.report.name
        now = Round(index, chosen, chosen, report=CenterReport(name))
        self._set(round=now, epochs_done=done, change=None if change is None else float(change), history=past)

    def report(self, **changes: Any) -> None:
        """Change this data center's report of the round that is trained."""
        self._set_round(report=replace(self.state.round.report, **changes))

    def report_shared(self, metrics: Mapping[str, float]) -> None:
        """Metrics of the shared model: they belong to the round whose mean came last."""
        s = self.state
        if s.unlogged and not s.mean_is_taken:
            last = s.unlogged[-1]
            last = replace(last, report=replace(last.report, shared_metrics=dict(metrics)))
            self._set(unlogged=(*s.unlogged[:-1], last))
        else:
            self.report(shared_metrics=dict(metrics))

    def trained(self, examples: int, seconds: float, steps: int = 0) -> None:
        """Batches were trained.

        Args:
            examples: in them.
            seconds: that they took.
            steps: of the optimizer, in them.
        """
        before = self.state.round.report
        self.report(
            examples=before.examples + examples,
            train_seconds=before.train_seconds + seconds,
            steps=before.steps + steps,
        )
        self._set(dirty=True)

    # --- training ---------------------------------------------------------------------------------------

    def start_epoch(self, limit: int | None) -> None:
        """A local epoch begins. (1)

        Args:
            limit: local epochs of the run at which the Trainer ends; None: there is none.
        """
        self._expect("start_epoch")
        if self.state.epoch == 0:
            self._plan(limit)
            self._set_round(rates=())
        s = self.state
        # One that was cut short is filled up.
        self._set(block=min(self._block - s.epoch % self._block, s.round.epochs - s.epoch))

    def cut_block(self, steps: int) -> None:
        """The epoch ends after so many steps: the Trainer leaves it."""
        self._expect("cut_block")
        self._set(block=steps)

    def rate(self, rate: float) -> None:
        """The epoch is trained with this rate (first parameter group); of several in a block the last one stays."""
        self._expect("rate")
        self._set_round(rates=(*self.state.round.rates[: self.state.epoch // self._block], rate))

    def epoch_trained(self) -> Step | None:
        """The epoch's last batch is done, or its end has come; nothing where that is known already. (2 - 5)"""
        self._expect("epoch_trained")
        s = self.state
        if s.travelling is not None and s.travelling.index < s.round.index:
            return self._due(Step.FINISH_MEAN)
        if s.epoch + s.block >= s.round.epochs and not s.mean_is_taken and s.travelling is None:
            return self._due(self._mean_step())
        return None

    def count_epoch(self) -> None:
        """The epoch's validation is done. (9)"""
        self._expect("count_epoch")
        s = self.state
        self._set(epoch=s.epoch + s.block, epochs_done=s.epochs_done + s.block)

    def close_epoch(self) -> Step | None:
        """All other callbacks have had their say. (10)"""
        self._expect("close_epoch")
        return self._due(Step.LOG_ROUND) if self.state.unlogged else self._after_logging()

    def trainer_ended(self) -> Step | None:
        """The Trainer has left its loop, perhaps in mid-round. (16)"""
        self._expect("trainer_ended")
        s = self.state
        if not s.dirty:
            return None
        if s.travelling is not None:  # (16a)
            raise ProtocolError(f"the Trainer ended while the mean of round {s.travelling.index} is under way")
        self._set(over=True)
        return self._due(self._mean_step())

    def resumed(self) -> Step | None:
        """Training goes on from a checkpoint, of between two epochs or before the end of one is closed. (17, 17a - 17d)

        Raises:
            CheckpointError: it was written while something was due, as when an exception passed.
        """
        s = self.state
        if s.due is not None:
            raise CheckpointError(
                f"this checkpoint was written where the run was to {s.due.value}, and cannot be continued; continue "
                "from a resume point (`--resume`, or ckpt_path=colearning.resume_path())"
            )
        # Why it had ended counts no more: rounds may have been added, or the Trainer's limits be others.
        reached = self._rounds is not None and s.rounds_done + s.mean_is_taken >= self._rounds
        ended = s.stop is StopReason.TRAINER_ENDED and bool(s.unlogged)
        stop = StopReason.ROUNDS if reached else StopReason.TRAINER_ENDED if ended else None
        self._set(stop=stop, leaving=False, over=False)
        if s.mean_is_begun:
            self._next_round()
        if s.travelling is not None:
            return self._due(Step.BEGIN_MEAN)
        return self._due(Step.LOG_ROUND) if s.unlogged else self._after_logging()

    def miss_round(self, why: str, limit: int | None) -> Step:
        """This data center cannot finish the round: it takes the others' mean, and gives nothing to it. (18, 18a)

        The shell counts and closes the epoch afterwards, as after any.
        """
        s = self.state
        if s.due is not Step.TAKE_MEAN:  # that may fail before the others hear of it, as with NaN in the model
            self._expect("miss_round")
        if s.travelling is not None or s.unlogged:
            raise ProtocolError("a round whose mean has begun cannot be missed")
        if s.epoch == 0:
            self._plan(limit)
            self._set_round(rates=())
        self._set_round(report=CenterReport(s.round.report.name, absent=why))
        self._skip_to_last_block(s.epochs_done - s.epoch)
        self._set(over=False)
        return self._due(Step.TAKE_MEAN)

    # --- what the shell asks ----------------------------------------------------------------------------

    def place(self, limit: int | None, leaving: bool) -> RoundPlace:
        """Where this data center is at a round's end: the round's whose mean is due.

        Args:
            limit: see :meth:`start_epoch`.
            leaving: its Trainer ends.
        """
        s = self.state
        if (sent := s.travelling) is not None:  # it is sent again
            last = self._is_last(sent, sent.epochs_done, limit)
            return replace(self.place_of(sent), leaving=leaving, last=last)
        last = self._is_last(s.round, s.epochs_done + s.block, limit)
        return RoundPlace(s.round.index, s.round.epochs, s.epochs_done, leaving or s.over, last)

    def place_of(self, sent: Round) -> RoundPlace:
        """Where this data center was at the end of a round whose mean is under way."""
        return RoundPlace(sent.index, sent.epochs, sent.epochs_done - self._last_block(sent.epochs))

    @property
    def epochs_done_then(self) -> int:
        """Local epochs of the run that will be done when the one that ends is counted."""
        return self.state.epochs_done + (0 if self.state.over else self.state.block)

    def decision(
        self, round_: Round, change: float, next_epochs: int, leaves: bool, past: tuple[PastRound, ...] = ()
    ) -> Decision:
        """What the presiding leader decides when a round's mean is there.

        Args:
            round_: i.
            change: of eq. 4.
            next_epochs: T_{i+1} by the rule.
            leaves: some data center takes part in no further round.
            past: see :class:`Decision`.
        """
        stop = StopReason.TRAINER_ENDED if leaves else None
        if self._rounds is not None and round_.index + 1 >= self._rounds:
            stop = StopReason.ROUNDS
        return Decision(change, next_epochs, stop, past)

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are done: a finished run was resumed."""
        return self._rounds is not None and self.state.rounds_done >= self._rounds

    # --- answers ----------------------------------------------------------------------------------------

    def mean_taken(self, decision: Decision, report: CenterReport, others: RoundPlace | None = None) -> Step | None:
        """The module holds the mean. (6, 6a)

        Args:
            decision: of the presiding leader.
            report: this data center's, with what the mean cost.
            others: where those are who gave to it, after an absence.
        """
        self._expect("mean_taken")
        s = self.state
        if s.travelling is not None:  # it was sent again, and is the last after all (17)
            return self._finished(replace(s.travelling, report=report), decision, last=True)
        r = replace(s.round, decision=decision, epochs_done=self.epochs_done_then, report=report)
        if others is not None:
            r = replace(r, index=others.round, epochs=others.local_epochs)
            self._set(round=r)
            self._skip_to_last_block(others.epochs_done + self._last_block(r.epochs) - r.epochs)
            r = replace(r, epochs_done=self.state.epochs_done + self.state.block)
        self._set(round=r, unlogged=(*s.unlogged, r), shown=Shown.SHARED, dirty=False)
        self._set(stop=decision.stop, change=decision.change, due=None)
        self._remember(decision)
        return self._due(Step.LOG_ROUND) if s.over else None

    def mean_begun(self, report: CenterReport) -> Step | None:
        """What this data center gives has been sent. (7, 7a)"""
        self._expect("mean_begun")
        s = self.state
        if s.travelling is not None:  # sent again: the others may have something to say
            self._set(travelling=replace(s.travelling, report=report), due=None)
            return self._due(Step.ASK_WHO_GOES_ON)
        self._set_round(report=report)
        self._set(travelling=replace(self.state.round, epochs_done=self.epochs_done_then), dirty=False, due=None)
        return None

    def mean_finished(self, decision: Decision, report: CenterReport, limit: int | None) -> Step | None:
        """The mean that was under way is here, and the module holds it. (8, 8a)

        Args:
            decision: of the presiding leader.
            report: this data center's, of that round.
            limit: see :meth:`start_epoch`.
        """
        self._expect("mean_finished")
        s = self.state
        assert s.travelling is not None, "it is due only then"
        finished = replace(s.travelling, report=report)
        if s.leaving:
            return self._finished(finished, decision, last=True)
        self._finished(finished, decision, last=False)
        self._plan(limit, trained=s.block)  # its first epoch has just been trained
        return self.epoch_trained()

    def going_on(self, all_go_on: bool) -> Step | None:
        """Who trains on after a mean was begun. (14)"""
        self._expect("going_on")
        self._set(due=None, leaving=not all_go_on)
        if not all_go_on:
            return self._due(Step.FINISH_MEAN)
        return self._due(Step.LOG_ROUND) if self.state.unlogged else None

    def round_logged(self, anyone_leaves: bool) -> Step | None:
        """The round's line is written. (11, 12)"""
        self._expect("round_logged")
        s = self.state
        logged, *rest = s.unlogged
        stop = s.stop or (StopReason.TRAINER_ENDED if anyone_leaves else None)
        if logged.index == s.round.index:
            self._next_round()
        self._set(unlogged=tuple(rest), shown=Shown.SHARED if rest else Shown.LOCAL, stop=stop, due=None)
        return self._due(Step.LOG_ROUND) if rest else self._after_logging()

    # --- inside -----------------------------------------------------------------------------------------

    def _finished(self, round_: Round, decision: Decision, last: bool) -> Step | None:
        s = self.state
        stop = decision.stop or (StopReason.TRAINER_ENDED if last else None)
        self._set(travelling=None, unlogged=(*s.unlogged, replace(round_, decision=decision)), shown=Shown.SHARED)
        self._set(stop=stop, change=decision.change, due=None)
        self._remember(decision)
        if not last:
            return None
        self._set(dirty=False, leaving=True)  # what was trained since is dropped
        return self._due(Step.LOG_ROUND)

    def _remember(self, decision: Decision) -> None:
        """Add what the decision tells of the rounds so far."""
        first = decision.past[0].round if decision.past else math.inf
        self._set(history=(*(one for one in self.state.history if one.round < first), *decision.past))

    def _after_logging(self) -> Step | None:
        s = self.state
        if s.mean_is_begun:  # (13)
            self._next_round()
            return self._due(Step.ASK_WHO_GOES_ON)
        return Step.STOP_TRAINER if s.stop is not None else None  # (15)

    def _mean_step(self) -> Step:
        return Step.BEGIN_MEAN if self._overlap else Step.TAKE_MEAN

    def _is_last(self, round_: Round, epochs_done: int, limit: int | None) -> bool:
        """Whether no round follows, as far as it is known beforehand, by all data centers alike."""
        by_rounds = self._rounds is not None and round_.index + 1 >= self._rounds
        return by_rounds or (limit is not None and limit <= epochs_done)

    def _next_round(self) -> None:
        s = self.state
        chosen = s.round.decision.next_epochs if s.round.decision else s.round.chosen
        # T is planned when the first epoch begins; until then it is the round before's.
        following = Round(s.round.index + 1, chosen, s.round.epochs, report=CenterReport(s.round.report.name))
        self._set(round=following, epoch=0)

    def _last_block(self, epochs: int) -> int:
        """Of the last epoch of a round: 1, or its steps."""
        return (epochs - 1) % self._block + 1

    def _skip_to_last_block(self, done_before: int) -> None:
        """The round's last epoch is the one that ends; ``done_before``: local epochs of the run before the round."""
        epochs = self.state.round.epochs
        block = self._last_block(epochs)
        self._set(epoch=epochs - block, epochs_done=done_before + epochs - block, block=block)

    def _plan(self, limit: int | None, trained: int = 1) -> None:
        """T_i: what the rule says, cut short by the Trainer's limit, but not below what is trained of it."""
        s = self.state
        late = [r.decision for r in s.unlogged if r.index < s.round.index and r.decision is not None]
        chosen = late[-1].next_epochs if late else s.round.chosen
        left = 0 if limit is None else limit - s.epochs_done
        self._set_round(chosen=chosen, epochs=max(min(chosen, left) if left > 0 else chosen, trained))

    def _set_round(self, **changes: Any) -> None:
        """Change the round that is trained, wherever the state names it."""
        s, index = self.state, self.state.round.index
        changed = replace(s.round, **changes)
        travelling = s.travelling
        if travelling is not None and travelling.index == index:
            travelling = replace(travelling, **changes)
        unlogged = tuple(replace(r, **changes) if r.index == index else r for r in s.unlogged)
        self._set(round=changed, travelling=travelling, unlogged=unlogged)

    def _due(self, step: Step) -> Step:
        self._set(due=step)
        return step

    def _expect(self, happened: str) -> None:
        """Refuse what does not answer what is due. (19)"""
        due = self.state.due
        if (happened not in ANSWERS.get(due, ())) if due is not None else (happened in _ALL_ANSWERS):
            raise ProtocolError(f"{happened} came where the run expects {_expected(due)}; please report this")

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


# What answers a step that is due; while one is due nothing else may happen.
ANSWERS: dict[Step, tuple[str, ...]] = {
    Step.TAKE_MEAN: ("mean_taken",),
    Step.BEGIN_MEAN: ("mean_begun", "mean_taken"),
    Step.FINISH_MEAN: ("mean_finished",),
    Step.ASK_WHO_GOES_ON: ("going_on",),
    Step.LOG_ROUND: ("round_logged",),
}
_ALL_ANSWERS = {answer for answers in ANSWERS.values() for answer in answers}


def _expected(due: Step | None) -> str:
    return "training" if due is None else f"an answer to '{due.value}'"


def _round_to_plain(round_: Round | None) -> dict[str, Any] | None:
    if round_ is None:
        return None
    plain = asdict(round_)
    plain["rates"] = list(round_.rates)
    plain["decision"] = None if round_.decision is None else round_.decision.to_plain()
    return plain


def _round_from_plain(plain: Mapping[str, Any] | None) -> Round | None:
    if plain is None:
        return None
    read = dict(plain)
    read["rates"] = tuple(plain["rates"])
    read["report"] = CenterReport(**plain["report"])
    read["decision"] = None if plain["decision"] is None else Decision.from_plain(plain["decision"])
    return Round(**read)
