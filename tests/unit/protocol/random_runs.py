"""Worlds that random runs live in, and the shell that Lightning's hooks are around a run; collectives are a trace."""

import json
from dataclasses import replace

from colearn_hpc.protocol.run import RoundPlace, Run, RunState, Step


class World:
    """What rules, limits, users and other data centers do in one run, drawn beforehand.

    Args:
        random: draws it.
        block: steps of a block; 1: local epochs are counted.
    """

    def __init__(self, random, block=1):
        self.first = random.choice([1, 1, 2, 3])
        self.overlap = random.random() < 0.6
        self.rounds = random.choice([None, 1, 2, 3, 6])
        self.limit = random.choice([None, 1, 2, 5, 7, 12])
        if self.rounds is None and self.limit is None:
            self.rounds = 4
        self.chosen = [random.choice([1, 1, 2, 3, 4]) for _ in range(80)]
        self.stops_at = random.choice([None, None, 2, 4, 5])  # epochs done at which a user's callback stops the Trainer
        self.cut = random.choice([None, None, 1, 3, 6])  # the epoch that max_steps ends in its middle
        self.peer = random.choice([None] * 4 + [0, 1, 2, 3])  # the round at whose end another data center leaves
        self.fails_at, self.missed = None, {}
        if not self.overlap:  # it cannot go on without a data center
            self.fails_at = random.choice([None, None, 0, 1, 3])
            self.missed = random.choice([{}, {}, {1: RoundPlace(3, 2, 9)}])
        self.block = block
        if block > 1:
            self.first, self.cut, self.fails_at = block, None, None
            self.limit = None if self.limit is None else self.limit * block - random.randrange(block)
            self.chosen = [random.randint(1, 3 * block) for _ in self.chosen]
            self.missed = {at: RoundPlace(3, 2 * block + 1, 9 * block) for at in self.missed}

    def rule(self, index):
        return self.chosen[index]

    def peer_leaves(self, index):
        return self.peer is not None and index >= self.peer

    def trainer_stops(self, epochs_done):
        by_user = self.stops_at is not None and epochs_done >= self.stops_at
        return by_user or (self.cut is not None and epochs_done > self.cut)

    def others(self, index):
        """Where the others are when this data center comes to the end of a round of which it was left out."""
        return self.missed.get(index)


def reread(state):
    """What a checkpoint gives back."""
    return RunState.from_plain(json.loads(json.dumps(state.to_plain())))


class Shell:
    """Performs steps as the callback does.

    Args:
        world: in which it runs.
        state: where it begins.
        saves: the state is saved and loaded before and after everything that the run is told.
    """

    def __init__(self, world, state=None, saves=False):
        self.world, self.saves = world, saves
        self.run = self._run_from(state or RunState.new("dc0", world.first))
        self.trace, self.lines = [], []
        self.should_stop = False

    def _run_from(self, state):
        world = self.world
        return Run(state, rounds=world.rounds, overlap=world.overlap, block=world.block)

    @property
    def state(self):
        return self.run.state

    @property
    def wants_stop(self):
        return self.should_stop or self.world.trainer_stops(self.state.epochs_done)

    @property
    def is_done(self):
        limit = self.world.limit
        return self.wants_stop or (limit is not None and self.state.epochs_done >= limit)

    def tell(self, what, *facts):
        """Tell the run that something happened; returns its step."""
        step = getattr(self.run, what)(*facts)
        state = self.state
        assert len(state.unlogged) <= 2
        assert not (state.travelling is not None and state.due is Step.TAKE_MEAN)
        if self.saves:
            self.run = self._run_from(reread(state))
            assert self.state == state
        return step

    def follow(self, step, absent=False):
        """Perform what is due until nothing is."""
        while step not in (None, Step.STOP_TRAINER):
            step = self._perform(step, absent)
        self.should_stop |= step is Step.STOP_TRAINER

    def _perform(self, step, absent):
        world, state = self.world, self.state
        if step is Step.LOG_ROUND:
            logged = state.unlogged[0]
            self.trace.append((step.value, logged.index, logged.epochs))
            self.lines.append((logged.index, logged.epochs, logged.epochs_done, logged.decision))
            leaves = (self.wants_stop and not absent) or state.over or state.leaving
            return self.tell("round_logged", leaves or world.peer_leaves(logged.index))
        round_ = state.travelling or state.round
        self.trace.append((step.value, round_.index))
        if step is Step.ASK_WHO_GOES_ON:
            return self.tell("going_on", not (self.wants_stop or world.peer_leaves(round_.index)))
        report = replace(round_.report, wait_seconds=round_.report.wait_seconds + 1)
        if step is Step.FINISH_MEAN:
            return self.tell("mean_finished", self._decision(round_, False), report, world.limit)
        again = state.travelling is not None
        place = self.run.place(world.limit, leaving=not again and world.overlap and self.wants_stop)
        leaves = place.leaving or (world.peer_leaves(round_.index) and not again)
        if step is Step.BEGIN_MEAN and not (place.last or leaves):
            return self.tell("mean_begun", report)
        self.trace[-1] = (Step.TAKE_MEAN.value, round_.index)
        others = world.others(round_.index)
        if others is not None:
            round_ = replace(round_, index=others.round)
        return self.tell("mean_taken", self._decision(round_, leaves), report, others)

    def _decision(self, round_, leaves):
        return self.run.decision(round_, 0.5, self.world.rule(round_.index), leaves)

    # --- Lightning's hooks ------------------------------------------------------------------------------

    def on_train_epoch_start(self):
        self.tell("start_epoch", self.world.limit)
        self.tell("rate", 0.1)

    def on_batches(self):
        self.tell("trained", 8, 0.5)

    def on_last_batch(self):
        self.follow(self.tell("epoch_trained"))

    def on_train_epoch_end(self):
        self.on_last_batch()
        self.tell("report_shared", {"val_loss": 0.25})
        self.tell("count_epoch")

    def finish_epoch(self):
        self.follow(self.tell("close_epoch"))

    def on_train_end(self):
        self.follow(self.tell("trainer_ended"))

    def miss_round(self):
        self.follow(self.tell("miss_round", "out of luck", self.world.limit), absent=True)
        self.tell("count_epoch")
        self.follow(self.tell("close_epoch"), absent=True)

    def resume(self):
        self.follow(self.tell("resumed"))


HOOKS = ("on_train_epoch_start", "on_batches", "on_last_batch", "on_train_epoch_end", "finish_epoch")


def train(shells, world, begin=HOOKS[0], watch=lambda hook: None):
    """Call the hooks of one run on each of ``shells``, the run's own last.

    Args:
        shells: alike.
        world: in which they run.
        begin: the first hook that is called.
        watch: called after each hook, with its name.
    """
    shell, left = shells[-1], [] if begin == HOOKS[0] else list(HOOKS[HOOKS.index(begin) :])
    while left or not shell.is_done:
        hook, *left = left or HOOKS
        epoch = shell.state.epochs_done
        if hook == "on_last_batch" and epoch == world.cut:
            continue  # max_steps ends the epoch: its end comes all the same
        if hook == "on_batches" and epoch == world.fails_at:
            hook, left = "miss_round", []
        for one in shells:
            getattr(one, hook)()
        watch(hook)
    for one in shells:
        one.on_train_end()
    watch("on_train_end")
