"""What data centers agree on before whole numbers are sent: real messages, one thread for each data center."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import in_memory
import pytest
import torch
from torch import nn

from colearn_hpc import CoLearning
from colearn_hpc.algorithm.encoding import Ground
from colearn_hpc.algorithm.shared_model import FlatModel, weighted_mean
from colearn_hpc.between import Offer
from colearn_hpc.errors import ConfigurationError, ParticipantError, PeerError, PrivacyError
from colearn_hpc.protocol.plain import decode, encode
from colearn_hpc.protocol.run import RoundPlace
from colearn_hpc.trainer.averaging import SharedModelAverager
from colearn_hpc.trainer.round_end import Contribution, Contributions
from colearn_hpc.trainer.secure_sums import SecureSums
from colearn_hpc.trainer.sums import Mean, Void, WholeSums

NAMES = ("a", "b", "c", "d")


class World:
    """Data centers of one rank each in one process.

    Attributes:
        told: all that was said, by topic: index -> content.
    """

    def __init__(self, count, settings, folder, separate=False):
        self.separate, self.settings = separate, settings
        self.folder, self.count = folder, count
        self.barrier, self.told = threading.Barrier(count, timeout=30), {}
        self.lie = lambda index, topic, content: content
        self.leaves = None  # (topic, index): not there any more
        self.sums, self.comes_back = [], None  # who was killed alone, and is told what it was told

    def place(self, index):
        def meet(topic, content):
            if index == self.comes_back:
                return SimpleNamespace(contents=dict(self.told[str(topic)]))
            said = self.told.setdefault(str(topic), {})
            said[index] = decode(encode(self.lie(index, topic, content)))
            self.barrier.wait()
            left = {self.leaves[1]} if self.leaves and self.leaves[0] in str(topic) else set()
            return SimpleNamespace(contents={k: one for k, one in said.items() if k not in left})

        return SimpleNamespace(
            alone=False,
            center=SimpleNamespace(index=0 if self.separate else index, name=NAMES[index], is_leader=True),
            between=SimpleNamespace(
                index=index,
                names=NAMES[: self.count],
                roster=tuple(range(self.count)),
                replays=False,
                separate=self.separate,
            ),
            journal=SimpleNamespace(credentials=None),
            site=SimpleNamespace(bcast=lambda content: content, largest=lambda *numbers: list(numbers)),
            means=SimpleNamespace(carries=True, part=lambda size: slice(0, size)),
            conversation=SimpleNamespace(meet=meet),
        )

    def everyone(self, act):
        """``act(index)`` in every data center at once; what each returned or raised."""

        def one(index):
            try:
                return act(index)
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, range(self.count)))

    def start(self, run="run"):
        """All processes begin, or begin again after a kill."""

        self.sums = self.everyone(lambda index: self.begin(index, run))
        return self.sums

    def begin(self, index, run="run"):
        place = self.place(index)
        hiding = SecureSums(place, self.settings, self.folder / NAMES[index]) if self.settings.secure else None
        if hiding is not None:
            hiding.join(run)
        return WholeSums(place, self.settings, hiding)

    def alone(self, index, model, previous, round_=0):
        """One is killed, and comes back to a federation: the others are where they were."""
        self.comes_back = index
        place = RoundPlace(round_, 1, round_)
        given = Contributions(
            dict.fromkeys(range(self.count), Contribution(model.size, 0, place)), (0, 1, 2), 3, "uniform"
        )
        return self.begin(index).prepare(Mean(model, model, previous, [0.01, 0.01], given, 0))

    def prepare(self, models, previous, round_=0, giving=None, sizes=(0.01, 0.01), examples=None):
        givers = range(self.count) if giving is None else giving
        place = RoundPlace(round_, 1, round_)
        contributions = {k: Contribution(models[0].size, 0, place) for k in givers}
        if examples is not None and not self.settings.secure:
            contributions = {k: Contribution(models[0].size, examples[k], place) for k in givers}
        weighting = "uniform" if self.settings.secure else self.settings.weighting
        given = Contributions(contributions, tuple(range(self.count)), self.count, weighting)
        own = examples or [0] * self.count

        def act(index):
            sizes_here = sizes(index) if callable(sizes) else sizes
            mean = Mean(models[index], models[index], previous, list(sizes_here), given, own[index])
            return self.sums[index].prepare(mean)

        return self.everyone(act), given.weights

    def mean(self, models, previous, **how):
        """(each one's mean, what was sent)."""
        found, weights = self.prepare(models, previous, **how)
        offers = []
        for one in found:
            assert not isinstance(one, Exception | Void), one
            result = torch.full((models[0].size,), math.nan)
            offers.append(Offer(one.source, result, weights, models[0].parameter_size, previous, one.encoding))
        wire = in_memory.mean(offers, weights)
        for offer in offers:  # all that was sent is on disk
            getattr(offer.encoding, "kept", lambda stop: None)(None)
        return [offer.result for offer in offers], wire


def settings_of(secure=False, sums="fixed32", **more):
    return CoLearning(exchange={"sums": sums}, privacy={"secure": True} if secure else None, **more).settings


def made_up(count, step=0.01, seed=0):
    """(models, the shared model before)."""
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(300, generator=generator)
    models = []
    for _ in range(count):
        row = previous + step * torch.randn(300, generator=generator)
        net = nn.Linear(20, 10)
        net.register_buffer("seen", row[200:].clone())
        net.weight.data.copy_(row[:200].view(10, 20))
        models.append(FlatModel([("weight", net.weight)], [("seen", net.seen)]))
    return models, previous


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_secure_and_plain_sums_have_the_same_bits(tmp_path, weighting):
    models, previous = made_up(4)
    examples = [10, 200, 3, 40]
    found = []
    for secure in (False, True):
        world = World(4, settings_of(secure, "fixed64", weighting=weighting), tmp_path)
        world.start()
        means, _ = world.mean(models, previous, examples=examples)
        assert all(torch.equal(mean, means[0]) for mean in means)
        found.append(means[0])
    weights = [float(n) for n in examples] if weighting == "examples" else [1.0] * 4
    exact = weighted_mean([model.pack() for model in models], weights)
    assert torch.allclose(found[0], exact, atol=1e-6) and torch.allclose(found[1], exact, atol=1e-6)
    assert torch.equal(*found)


def test_numbers_of_examples_are_told_to_nobody(tmp_path):
    models, previous = made_up(3)
    world = World(3, settings_of(True, "fixed64", weighting="examples"), tmp_path)
    world.start()
    world.mean(models, previous, examples=[11, 22, 33])
    told = [int.from_bytes(word, "little") for word in world.told["round 0: examples under masks"].values()]
    assert sum(told) % 2**64 == 66 and all(word > 1000 for word in told)


def test_no_sum_wraps_around_unseen(tmp_path):
    """A step that is a thousand times as large as the last one: all make room, and nothing was sent before."""
    models, previous = made_up(3, step=10.0)
    world = World(3, settings_of(), tmp_path)
    world.start()
    means, _ = world.mean(models, previous)
    exact = weighted_mean([model.pack() for model in models], [1.0] * 3)
    assert torch.allclose(means[0], exact, atol=1e-4)
    proposals = [topic for topic in world.told if "scales" in topic]
    assert len(proposals) > 1
    assert not any(one[1] for one in world.told[proposals[0]].values())


def test_scales_follow_from_what_all_know(tmp_path):
    """Steps of very different sizes that fit: what is proposed is the same to the last exponent."""
    proposed = []
    for step in (0.01, 0.0001):
        models, previous = made_up(3, step=step)
        world = World(3, settings_of(), tmp_path)
        world.start()
        world.mean(models, previous)
        proposed.append(world.told["round 0: 0 scales"])
    assert proposed[0] == proposed[1]


def test_who_missed_a_mean_takes_the_others_scales(tmp_path):
    """Its last step is another: the coarsest that anyone proposes are taken."""
    models, previous = made_up(3)
    world = World(3, settings_of(), tmp_path)
    world.start()
    means, _ = world.mean(models, previous, sizes=lambda index: (0.01, 0.02) if index < 2 else (0.03, 0.001))
    assert all(torch.equal(mean, means[0]) for mean in means)
    first, second = (world.told[f"round 0: {n} scales"] for n in (0, 1))
    assert len({tuple(one[0]) for one in first.values()}) == 2 and len({tuple(one[0]) for one in second.values()}) == 1


@pytest.mark.parametrize("lie", [None, [1], "x", [[1, 2], True, False, True, 0, 0], [[1, 10**9], True, False, True, 0]])
def test_scales_that_make_no_sense_end_the_run(tmp_path, lie):
    models, previous = made_up(3)
    world = World(3, settings_of(), tmp_path)
    world.start()
    world.lie = lambda index, topic, content: lie if index == 1 else content
    found, _ = world.prepare(models, previous)
    assert all(isinstance(one, PeerError) for one in found)


# --- masks --------------------------------------------------------------------------------------------


def test_a_sum_that_was_cut_off_is_taken_again_though_models_are_trained_anew(tmp_path):
    models, previous = made_up(3)
    world = World(3, settings_of(True), tmp_path)
    world.start()
    before, first = world.mean(models, previous)
    again, _ = made_up(3, seed=99)  # training did not repeat itself
    world.start()
    after, second = world.mean(again, previous)
    assert torch.equal(before[0], after[0])
    assert world.told["round 0: 1 mask keys"] and not {row for *_, row in first.log if len(row) > 64} & {
        row for k, to, tag, row in second.log if tag == in_memory.TO_OWNER and len(row) > 64
    }, "fresh masks"


def sent_by(prepared):
    """All that goes out of a data center."""
    prepared.encoding.again()
    numbers = prepared.source.vector
    kind, _ = prepared.encoding.begin(Ground(torch.empty(len(numbers)), None, [1.0], len(numbers)))
    return kind.write(numbers, slice(0, len(numbers)), torch.empty_like(numbers)).clone()


def sending(folder):
    """The second of three sites has begun to send: models, the last shared one, the world, its sum, what goes out."""
    models, previous = made_up(3)
    world = World(3, settings_of(True), folder, separate=True)
    world.start()
    found, _ = world.prepare(models, previous)
    return models, previous, world, found[1], sent_by(found[1])


def test_who_is_killed_alone_sends_the_very_same_bytes(tmp_path):
    """In a federation the others go on with the masks that they have: nothing new may be seen, whatever is trained."""
    _, previous, world, _, before = sending(tmp_path)
    trained, _ = made_up(3, seed=99)
    after = world.alone(1, trained[1], previous)
    assert torch.equal(sent_by(after), before) and not torch.equal(before, after.source.vector)


@pytest.mark.parametrize("same", [True, False])
def test_who_is_killed_before_its_numbers_are_whole_on_disk(tmp_path, same):
    """It may send what has the very same numbers, and nothing else."""
    _, previous, world, mine, before = sending(tmp_path)
    mine.encoding.kept(None)
    (tmp_path / "b" / "sum-round000000.bin").unlink()
    trained, _ = made_up(3, seed=0 if same else 99)
    if same:
        assert torch.equal(sent_by(world.alone(1, trained[1], previous)), before)
    else:
        with pytest.raises(ParticipantError, match="what it has trained since is another one"):
            world.alone(1, trained[1], previous)


def test_who_is_killed_before_it_has_sent_anything_has_its_masks_again(tmp_path):
    """It had told its key, and the others count on it."""
    models, previous, world, mine, before = sending(tmp_path)
    mine.encoding.kept(None)
    for name in ("sum.json", "sum-round000000.bin"):
        (tmp_path / "b" / name).unlink()
    assert torch.equal(sent_by(world.alone(1, models[1], previous)), before)


def test_who_is_set_back_alone_sends_nothing_of_an_earlier_round(tmp_path):
    models, previous = made_up(3)
    world = World(3, settings_of(True), tmp_path, separate=True)
    world.start()
    world.prepare(models, previous)
    trained, _ = made_up(3, seed=5)
    world.prepare(trained, previous, round_=1)
    after = world.alone(1, models[1], previous)
    with pytest.raises(PrivacyError, match="has gone on past this sum"):
        sent_by(after)


@pytest.mark.parametrize("topic", ["scales", "mask keys", "examples under masks"])
def test_who_leaves_before_a_sum_is_begun_makes_it_void(tmp_path, topic):
    """In a federation the others go on at any meeting of a round."""
    models, previous = made_up(4)
    secure = settings_of(True, "fixed64", weighting="examples", on_failure="continue_without")
    world = World(4, secure, tmp_path, separate=True)
    world.start()
    world.leaves = (topic, 2)
    found, _ = world.prepare(models, previous, examples=[1, 2, 3, 4])
    assert [one for k, one in enumerate(found) if k != 2] == [Void("c left before its sum was taken")] * 3


def test_only_some_were_killed_before_they_had_stored_theirs(tmp_path):
    models, previous = made_up(3)
    world = World(3, settings_of(True), tmp_path)
    world.start()
    before, _ = world.mean(models, previous)
    for name in ("sum.json", "sum-round000000.bin"):
        (tmp_path / "b" / name).unlink()
    world.start()
    after, _ = world.mean(models, previous)
    assert torch.equal(before[0], after[0])


def test_a_round_with_others_than_before_is_void(tmp_path):
    models, previous = made_up(4)
    world = World(4, settings_of(True, on_failure="continue_without"), tmp_path)
    world.start()
    world.mean(models, previous)
    found, _ = world.prepare(models, previous, giving=[0, 1, 2])
    assert all(isinstance(one, Void) and "begun with others" in one.why for one in found)
    found, _ = world.prepare(models, previous, round_=1, giving=[0, 1, 2])  # the same vectors, another round
    assert any(isinstance(one, PrivacyError) and "train on before the next sum" in str(one) for one in found)
    trained, _ = made_up(4, seed=5)
    means, _ = world.mean(trained, previous, round_=1, giving=[0, 1, 2])
    assert torch.allclose(means[3], weighted_mean([m.pack() for m in trained[:3]], [1.0] * 3), atol=1e-6)


def test_a_sum_of_two_is_void(tmp_path):
    models, previous = made_up(3)
    world = World(3, settings_of(True, on_failure="continue_without"), tmp_path)
    world.start()
    found, _ = world.prepare(models, previous, giving=[0, 2])
    assert all(one == Void("a sum over a, c would show single models; 3 are needed") for one in found)


@pytest.mark.parametrize("separate", [False, True])
def test_who_is_left_alone_shows_its_model_to_nobody(tmp_path, separate):
    """All others were left out: a mean of one would be its model, for a coordinator and for those who come back."""
    models, _ = made_up(3)
    settings = settings_of(True, on_failure="continue_without")
    world = World(3, settings, tmp_path, separate)
    world.start()
    averager = SharedModelAverager(world.place(0), settings, world.sums[0])
    place = RoundPlace(0, 1, 0)
    given = Contributions({0: Contribution(models[0].size, 0, place)}, (0,), 3, "uniform")
    end = SimpleNamespace(report=SimpleNamespace(examples=0))
    found = averager._prepare(models[0], models[0], given, end)
    assert found == Void("a sum over a would show single models; 3 are needed")


def test_two_data_centers_are_refused(tmp_path):
    found = World(2, settings_of(True), tmp_path).start()
    assert all(isinstance(one, ConfigurationError) and "found 2" in str(one) for one in found)


@pytest.mark.parametrize("topic", ["site keys", "mask keys"])
def test_a_key_that_somebody_changed_sends_nothing(tmp_path, topic):
    models, previous = made_up(3)
    world = World(3, settings_of(True), tmp_path)
    kept = {}

    def lie(index, about, content):
        if topic not in str(about) or index != 1:
            return content
        if topic == "mask keys":  # that of an earlier round
            return kept.setdefault("first", content)
        return b"short"

    world.lie = lie
    started = world.start()
    if topic == "site keys":
        assert all(isinstance(one, PrivacyError) and "no Ed25519 key" in str(one) for one in started)
        return
    world.mean(models, previous)
    trained, _ = made_up(3, seed=5)
    found, _ = world.prepare(trained, previous, round_=1)
    assert all(isinstance(one, PrivacyError) and "the sum is not begun" in str(one) for one in found)
    assert (tmp_path / "a" / "sum.json").read_text().count('"round": 0')
