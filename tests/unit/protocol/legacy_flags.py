"""The flags of version 0.1.0 that said where a run stands, as a reference for random runs.

Transcribed from its callback, without Lightning, MPI and tensors: what all data centers do together is a line of
``trace``.
"""

from dataclasses import dataclass


@dataclass
class Books:
    """A round whose mean is awaited, or whose line is to be written."""

    round: int
    local_epochs: int
    epochs_done: int


class Flags:
    """Named as they were; the methods are the hooks that changed them.

    Args:
        world: what the rule, the Trainer's limits, the user and the other data centers will do.
    """

    def __init__(self, world):
        self.world = world
        self.round = self.epoch_in_round = self.epochs_done = 0
        self.rule_epochs = self.local_epochs = world.first
        self.stop_reason = ""
        self.averaged = self.untaken = self.aside = self.should_stop = False
        self.ended = self.landed = None
        self.trace = []

    def on_train_epoch_start(self):
        if self.epoch_in_round == 0:
            self.local_epochs = self._planned_epochs()

    def on_batches(self):
        self.untaken = True

    def on_last_batch(self):
        if self.ended is not None and self.ended.round < self.round:
            self._land()
        if self.epoch_in_round == self.local_epochs - 1 and not self.averaged and self.ended is None:
            self._average()

    def on_train_epoch_end(self):
        self.on_last_batch()
        self.epochs_done += 1
        self.epoch_in_round += 1

    def finish_epoch(self):
        if self.landed is not None:
            self._close(self.landed, self._wants_stop)
            self.aside, self.landed = False, None
        if self.ended is not None and self.ended.round == self.round:
            ended = self.ended
            self._begin_round()
            self.trace.append(("ask who goes on", ended.round))
            if self._wants_stop or self.world.peer_leaves(ended.round):
                self._land(for_good=True)
        if self.averaged:
            self._close_round(self._wants_stop)
        if self.stop_reason:
            self.should_stop = True

    def on_train_end(self):
        if self.untaken:
            self._average(leaving=True)
            self._close_round(True)

    def miss_round(self):
        if self.epoch_in_round == 0:
            self.local_epochs = self._planned_epochs()
        self.epochs_done += self.local_epochs - 1 - self.epoch_in_round
        self.epoch_in_round = self.local_epochs - 1
        self._average()
        self.epochs_done += 1
        self._close_round(False)
        self.should_stop = bool(self.stop_reason)  # it trained one more epoch before it found out

    @property
    def shows_shared(self):
        return self.aside or self.averaged

    @property
    def _wants_stop(self):
        return self.should_stop or self.world.trainer_stops(self.epochs_done)

    def _planned_epochs(self):
        left = (self.world.limit or -1) - self.epochs_done
        return min(self.rule_epochs, left) if left > 0 else self.rule_epochs

    def _is_last(self, books):
        by_rounds = self.world.rounds is not None and books.round + 1 >= self.world.rounds
        return by_rounds or (self.world.limit is not None and self.world.limit <= books.epochs_done)

    def _decide(self, books, leaves):
        stop = "a data center's Trainer ended" if leaves else ""
        if self.world.rounds is not None and books.round + 1 >= self.world.rounds:
            stop = "rounds"
        return self.world.rule(books.round), stop

    def _average(self, leaving=False):
        ending = Books(self.round, self.local_epochs, self.epochs_done + 1)
        leaves = leaving or (self.world.overlap and self._wants_stop) or self.world.peer_leaves(self.round)
        self.untaken = False
        if self.world.overlap and not (self._is_last(ending) or leaves):
            self.trace.append(("begin the mean", self.round))
            self.ended = ending
            return
        self.trace.append(("take the mean", self.round))
        self.aside = False
        if (others := self.world.others(self.round)) is not None:  # it had been left out, and catches up
            self.round, self.local_epochs, self.epochs_done = others.round, others.local_epochs, others.epochs_done
            self.epoch_in_round = others.local_epochs - 1
            ending = Books(others.round, others.local_epochs, others.epochs_done + 1)
        self.rule_epochs, self.stop_reason = self._decide(ending, leaves)
        self.averaged = True

    def _land(self, for_good=False):
        landed, self.ended = self.ended, None
        self.trace.append(("finish the mean", landed.round))
        self.rule_epochs, self.stop_reason = self._decide(landed, leaves=False)
        self.aside = not for_good
        if for_good:
            self.stop_reason = self.stop_reason or "a data center's Trainer ended"
            self._close(landed, True)
            self.should_stop = True
        else:
            self.landed = landed
            self.local_epochs = self._planned_epochs()

    def _close(self, books, leaves):
        self.trace.append(("log the round", books.round, books.local_epochs))
        if not self.stop_reason and (leaves or self.world.peer_leaves(books.round)):
            self.stop_reason = "a data center's Trainer ended"

    def _close_round(self, leaves):
        self._close(Books(self.round, self.local_epochs, self.epochs_done), leaves)
        self._begin_round()

    def _begin_round(self):
        self.round += 1
        self.epoch_in_round = 0
        self.averaged = False
