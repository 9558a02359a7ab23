"""What a round's exchange costs beside a raw Allreduce of the same bytes. K ranks of this machine, one a data center.

Ours is everything from the local module to the shared one: the finite check, reading the tensors, the mean in float64,
the relative change, the decision, the commit into the module with the divergence. Packed is what any mean from module
to module costs: pack into a kept vector, MPI.Allreduce(IN_PLACE), divide, unpack; nothing is checked, measured or
refused. Raw is the Allreduce alone, of a vector that is there already, and no mean: a sum. Averager is PyTorch's
PeriodicModelAverager over gloo: it packs, takes a float32 Allreduce and unpacks, of the parameters without the buffers.
All take turns within one run; ratios are those of the medians.

    python benchmarks/exchange.py --centers 2 4 5 8 --parameters 58164298
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import Participant, answer, median, parser, ranks, repeated, replica, report

PIPELINE, WORK = "pipeline", ("read", "send", "sum", "norm", "divergence")
MODELS = {"resnet": "ResNet-152's tensors, with BatchNorm buffers", "one": "one tensor", "small": "tensors of 1000"}


def measure(parameters: int, tensors: str, rounds: int, codec: str, profile: bool) -> dict[str, Any]:
    """On every rank; the figures of the first."""
    from mpi4py import MPI
    from torch import distributed

    from colearn_hpc.algorithm.shared_model import FlatModel

    world = MPI.COMM_WORLD
    participant = Participant(codec)
    module = replica(parameters, tensors, seed=0)
    participant.start_from(module)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.01 * (1 + world.rank))
    model = FlatModel.of(module)
    vector, kept = torch.ones(model.size), torch.empty(model.size)
    unpack = model.unpack  # before it gets a clock, which is for ours alone
    spent: dict[str, list[float]] = {}
    if profile:
        watch(spent)

    def packed() -> None:
        model.pack(kept)
        world.Allreduce(MPI.IN_PLACE, kept.numpy())
        unpack(kept.div_(world.size))

    raw = functools.partial(world.Allreduce, MPI.IN_PLACE, vector.numpy())
    steps = {"ours": participant.average, "packed": packed, "raw": raw, "averager": periodic_averager(module)}
    seconds = repeated(rounds, steps, world.Barrier)
    steps.clear()
    distributed.destroy_process_group()  # or gloo's threads may outlive Python, and abort the process
    figures = {name: median(values) for name, values in seconds.items()}
    parts = {f"{name} (s)": median(values[1:]) for name, values in spent.items()}
    if profile and world.size > 1:
        # A pipeline that is not at work waits, or is between two steps of Python.
        work = sum(parts[f"{name} (s)"] for name in WORK)
        parts["wait (s)"] = max(0.0, parts.pop(f"{PIPELINE} (s)") - work)
    return {
        "centers": world.size,
        "floats": model.size,
        "tensors": tensors,
        "codec": codec,
        "ours (s)": figures["ours"],
        "packed (s)": figures["packed"],
        "raw (s)": figures["raw"],
        "averager (s)": figures["averager"],
        "ours / packed": figures["ours"] / figures["packed"],
        "ours / raw": figures["ours"] / figures["raw"],
        "ours / averager": figures["ours"] / figures["averager"],
        "best / best": min(seconds["ours"]) / min(seconds["raw"]),
        **parts,
    }


def periodic_averager(module: torch.nn.Module) -> Callable[[], None]:
    """PyTorch's, over gloo, of the same parameters. Collective over the world."""
    from mpi4py import MPI
    from torch import distributed
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

    world = MPI.COMM_WORLD
    if not distributed.is_initialized():
        here = "127.0.0.1", world.size
        store = None if world.rank else distributed.TCPStore(here[0], 0, here[1], True, wait_for_workers=False)
        port = world.bcast(store and store.port)
        store = store or distributed.TCPStore(here[0], port, here[1], False)
        distributed.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
    for parameter in module.parameters():
        parameter.grad = parameter.detach()  # it leaves out what has no gradient
    with warnings.catch_warnings(action="ignore"):  # that a period of 1 is no use
        averager = PeriodicModelAverager(period=1)
    return lambda: averager.average_parameters(module.parameters())


def watch(spent: dict[str, list[float]]) -> None:
    """Book wall time by stage, on this rank. It includes the time in which another rank has the core."""
    from colearn_hpc.algorithm import shared_model, slice_sums
    from colearn_hpc.mpi import pipeline, tensor_wire
    from colearn_hpc.trainer import averaging, round_end

    def timed(owner: Any, name: str, label: str) -> None:
        plain = getattr(owner, name)

        def with_clock(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                spent.setdefault(label, [0.0])
                spent[label][-1] += time.perf_counter() - start

        setattr(owner, name, with_clock)

    plain_take = averaging.MeanAverager.take

    def take(*args: Any, **kwargs: Any) -> Any:
        for values in spent.values():
            values.append(0.0)
        return plain_take(*args, **kwargs)

    averaging.MeanAverager.take = take  # type: ignore[method-assign]
    timed(round_end, "first_non_finite", "finite check")
    timed(pipeline.Pipeline, "_read", "read")
    timed(slice_sums.SliceSums, "mean", "sum")
    timed(slice_sums.SliceSums, "squares", "norm")
    timed(slice_sums.SliceSums, "distances", "divergence")
    timed(tensor_wire.MpiWire, "exchange", "send")
    timed(pipeline.Pipeline, "run", PIPELINE)
    timed(shared_model.FlatModel, "unpack", "commit")


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, nargs="+", default=[2, 4, 5, 8], help="K (default: %(default)s)")
    options.add_argument("--parameters", type=int, nargs="+", default=[58_164_298], help="(default: %(default)s)")
    options.add_argument("--tensors", nargs="+", default=["resnet"], choices=MODELS, help="(default: %(default)s)")
    options.add_argument("--codec", nargs="+", default=["fp32"], help="fp32, bf16, fp16, int8 (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="of each, in turn (default: %(default)s)")
    options.add_argument(
        "--mpirun", default="--oversubscribe --bind-to none", help="its options (default: %(default)s)"
    )
    options.add_argument("--slice", type=int, default=0, help="slices.SLICE, elements (default: the package's)")
    options.add_argument(
        "--ahead", type=int, default=0, help="chunks sent before one is awaited (default: the package's)"
    )
    options.add_argument("--profile", action="store_true", help="also wall seconds by stage, on the first rank")
    options.add_argument("--torch", action="store_true", help="codecs and sums by torch, as where numba is not")
    chosen = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        from colearn_hpc.algorithm import compiled, slices
        from colearn_hpc.mpi import pipeline

        if chosen.torch:
            compiled.WORTH = compiled.SUMS_WORTH = 1 << 62
        slices.SLICE = chosen.slice or slices.SLICE
        pipeline.GATHERING = chosen.ahead or pipeline.GATHERING
        answer(measure(chosen.parameters[0], chosen.tensors[0], chosen.rounds, chosen.codec[0], chosen.profile))
        return
    rows = []
    for count in chosen.centers:
        for parameters in chosen.parameters:
            for tensors in chosen.tensors:
                for codec in chosen.codec:
                    arguments = ["--parameters", parameters, "--tensors", tensors, "--codec", codec]
                    arguments += ["--rounds", chosen.rounds, *(["--profile"] if chosen.profile else [])]
                    arguments += ["--slice", chosen.slice, "--ahead", chosen.ahead]
                    arguments += ["--torch"] if chosen.torch else []
                    rows.append(ranks(count, __file__, *arguments, mpirun=chosen.mpirun.split()))
    report(rows, chosen)


if __name__ == "__main__":
    main()
