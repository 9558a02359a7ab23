"""Would survivors outlive a dead rank under ULFM? Leaders that meet by messages, one killed at a random moment.

Outside the package, which offers no ULFM: this is the test that an offer would have to pass. Under `mpirun --with-ft
ulfm` leaders compute with all torch threads, meet by messages tested between sleeps (as mpi/between.py), and take a
mean on a communicator of Create_group. One is killed by SIGKILL. A trial is passed when all others noticed, revoked,
shrank, went on for 3 rounds with right results, finalised, and were gone in time.

    python benchmarks/ulfm_trials.py --trials 50
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import environment, parser, report

from colearn_hpc.cli.launch import find_mpirun

ROUNDS_AFTER = 3
ARRIVAL, OUTCOME = 1, 2  # tags
FLOATS = 1_000_000


class Leader:
    """One leader's part. Notes in a file how far it has come."""

    def __init__(self, folder: Path, fatal: dict[int, float]) -> None:
        from mpi4py import MPI

        self.mpi, world = MPI, MPI.COMM_WORLD
        self.me = world.rank
        self.file = folder / f"rank{self.me}"
        world.Set_errhandler(MPI.ERRORS_RETURN)
        self.comm = world.Dup()
        self.take(self.comm)
        world.Barrier()
        self.say("started")
        if self.me in fatal:
            threading.Timer(fatal[self.me], os.kill, (os.getpid(), signal.SIGKILL)).start()

    def take(self, comm: Any) -> None:
        """Go on with this communicator."""
        self.comm = comm
        self.comm.Set_errhandler(self.mpi.ERRORS_RETURN)
        self.means = comm.Create_group(comm.Get_group())
        self.means.Set_errhandler(self.mpi.ERRORS_RETURN)

    def say(self, text: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{text}\n")

    def run(self) -> None:
        """Rounds until the death, and ROUNDS_AFTER after it."""
        number, left, repaired = 0, ROUNDS_AFTER, False
        while left:
            try:
                self.say(f"computing {number}")
                compute(random.Random(100 * number + self.me).uniform(0.02, 0.3))
                self.say(f"meeting {number}")
                self.meet(number)
                self.say(f"mean {number}")
                self.mean(number)
            except self.mpi.Exception as error:
                self.say(f"noticed {number}: {error.Get_error_string()}")
                self.comm.Revoke()
                self.means.Revoke()
                self.say("shrinking")
                shrunk = self.comm.Shrink()
                self.say(f"shrunk to {shrunk.size}")
                self.take(shrunk)
                number = self.comm.allreduce(number, op=self.mpi.MIN)  # some may have had this mean already
                left, repaired = ROUNDS_AFTER, True
                self.say(f"repaired, from {number}")
                continue
            number += 1
            left -= repaired
        self.say("barrier")
        self.comm.Barrier()
        self.say("finalising")
        self.mpi.Finalize()
        self.say("finalised")

    def meet(self, number: int) -> None:
        """A message to the first leader, and an answer from it."""
        comm, size = self.comm, self.comm.size
        if comm.rank:
            sent = comm.isend((number, self.me), 0, ARRIVAL)
            self._poll(lambda: comm.iprobe(0, OUTCOME))
            assert comm.recv(source=0, tag=OUTCOME) == number
            sent.Wait()
            return
        here = {0}
        while len(here) < size:
            self._poll(lambda: comm.iprobe(tag=ARRIVAL))
            status = self.mpi.Status()
            assert comm.recv(tag=ARRIVAL, status=status)[0] == number
            here.add(status.Get_source())
        for request in [comm.isend(number, k, OUTCOME) for k in range(1, size)]:
            request.Wait()

    def mean(self, number: int) -> None:
        """The blocking part, and whether its result is right."""
        vector = torch.full((FLOATS,), float(number))
        self.means.Allreduce(self.mpi.IN_PLACE, vector.numpy())
        if not bool((vector == number * self.means.size).all()):
            self.say("WRONG RESULT")
            os._exit(3)

    def _poll(self, arrived: Any) -> None:
        while not arrived():
            if self.comm.Get_failed().size or self.comm.Is_revoked():
                raise self.mpi.Exception(self.mpi.ERR_PROC_FAILED)
            time.sleep(0.002)


def compute(seconds: float) -> None:
    """Keep torch's threads busy."""
    end, matrix = time.monotonic() + seconds, torch.randn(300, 300)
    while time.monotonic() < end:
        matrix = torch.tanh(matrix @ matrix)


def trial(number: int, chosen: Any) -> dict[str, Any]:
    """One launch, one death; how far each survivor came."""
    chance = random.Random(f"{chosen.seed} {number}")
    victim, moment = chance.randrange(chosen.leaders), chance.uniform(0.2, 3.0)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(find_mpirun()), "--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none"]
        command += ["-n", str(chosen.leaders), sys.executable, __file__, "--worker", "--folder", folder]
        command += ["--fatal", json.dumps({victim: moment})]
        with Path(folder, "output").open("w") as output:
            process = subprocess.Popen(
                command, env=environment() | {"OMP_NUM_THREADS": "2"}, stdout=output, stderr=output
            )
        hung = False
        while process.poll() is None and len(list(Path(folder).glob("rank*"))) < chosen.leaders:
            time.sleep(0.1)  # starting takes long on a busy machine, and is none of ULFM's business
        try:
            process.wait(chosen.limit)
        except subprocess.TimeoutExpired:
            hung = True
            process.terminate()
            process.wait()
        files = {k: Path(folder, f"rank{k}") for k in range(chosen.leaders)}
        said = {k: file.read_text().splitlines() if file.exists() else ["not started"] for k, file in files.items()}
        survivors = [lines for k, lines in said.items() if k != victim]
        repaired = all(any(line.startswith("repaired") for line in lines) for lines in survivors)
        passed = repaired and not hung and all(lines[-1] == "finalised" for lines in survivors)
        output_lines = [
            line for line in Path(folder, "output").read_text(errors="replace").splitlines() if line.strip()
        ]
    return {
        "passed": passed,
        "hung": hung,
        "victim": victim,
        "died in": said[victim][-1].split()[0],
        "reached": sorted({" ".join(lines[-1].split()[:1]) for lines in survivors}),
        "code": process.returncode,
        "output": [] if passed else output_lines[:12],
    }


def main() -> None:
    """Count what passes."""
    options = parser(__doc__)
    options.add_argument("--trials", type=int, default=50, help="(default: %(default)s)")
    options.add_argument("--leaders", type=int, default=4, help="(default: %(default)s)")
    options.add_argument("--limit", type=float, default=60, help="s for a trial: more is a hang (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of victims and moments")
    options.add_argument("--folder", type=Path, help="for --worker")
    options.add_argument("--fatal", help="for --worker")
    chosen = options.parse_args()
    if chosen.worker:
        Leader(chosen.folder, {int(k): s for k, s in json.loads(chosen.fatal).items()}).run()
        return
    trials = []
    for number in range(chosen.trials):
        trials.append(trial(number, chosen))
        print(number, trials[-1], file=sys.stderr, flush=True)
    kinds = Counter(
        "passed" if one["passed"] else f"{'hung' if one['hung'] else 'fell'}: {', '.join(one['reached'])}"
        for one in trials
    )
    rows = [{"outcome": kind, "trials": count} for kind, count in kinds.most_common()]
    report(rows, chosen, trials=trials)


if __name__ == "__main__":
    main()
