"""How long a dead rank goes unnoticed: one is killed (SIGKILL), and the clock runs until mpirun and all ranks are gone.

A real `colearn-hpc fit` of 2 data centers x 2 ranks on this machine, Open MPI without ULFM. Four moments: a rank dies
that trains; one that trains while the other data center waits for it; one that waits itself; one in the exchange.

    python benchmarks/dead_rank.py --repeats 5
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from common import environment, median, parser, report

from colearn_hpc.cli.launch import find_mpirun

RANKS, CENTERS = 4, 2
LIMIT = 120.0  # s: more is a hang
# What is rehearsed to bring the run there, and who is killed when it is.
MOMENTS = {
    "training": ("hang@center=dc1,rank=1,round=1,step=1,seconds=0.01", 3),
    "training, awaited": ("hang@center=dc1,rank=1,round=1,step=1,seconds=600", 3),
    "waiting": ("hang@center=dc1,rank=0,round=1,step=1,seconds=600", 0),
    "exchange": ("hang@center=dc1,rank=0,round=1,at=exchange,seconds=0.01", 2),
}


def trial(moment: str, folder: Path, floats: int) -> dict[str, Any]:
    """One run, one death."""
    fault, victim = MOMENTS[moment]
    marker = f"COLEARN_BENCHMARK={uuid.uuid4().hex}"
    env = environment() | {"OMPI_MCA_mpi_warn_on_fork": "0"} | dict([marker.split("=")])
    env["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{env['PYTHONPATH']}"
    command = [str(find_mpirun()), "--oversubscribe", "--bind-to", "none", "-n", str(RANKS), sys.executable, "-m"]
    command += ["colearn_hpc", "fit", "--model", "network_cut.Slow", "--model.width", str(floats // 100)]
    command += ["--centers", str(CENTERS), "--colearning.rounds", "3", "--colearning.local_epochs", "1"]
    command += ["--colearning.local_epochs_rule", "fle", "--trainer.accelerator", "cpu"]
    command += ["--trainer.enable_progress_bar", "false", "--runs", str(folder), "--name", "run", "--inject+", fault]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    center = folder / "run" / "centers"
    awaited = moment in ("waiting", "training, awaited")
    while not (center / "dc1" / "faults.jsonl").exists() or (awaited and not _waits(center / "dc0" / "status.json")):
        if process.poll() is not None:
            sys.exit(f"the run ended too early ({process.returncode}):\n{(folder / 'output.txt').read_text()}")
        time.sleep(0.002)
    there = _processes(marker)
    killed = time.monotonic()
    os.kill(there[victim], signal.SIGKILL)
    while (seconds := time.monotonic() - killed) < LIMIT and (process.poll() is None or _processes(marker)):
        time.sleep(0.02)
    hung = _processes(marker)
    for pid in hung.values():
        os.kill(pid, signal.SIGKILL)
    if hung:
        process.kill()
    return {"seconds": seconds, "code": process.wait(), "hung": len(hung)}


def _waits(status: Path) -> bool:
    try:
        return bool(json.loads(status.read_text())["state"] == "waiting")
    except (OSError, ValueError):
        return False


def _processes(marker: str) -> dict[int, int]:
    """What still runs of the launch that has ``marker`` in its environment: ranks by rank, others below zero."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker in values and state not in "ZX":
            rank = next((v.partition("=")[2] for v in values if v.startswith("OMPI_COMM_WORLD_RANK=")), None)
            number = -1 - len(found) if rank is None or int(rank) in found else int(rank)
            found[number] = int(folder.name)
    return found


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--moments", nargs="+", default=list(MOMENTS), choices=list(MOMENTS), help="(default: all)")
    options.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    options.add_argument("--floats", type=int, default=20_000_000, help="of the model (default: %(default)s)")
    chosen = options.parse_args()
    rows = []
    for moment in chosen.moments:
        found = []
        for _ in range(chosen.repeats):
            with tempfile.TemporaryDirectory() as folder:
                found.append(trial(moment, Path(folder), chosen.floats))
                print(moment, found[-1], file=sys.stderr, flush=True)
        seconds = [one["seconds"] for one in found]
        rows.append(
            {
                "died in": moment,
                "trials": len(found),
                "gone after, median (s)": median(seconds),
                "worst (s)": max(seconds),
                "exit codes": sorted({one["code"] for one in found}),
                "hung": sum(one["hung"] for one in found),
            }
        )
    report(rows, chosen)


if __name__ == "__main__":
    main()
