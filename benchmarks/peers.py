"""One round of exchange and a small training job: ours and peers that run on one machine without a network.

The same participants, tensors and bytes for all. Peers are installed from the registry, each into an environment of its
own. Flower as it is deployed, and NVFlare, are measured beside a federation (federation.py).

    python benchmarks/peers.py --folder runs/peers --participants 5 --parameters 58164298
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import REPOSITORY, environment, median, parser, replica, report

from colearn_hpc.cli.launch import find_mpirun

PROGRAMS = Path(__file__).with_name("peer_programs")
NEEDS = {
    "flower-message": ["flwr==1.42.0", "numpy"],
    "flower-simulation": ["flwr[simulation]==1.42.0", f"torch=={torch.__version__.split('+')[0]}"],
    "nvflare": ["nvflare==2.9.0", "numpy"],
    "torchft": ["torchft==0.2.0", "numpy", f"torch=={torch.__version__.split('+')[0]}"],
    "appfl": ["appfl==1.12.0", "mpi4py", f"torch=={torch.__version__.split('+')[0]}"],
}
# name -> (environment, program, its arguments, ranks beyond the participants or None without mpirun)
PEERS: dict[str, tuple[str, str, list[str], int | None]] = {
    "ours": ("", "ours_peer.py", [], 0),
    "ours, int8": ("", "ours_peer.py", ["int8"], 0),
    "gloo, per parameter": ("", "gloo_peer.py", ["parameter"], None),
    "gloo, PeriodicModelAverager": ("", "gloo_peer.py", ["periodic"], None),
    "torchft, LocalSGD": ("torchft", "torchft_peer.py", ["local_sgd"], None),
    "torchft, DiLoCo": ("torchft", "torchft_peer.py", ["diloco"], None),
    "Flower, simulation": ("flower-simulation", "flower_simulation.py", [], None),
    "APPFL": ("appfl", "appfl_peer.py", [], 1),
}


def installed(folder: Path, name: str) -> Path:
    """The Python of a peer's environment, which is made if it is not there."""
    if not name:
        return Path(sys.executable)
    python = (folder / name / "bin" / "python").absolute()
    if not python.exists():
        venv.create(folder / name, with_pip=True)
    have = subprocess.run([python, "-m", "pip", "freeze"], text=True, capture_output=True).stdout
    if not all(need.split("==")[0].split("[")[0] in have for need in NEEDS[name]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS[name]], check=True)
    return python


def run(folder: Path, name: str, participants: int, rounds: int, epochs: int) -> dict[str, Any]:
    """Start a peer's program; what it found, and the wall time from its start to its end."""
    where, program, more, extra = PEERS[name]
    command = [str(installed(folder, where)), str(PROGRAMS / program), str(folder), str(rounds), str(epochs), *more]
    if extra is not None:
        mpirun = find_mpirun()
        assert mpirun is not None, "no mpirun"
        options = ["--oversubscribe", "--bind-to", "none", "-n", str(participants + extra)]
        command = [mpirun, *options, command[0], "-m", "mpi4py", *command[1:]]
    variables = environment()
    if where:
        variables |= {"PYTHONPATH": str(REPOSITORY)}  # of ours only the one module that APPFL's program asks for
    start = time.perf_counter()
    done = subprocess.run(command, env=variables, text=True, capture_output=True, timeout=1800)
    wall = time.perf_counter() - start
    found = [line[6:] for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not found:
        sys.exit(f"{name}: {command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return json.loads(found[-1]) | {"whole": wall}


def write_job(folder: Path, participants: int, parameters: int) -> None:
    from sklearn.datasets import load_digits

    shapes = [tuple(p.shape) for p in replica(parameters).parameters()]
    (folder / "job.json").write_text(json.dumps({"participants": participants, "shapes": shapes}))
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    x = (digits.images[order, None] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    np.savez(folder / "digits.npz", x=x[:1437], y=y[:1437], test_x=x[1437:], test_y=y[1437:])


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, default=Path("runs/peers"), help="environments (default: %(default)s)")
    options.add_argument("--participants", type=int, default=5, help="(default: %(default)s)")
    options.add_argument("--parameters", type=int, default=58_164_298, help="(default: %(default)s)")
    options.add_argument("--rounds", type=int, default=4, help="exchanges of a start (default: %(default)s)")
    options.add_argument("--turns", type=int, default=2, help="starts of each, in turn (default: %(default)s)")
    options.add_argument("--epochs", type=int, default=3, help="local epochs of the small job (default: %(default)s)")
    options.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="(default: all)")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    write_job(chosen.folder, chosen.participants, chosen.parameters)
    seconds: dict[str, list[float]] = {name: [] for name in chosen.peers}
    jobs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen.peers}
    versions = {}
    for _ in range(chosen.turns):
        for name in chosen.peers:
            found = run(chosen.folder, name, chosen.participants, chosen.rounds, 0)
            seconds[name] += found["seconds"][1:]  # the first warms up
            versions[name] = f"{found['version']}, torch {found['torch']}"
            print(f"{name}: {found['seconds']}", file=sys.stderr, flush=True)
            jobs[name].append(run(chosen.folder, name, chosen.participants, 8, chosen.epochs))
    reference = median(seconds[chosen.peers[0]])
    rows = [
        {
            "peer": name,
            "exchange (s)": median(seconds[name]),
            f"/ {chosen.peers[0]}": median(seconds[name]) / reference,
            "small job (s)": median([job["whole"] for job in jobs[name]]),
            "accuracy": median([job["accuracy"] for job in jobs[name]]),
            "version": versions[name],
        }
        for name in chosen.peers
    ]
    del chosen.folder  # says nothing about the figures
    report(rows, chosen, seconds=seconds)


if __name__ == "__main__":
    main()
