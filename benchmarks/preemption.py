"""A run that is requeued at random moments, on the Slurm that this machine belongs to: what does it cost, and are the
bits those of a run that nobody disturbed?

    python benchmarks/preemption.py [--requeues 10] [--seed 0]

Needs sbatch on PATH and two idle nodes; takes about a minute per requeue, most of it Slurm's own delay.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "cluster"))

from slurm_cluster import PROGRAMS, SLURM, Cluster, array, bits, edited, fit  # noqa: E402

TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requeues", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds per batch, which make the run last")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="preemption-"))
    environment = dict(os.environ) | {"PYTHONPATH": str(PROGRAMS), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cluster = Cluster(folder, environment)

    whole = submit(cluster, "whole", 0.0)
    cluster.finish(whole)

    moments = random.Random(arguments.seed)
    job = submit(cluster, "disturbed", arguments.pause)
    log = folder / "disturbed" / "centers" / "dc0" / "log.txt"
    done = 0
    requeued = []
    while done < arguments.requeues:
        if started(log) <= done:
            if cluster.state(job)["JobState"] == "COMPLETED":
                print(f"the run was finished after {done} requeues: make it longer (--pause)")
                break
            time.sleep(0.2)
            continue
        time.sleep(moments.uniform(0.0, 10.0))
        cluster("scontrol", "requeue", job)
        requeued.append(time.time())
        done += 1
        print(f"requeue {done} at {datetime.now():%H:%M:%S}", flush=True)
    cluster.finish(job, seconds=3600)

    text = log.read_text()
    times = re.findall(r"(\S+ \S+) INFO training", text)
    starts = [datetime.fromisoformat(stamp.replace(",", ".")).timestamp() for stamp in times]
    pauses = [after - before for before, after in zip(requeued, starts[1:], strict=True)]
    in_epoch = len(re.findall(r"training from round \d+, epoch \d+, batch [1-9]", text))
    print(f"{done} requeues, of which {in_epoch} continued in mid-epoch")
    print(f"from requeue to training again: median {statistics.median(pauses):.1f} s, worst {max(pauses):.1f} s")
    same = bits(folder / "disturbed") == bits(folder / "whole")
    print(f"the same bits as the undisturbed run: {same}")
    sys.exit(not same)


def submit(cluster: Cluster, name: str, pause: float) -> str:
    place = cluster.folder / f"{name}-script"
    place.mkdir()
    arguments = array(fit(cluster.folder, name, rounds=3, pause=pause))
    return cluster.submit(edited(SLURM / "colearn.sbatch", place, CENTERS="2", FIT=arguments), *TWO_NODES)


def started(log: Path) -> int:
    return log.read_text().count("training from") if log.exists() else 0


if __name__ == "__main__":
    main()
