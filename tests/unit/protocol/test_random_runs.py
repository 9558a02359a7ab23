"""Random runs: the same steps in the same order, and the same place after every hook, as with the flags of 0.1.0; and
from whatever moment a run is resumed, it writes the lines that are left."""

import itertools
import random

import pytest
from legacy_flags import Flags
from random_runs import HOOKS, Shell, World, reread, train

from colearn_hpc.protocol.run import Shown, Step, StopReason


def place(flags):
    return (flags.round, flags.epoch_in_round, flags.epochs_done, flags.untaken, flags.shows_shared)


def place_of(state):
    shared = state.shown is Shown.SHARED
    return (state.round.index, state.epoch, state.epochs_done, state.dirty, shared)


@pytest.mark.parametrize("saves", [True, False])
def test_as_the_flags(saves):
    """Also where the state is saved and loaded at every point."""
    seen = set()
    for seed in range(600) if saves else range(600, 3000):
        world = World(random.Random(seed))
        flags, shell = Flags(world), Shell(world, saves=saves)

        def same(hook, seed=seed, flags=flags, shell=shell):
            assert shell.trace == flags.trace, (seed, hook)
            assert place_of(shell.state) == place(flags), (seed, hook)
            if hook in HOOKS[:4]:  # T of a round that has not begun is not planned
                assert shell.state.round.epochs == flags.local_epochs, (seed, hook)
            assert shell.should_stop == flags.should_stop or hook == "on_train_end", (seed, hook)

        train([flags, shell], world, watch=same)
        seen |= {step for step, *_ in shell.trace}
        state, logged = shell.state, [line[0] for line in shell.lines]
        assert not state.dirty and state.travelling is None and state.unlogged == (), seed
        assert logged == sorted(set(logged)), seed
        steps = {b - a for a, b in itertools.pairwise(logged)}
        assert logged[0] in (0, 3) and (steps <= {1} or world.missed), seed
    assert seen == {step.value for step in Step} - {Step.STOP_TRAINER.value}


@pytest.mark.parametrize("block", [1, 5])
def test_resumed_at_any_moment(block):
    """Between two hooks: at an epoch's end, in its middle, or while another callback writes a checkpoint."""
    seen = set()
    for seed in range(1500):
        generator = random.Random(seed)
        world, moments = World(generator, block), []
        whole = Shell(world)

        def watch(hook, whole=whole, moments=moments):
            refused = hook == "on_last_batch" and whole.state.ends_round  # by EpochEnd
            if hook != "on_train_end" and not whole.should_stop and not refused:
                moments.append((hook, whole.state, len(whole.lines)))

        train([whole], world, watch=watch)
        if not moments:
            continue
        hook, state, written = generator.choice(moments)
        shell = Shell(world, reread(state))
        shell.resume()
        # An epoch that was counted is not trained or counted again.
        goes_on = {"on_train_epoch_end": HOOKS[0], "finish_epoch": HOOKS[0], "miss_round": HOOKS[0]}
        train([shell], world, begin=goes_on.get(hook) or HOOKS[HOOKS.index(hook) + 1])
        assert shell.lines == whole.lines[written:], (seed, hook)
        assert place_of(shell.state) == place_of(whole.state), (seed, hook)
        seen.add((hook, state.travelling is not None, len(state.unlogged)))
    ends = {("on_train_epoch_end", travels, lines) for travels in (False, True) for lines in (0, 1)}
    assert ends <= seen and ("finish_epoch", True, 0) in seen


def test_in_steps_every_round_has_its_own():
    """Whatever the blocks are: T is what the rule chose, and the rounds' steps add up to the run's."""
    for seed in range(1500):
        world, blocks = World(random.Random(seed), block=5), []
        world.missed = {}
        shell = Shell(world, saves=True)

        def watch(hook, shell=shell, blocks=blocks):
            if hook == HOOKS[0]:
                blocks.append(shell.state.block)

        train([shell], world, watch=watch)
        done = 0
        for index, epochs, epochs_done, decision in shell.lines:
            before, chosen = ([world.first, world.first, *world.chosen][index + at] for at in (0, 1))
            least = min(world.block, before) if index and world.overlap else 1  # a block, before T is known
            at_end = world.limit is not None and epochs_done >= world.limit
            early = decision.stop is not None and (world.stops_at or 0) < epochs_done
            assert epochs == max(chosen, least) or at_end or early, seed
            assert epochs_done == done + epochs or early, seed
            done = epochs_done
        assert all(1 <= one <= world.block for one in blocks), seed
        assert not (shell.state.dirty or shell.state.travelling or shell.state.unlogged), seed


@pytest.mark.parametrize(("rounds", "stop"), [(3, StopReason.ROUNDS), (2, StopReason.ROUNDS), (5, None), (None, None)])
def test_a_finished_run_is_resumed_with_other_rounds(rounds, stop):
    """T = 2, so that the first epoch of a further round would show a reason to stop that does not hold any more."""
    world = World(random.Random(0))
    world.__dict__ |= {"overlap": False, "limit": None, "stops_at": None, "cut": None, "peer": None, "fails_at": None}
    world.__dict__ |= {"first": 2, "chosen": [2] * 80, "missed": {}, "rounds": 3}
    whole = Shell(world)
    train([whole], world)
    assert whole.state.stop is StopReason.ROUNDS
    world.rounds, world.limit = rounds, 9
    shell = Shell(world, reread(whole.state))
    shell.resume()
    assert shell.state.stop is stop and shell.should_stop == (stop is not None)
    train([shell], world)
    assert [line[:3] for line in shell.lines] == ([] if stop else [(3, 2, 8), (4, 1, 9)])
