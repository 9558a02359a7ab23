"""Means through the coordinator in one process, without gRPC: what sites send, what comes back, and what is void."""

import asyncio
import math
import threading
from types import SimpleNamespace

import grpc
import in_memory
import numpy as np
import pytest
import torch
from made_up import PARAMETERS, SIZE, masks_of, models, offer_of, whole

from colearn_hpc.algorithm import slices
from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.coded_steps import Coded
from colearn_hpc.algorithm.encoding import Plain
from colearn_hpc.algorithm.shared_model import weighted_mean
from colearn_hpc.between import Offer, Vector
from colearn_hpc.errors import FederationError, LeftBehindError
from colearn_hpc.federation import wire
from colearn_hpc.federation.coordinator.means import MeanLostError, Means, SiteLeftError
from colearn_hpc.federation.coordinator.store import Came, Store
from colearn_hpc.federation.mean import FederatedMean, hello_of
from colearn_hpc.federation.wire import WireError
from colearn_hpc.privacy.keys import Transcript
from colearn_hpc.privacy.masked import MaskedNumbers
from colearn_hpc.protocol.messages import Arrival, Outcome, Present, Topic, TopicKind

NAMES = ("a", "b", "c", "d")
_CODES = {
    MeanLostError: grpc.StatusCode.ABORTED,
    SiteLeftError: grpc.StatusCode.FAILED_PRECONDITION,
    WireError: grpc.StatusCode.INVALID_ARGUMENT,
}


class Refusal(grpc.RpcError):
    def __init__(self, error):
        self.error = error

    def code(self):
        return next(code for kind, code in _CODES.items() if isinstance(self.error, kind))

    def details(self):
        return str(self.error)


class Answers:
    """What a stream of gRPC's is to a site."""

    def __init__(self, loop, serve, frames):
        self.loop, self.given, self.frames = loop, asyncio.Queue(), frames
        self.task = asyncio.run_coroutine_threadsafe(self.run(serve), loop)

    async def run(self, serve):
        async def asked():
            while (frame := await asyncio.to_thread(next, self.frames, None)) is not None:
                yield frame

        try:
            async for answer in serve(asked()):
                await self.given.put(answer)
            await self.given.put(None)
        except Exception as error:
            await self.given.put(Refusal(error))

    def __iter__(self):
        return self

    def __next__(self):
        found = asyncio.run_coroutine_threadsafe(self.given.get(), self.loop).result(30)
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise StopIteration
        return found

    def cancel(self):
        self.task.cancel()


class Run:
    """A coordinator's means, and sites that take part in them."""

    def __init__(self, folder, patience=None, may_miss=False):
        self.folder, self.settings, self.left, self.seen = folder, (patience, may_miss), [], {}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.begin()

    def begin(self):
        patience, may_miss = self.settings
        self.store = self.call(self._store)
        leave_out = (lambda site, topic: self.left.append(NAMES[site])) if may_miss else None
        self.means = self.call(lambda: Means(NAMES, self.store, patience, leave_out, lambda *what, **facts: None))

    def _store(self):
        return Store(self.folder / "state", "run", "digest")

    def call(self, act):
        async def now():
            return act()

        return asyncio.run_coroutine_threadsafe(now(), self.loop).result(30)

    def again(self):
        """The coordinator was killed."""
        self.call(self.store.close)
        self.begin()

    def round(self, number, present):
        came = {k: Came(Arrival(Topic(TopicKind.ROUND, number), Present()), "") for k in present}
        arrivals = tuple(came[k].arrival if k in came else None for k in range(len(NAMES)))
        outcome = Outcome(Topic(TopicKind.ROUND, number), arrivals)
        self.call(lambda: self.store.conclude(outcome, came, True, range(len(NAMES))))

    def link(self, site, cut=None):
        """``cut``: after so many rows the link breaks, once."""
        links = SimpleNamespace(where="here", awaited={}, cuts=[cut] if cut is not None else [])

        def mean(frames):
            hello = next(frames)
            found = wire.Hello.from_plain(wire.unpack(wire.parse_frame(hello)[1]), len(NAMES))
            rows = self._recorded(site, frames, links.cuts.pop() if links.cuts else None)
            return Answers(self.loop, lambda asked: self.means.serve(site, found, asked), rows)

        links.mean = mean
        return links

    def _recorded(self, site, frames, cut):
        for count, frame in enumerate(frames):
            if count == cut:
                return
            self.seen.setdefault(site, []).append(frame)
            yield frame

    def begin_mean(self, site, offer, number, present, cut=None):
        hello = hello_of(number + 1, offer, present)
        nothing = lambda *what: False  # noqa: E731
        return FederatedMean(self.link(site, cut), hello, offer, site, nothing, nothing, nothing)

    def take(self, offers, number=0, cut=None):
        """Facts by site."""
        present = tuple(sorted(offers))
        self.round(number, present)
        cuts = cut or {}
        under_way = {k: self.begin_mean(k, offer, number, present, cuts.get(k)) for k, offer in offers.items()}
        return {k: mean.finish() for k, mean in under_way.items()}

    def end(self):
        self.call(self.store.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(**settings)``; vectors are cut into many chunks."""
    monkeypatch.setattr(wire, "CHUNK", 1040)
    monkeypatch.setattr(slices, "SLICE", 16)
    made = []

    def make(**settings):
        made.append(Run(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.end()


def bare(rows, previous, bits=32, sites=None):
    """Offers of whole numbers, and the numbers."""
    found = [whole(row, previous, len(rows), bits) for row in rows]
    weights = [1.0 if k < len(rows) else 0.0 for k in range(len(NAMES))]
    pairs = zip(found, strict=True)
    return [
        Offer(Vector(numbers), torch.full((SIZE,), math.nan), weights, PARAMETERS, previous, encoding)
        for ((encoding, numbers),) in pairs
    ]


def masked(offers, attempt=0):
    """The same under masks."""
    scales = offers[0].encoding.scales
    roster, size = NAMES[: len(offers)], SIZE + 1
    masks = masks_of(Transcript("r", 0, attempt, roster, size, scales.bits, scales.exponents, (1.0,) * len(offers)))
    for offer, mask in zip(offers, masks, strict=True):
        known = {name: getattr(offer.encoding, name) for name in offer.encoding.__dataclass_fields__}
        result = torch.full((SIZE,), math.nan)
        yield Offer(offer.source, result, offer.weights, PARAMETERS, offer.previous, MaskedNumbers(**known, masks=mask))


@pytest.mark.parametrize("bits", [32, 64])
def test_sums_have_the_bits_of_one_mpi_world_with_masks_or_without(run, bits):
    """... and so has what is measured, though a link breaks in the middle and everyone sends once more."""
    previous, rows = models(3)
    world = bare(rows, previous, bits)
    in_memory.mean(world, [1.0] * 3)
    here = run()
    plain = bare(rows, previous, bits)
    facts = here.take(dict(enumerate(plain)))
    hidden = list(masked(bare(rows, previous, bits)))
    secure = here.take(dict(enumerate(hidden)), 1, cut={1: 1})
    for k in range(3):
        assert torch.equal(plain[k].result, world[k].result) and torch.equal(hidden[k].result, world[k].result)
        assert facts[k].squares == secure[k].squares and facts[k].distance == secure[k].distance > 0
        assert facts[k].bytes_sent == SIZE * bits // 8


def test_what_goes_out_once_more_is_what_went_out(run):
    """Under masks nothing new is seen when a link breaks."""
    previous, rows = models(3)
    here = run()
    here.take(dict(enumerate(masked(bare(rows, previous)))), cut={0: 1})
    for site in range(3):
        by_chunk = {}
        for frame in here.seen[site]:
            by_chunk.setdefault(wire.parse_frame(frame)[0].chunk, set()).add(frame)
        assert all(len(frames) == 1 for frames in by_chunk.values())
    assert any(len(here.seen[k]) > len(set(here.seen[k])) for k in range(3))


@pytest.mark.parametrize("killed", [False, True])
def test_a_sum_is_void_for_all_where_a_giver_is_lost(run, killed):
    """There is no second roster, for any of them and at any time, though the coordinator is killed."""
    previous, rows = models(4)
    here = run(patience=0.3, may_miss=True)
    offers = dict(enumerate(bare(rows, previous)))
    here.round(0, range(4))
    under_way = {k: here.begin_mean(k, offers[k], 0, tuple(range(4))) for k in range(3)}
    found = {k: mean.finish() for k, mean in under_way.items()}
    assert {one.void for one in found.values()} == {"d left while its sum was taken"} and here.left == ["d"]
    if killed:
        here.again()
    assert here.begin_mean(0, offers[0], 0, tuple(range(4))).finish().void  # it comes again
    with pytest.raises(LeftBehindError, match="d was left out of mean 1"):
        here.begin_mean(3, offers[3], 0, tuple(range(4))).finish()
    assert not list((here.folder / "state").glob("mean-*"))
    assert torch.isnan(offers[0].result).all()


def test_a_mean_of_weights_is_taken_without_who_is_lost(run):
    previous, rows = models(4)
    here = run(patience=0.3, may_miss=True)
    offers = {k: offer_of(Plain(), rows[k], previous, [1.0] * 4) for k in range(4)}
    here.round(0, range(4))
    under_way = {k: here.begin_mean(k, offers[k], 0, tuple(range(4))) for k in range(3)}
    assert not any(mean.finish().void for mean in under_way.values())
    assert torch.equal(offers[0].result, weighted_mean(rows[:3], [1.0] * 3))


def test_the_last_shared_model_is_handed_on(run):
    """A mean of its own in the round: from one who has it to all."""
    previous, rows = models(3)
    here = run()
    weights = [0.0, 1.0, 0.0, 0.0]
    lasts = {
        k: Offer(Vector(previous if k else torch.zeros(SIZE)), torch.zeros(SIZE), weights, 0, last_model=True)
        for k in range(3)
    }
    here.take(lasts)
    assert all(torch.equal(offer.result, previous) for offer in lasts.values())
    offers = bare(rows, previous)
    here.take(dict(enumerate(offers)))
    assert not torch.isnan(offers[0].result).any()


@pytest.mark.parametrize("name", ["bf16", "fp16", "int8"])
def test_coded_steps_have_the_bits_of_their_oracle(run, name):
    """A site codes its whole step, the coordinator its mean; with int8 both remember what a message lacked, over a
    killed coordinator too."""
    codec, here = codec_of(name), run()
    previous, _ = models(3)
    coded = [Coded(codec) for _ in range(3)]
    lacks, mean_lacks = [torch.zeros(PARAMETERS) for _ in range(3)], torch.zeros(PARAMETERS)
    for number in range(3):
        _, rows = models(3, seed=number)
        offers = {k: offer_of(coded[k], rows[k], previous, [1.0, 2.0, 3.0, 0.0]) for k in range(3)}
        here.take(offers, number, cut={1: 1} if number == 1 else None)
        steps = []
        for k in range(3):
            step = rows[k][:PARAMETERS] - previous[:PARAMETERS] + lacks[k]
            steps.append(recoded(codec, step))
            lacks[k] = step - steps[k] if codec.feedback else lacks[k]
            coded[k].commit()
        mean = weighted_mean(steps, [1.0, 2.0, 3.0]) + mean_lacks
        said = recoded(codec, mean)
        mean_lacks = mean - said if codec.feedback else mean_lacks
        rest = weighted_mean([row[PARAMETERS:] for row in rows], [1.0, 2.0, 3.0])
        expected = torch.cat([previous[:PARAMETERS] + said, rest])
        assert all(torch.equal(offer.result, expected) for offer in offers.values())
        if codec.feedback:
            assert all(torch.equal(one.residual, lack) for one, lack in zip(coded, lacks, strict=True))
        previous = expected
        here.again()


def test_who_takes_a_kept_mean_remembers_what_its_messages_lacked(run):
    """It was killed after it had sent: it codes the same step, and sends nothing."""
    codec, here = codec_of("int8"), run()
    previous, rows = models(3)
    first = {k: offer_of(Coded(codec), rows[k], previous, [1.0] * 3 + [0.0]) for k in range(3)}
    here.take(first)
    again = offer_of(Coded(codec), rows[1], previous, [1.0] * 3 + [0.0])
    assert here.begin_mean(1, again, 0, (0, 1, 2)).finish().bytes_sent == 0
    assert torch.equal(again.result, first[1].result)
    assert torch.equal(again.encoding.pending, first[1].encoding.pending)


def recoded(codec, values):
    message, decoded = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8), torch.empty(len(values))
    codec.encode(values, message)
    codec.decode(message, decoded)
    return decoded


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "<i2"},
        {"dtype": "<i4", "codec": "int8", "coded": 10},
        {"codec": "int4", "coded": 10},
        {"codec": "int8", "coded": 2000},
        {"codec": "int8", "coded": -1},
        {"codec": "", "coded": 1},
        {"part": 2},
        {"part": True},
        {"part": 1},  # the last shared model, from several
    ],
)
def test_vectors_that_there_are_not(change):
    plan = {"number": 1, "size": 1000, "dtype": "<f4", "weights": (1.0, 1.0), "present": (0, 1)}
    assert wire.Hello.from_plain(wire.Hello(**plan).to_plain(), 2)
    with pytest.raises(WireError, match="no mean"):
        wire.Hello.from_plain(wire.Hello(**(plan | change)).to_plain(), 2)


def test_sites_that_mean_different_sums_are_refused(run):
    previous, rows = models(3)
    here = run()
    here.round(0, (0, 1, 2))
    first = here.begin_mean(0, bare(rows, previous)[0], 0, (0, 1, 2))
    second = here.begin_mean(1, offer_of(Plain(), rows[1], previous, [1.0] * 3 + [0.0]), 0, (0, 1, 2))
    with pytest.raises(FederationError, match="where the others offer"):
        second.finish()
    first.abandon()
    assert np.isnan(first._offer.result.numpy()).all()
