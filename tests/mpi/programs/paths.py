"""Checks the mean on all its paths against float64: chunk boundaries, shapes, dtypes, codecs, absent data centers.

Every rank knows every rank's model (they are drawn from seeds), so each computes the reference by itself.

usage: paths.py SEED
"""

import math
import sys

import numpy as np
import torch
from mpi4py import MPI

from colearn_hpc.algorithm import compiled
from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.coded_steps import Coded
from colearn_hpc.algorithm.encoding import Plain
from colearn_hpc.algorithm.shared_model import FlatModel, relative_change, weighted_mean
from colearn_hpc.algorithm import slices
from colearn_hpc.between import Offer, Vector
from colearn_hpc.mpi import pipeline
from colearn_hpc.mpi.mean import MeanUnderWay, begin_mean
from colearn_hpc.mpi.tensor_wire import CollectiveWire

world = MPI.COMM_WORLD
K, ME = world.size, world.rank
# Of a step's largest value in a block; the mean is encoded once more.
BOUNDS = {"fp32": 0.0, "bf16": 2 * 2**-8, "fp16": 2 * 2**-10, "int8": 2 / 250}
if ME % 2:  # every other leader codes and sums in machine code, where numba is: the bits are the same
    compiled.WORTH = compiled.SUMS_WORTH = 0
draw = np.random.default_rng(int(sys.argv[1]))
COLLECTIVES = CollectiveWire(world, torch.device("cpu"))


def begin(
    comm, source, result, weights, parameters=None, previous=None, codec=None, gathering=None, wire=None, ahead=0
) -> MeanUnderWay:
    """A mean over ``comm``; norms and codec apply to all of it where nothing else is said."""
    size = source.size if parameters is None else parameters
    offer = Offer(source, result, weights, size, previous, codec or Plain(), gathering)
    return begin_mean(comm, offer, weights, wire, ahead)


class Late:
    """A source as a GPU is one: what was asked for is in its place after ``wait``, and never before."""

    on_gpu = False  # no pinned memory without a GPU

    def __init__(self, plain: FlatModel) -> None:
        self.plain, self.size, self.dtype = plain, plain.size, plain.dtype
        self.begun: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(self, start: int, stop: int, scratch: torch.Tensor) -> torch.Tensor:
        target = scratch[: stop - start].fill_(math.nan)
        self.begun.append((target, self.plain.read(start, stop, torch.empty_like(target)).clone()))
        return target

    def wait(self) -> None:
        for target, values in self.begun:
            target.copy_(values)
        self.begun.clear()


def model(center: int, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], split: int) -> FlatModel:
    generator = torch.Generator().manual_seed(1000 + center)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    # One that does not lie in one piece.
    tensors = [t.t().contiguous().t() if t.dim() == 2 else t for t in tensors]
    named = [(f"t{i}", t) for i, t in enumerate(tensors)]
    return FlatModel(named[:split], named[split:])


def one(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], codec: str, weights: list[float]) -> None:
    split = int(draw.integers(0, len(shapes) + 1))
    models = [model(k, shapes, dtypes, split) for k in range(K)]
    mine, vectors = models[ME], [m.pack() for m in models]
    assert sum(e.length for e in mine.entries) == mine.size == len(vectors[0])
    if not weights[ME]:
        for tensor in mine._targets:
            tensor.fill_(math.nan)  # whoever is absent may be broken: it must not matter
    generator = torch.Generator().manual_seed(7)
    previous = torch.randn(mine.parameter_size, generator=generator, dtype=mine.dtype)
    result = torch.full((mine.size,), math.nan, dtype=mine.dtype)
    chosen = codec_of(codec)
    coded = None if chosen is None else Coded(chosen)
    facts = begin(world, mine, result, weights, mine.parameter_size, previous, coded).finish()

    late = torch.empty_like(result)
    fresh = None if chosen is None else Coded(chosen)
    begin(world, Late(mine), late, weights, mine.parameter_size, previous, fresh).finish()
    assert torch.equal(late, result), "read before it was there"

    # Begun, and moved on by each rank as often as it likes: some are ahead, some wait for others to begin.
    passing = torch.full((mine.size,), math.nan, dtype=mine.dtype)
    fresh = None if chosen is None else Coded(chosen)
    seldom = 1 + mine.size % 7
    under_way = begin(world, mine, passing, weights, mine.parameter_size, previous, fresh, gathering=seldom)
    for _ in range(3 * ME):
        under_way.advance()
    assert under_way.finish().bytes_sent == facts.bytes_sent
    assert torch.equal(passing, result), "the way is not the same"

    # More under way, as over a long link: some chunks, or all of them.
    for ahead in (slices.SLICE * 4 * K * 7, 1 << 30):
        many = torch.full((mine.size,), math.nan, dtype=mine.dtype)
        fresh = None if chosen is None else Coded(chosen)
        told = begin(world, mine, many, weights, mine.parameter_size, previous, fresh, ahead=ahead).finish()
        assert torch.equal(many, result) and repr(told) == repr(facts), "more under way is another mean"

    # By all-to-all, as from GPU to GPU.
    grouped = torch.full((mine.size,), math.nan, dtype=mine.dtype)
    fresh = None if chosen is None else Coded(chosen)
    told = begin(world, mine, grouped, weights, mine.parameter_size, previous, fresh, wire=COLLECTIVES).finish()
    assert torch.equal(grouped, result) and repr(told) == repr(facts), "another wire is another mean"

    giving = [k for k in range(K) if weights[k]]
    exact = weighted_mean([vectors[k] for k in giving], [weights[k] for k in giving])
    p = mine.parameter_size
    if codec == "fp32":
        assert torch.equal(result, exact), (shapes, weights)
        again = vectors[ME].clone()
        if weights[ME]:
            begin(world, Vector(again), again, weights).finish()  # in place
            assert torch.equal(again, exact)
        else:
            begin(world, Vector(again.fill_(math.nan)), again, weights).finish()
    else:
        assert torch.equal(result[p:], exact[p:]), "only parameters are encoded"
        largest = max((float((vectors[k][:p] - previous).abs().max()) for k in giving), default=0.0) if p else 0.0
        error = float((result[:p] - exact[:p]).abs().max()) if p else 0.0
        assert error <= BOUNDS[codec] * largest + 1e-6, (codec, error, largest)
    assert len(set(world.allgather(result.numpy().tobytes()))) == 1, "not the same bits on all leaders"
    assert facts.finite == bool(torch.isfinite(result).all())
    assert math.isclose(facts.squares.relative_change, relative_change(result[:p], previous), rel_tol=1e-12)
    assert len(set(world.allgather(facts.squares))) == 1
    if not weights[ME]:
        assert math.isnan(facts.divergence)
    elif p and codec == "fp32":
        apart = relative_change(vectors[ME][:p], result[:p])
        assert math.isclose(facts.divergence, apart, rel_tol=1e-3), (facts.divergence, apart)
    everything = world.allreduce(facts.bytes_sent)
    if codec == "fp32":
        # Who gives nothing saves all that it would send to the other slices' owners.
        own = [sum(c.bounds[k + 1] - c.bounds[k] for c in slices.chunks(mine.size, p, K)) for k in range(K)]
        unsent = sum(mine.size - own[k] for k in range(K) if not weights[k])
        assert everything == (2 * (K - 1) * mine.size - unsent) * result.element_size()


for size in (16, 256):
    slices.SLICE = size
    chunk = size * K
    sizes = sorted({0, 1, 2, K - 1, K, K + 1, size - 1, size, size + 1, chunk - 1, chunk, chunk + 1, 5 * chunk + 3})
    for n in sizes:
        for codec in BOUNDS:
            one([(n,)], [torch.float32], codec, [1.0] * K)
    for pipeline.GATHERING, pipeline.SPREADING in ((1, 1), (2, 0), (1, 4), (5, 2)):
        for _ in range(6):
            count = int(draw.integers(1, 12))
            kinds = [(), (1,), (0,), (3, 5), (int(draw.integers(1, 3 * chunk)),)]
            shapes = [kinds[i] for i in draw.integers(0, len(kinds), count)]
            some = (
                [torch.float32] * 3 + [torch.bfloat16, torch.float16] + ([torch.float64] if draw.random() < 0.3 else [])
            )
            dtypes = [some[i] for i in draw.integers(0, len(some), count)]
            weights = [float(w) for w in draw.integers(0, 4, K)]
            weights[int(draw.integers(0, K))] = 2.0
            for codec in BOUNDS:
                one(shapes, dtypes, codec, weights)

# A model that is not finite is not hidden by any codec, and all leaders know.
slices.SLICE = 64
for codec in BOUNDS:
    for bad in (math.nan, math.inf, -math.inf):
        vector = torch.ones(1000)
        vector[567] = bad if ME == K - 1 else 1.0
        result, chosen = torch.empty(1000), codec_of(codec)
        coded = None if chosen is None else Coded(chosen)
        assert not begin(world, Vector(vector), result, [1.0] * K, 1000, torch.zeros(1000), coded).finish().finite

# Error feedback: what messages lacked so far, and nothing else, is missing in what all know.
coded = Coded(codec_of("int8"))
shared = torch.zeros(5000)
steps = torch.zeros(5000, dtype=torch.float64)
for number in range(20):
    local = [shared + torch.randn(5000, generator=torch.Generator().manual_seed(100 * number + k)) for k in range(K)]
    result = torch.empty(5000)
    begin(world, Vector(local[ME]), result, [1.0] * K, 5000, shared, coded).finish()
    coded.commit()
    steps += sum(w.double() - shared.double() for w in local) / K
    shared = result
# A residual is at most half a scale's step, 20 rounds later as well: errors do not add up.
assert float((shared.double() - steps).abs().max()) < 0.1, float((shared.double() - steps).abs().max())
alone = begin(MPI.COMM_SELF, Vector(torch.ones(3)), torch.empty(3), [1.0]).finish()
assert alone.finite and math.isnan(alone.divergence)
print("all paths equal", flush=True)
