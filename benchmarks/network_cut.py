"""What becomes of a run when a data center's link is cut: for 5 s, for 60 s, for ever; in training and in the exchange.

Each data center is a network namespace with a link of its own; a real `colearn-hpc fit` runs across them. The link is
cut in round 1. Said of each run: how it ended and what the user saw, when the last rank was gone, on either side of
the cut, and whether the shared model has the bits of the run that nobody disturbed; after `--resume` where it did not
end by itself. Needs root, ip, tc and Open MPI.

    python benchmarks/network_cut.py --seconds 5 60 inf --moments training exchange
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _namespaces import Namespaces
from common import environment, parser, report
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.cli.launch import find_mpirun

BATCHES, ROUNDS = 8, 3
CUT = 1  # the data center whose link is cut; launcher and first leader sit in 0

import pytorch_lightning as pl  # noqa: E402 - common has made torchvision importable


class Slow(pl.LightningModule):
    """A linear model as wide as the link is to be busy for, and a pause per batch."""

    def __init__(self, width: int = 1000, pause: float = 0.5) -> None:
        super().__init__()
        self.layer, self.pause = nn.Linear(100, width), pause

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        loss: Tensor = self.layer(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        number = int(re.sub(r"\D", "", os.environ["COLEARN_CENTER"]))  # each data center has examples of its own
        examples = torch.randn(4 * BATCHES, 100, generator=torch.Generator().manual_seed(number))
        return DataLoader(TensorDataset(examples), batch_size=4)


class Run:
    """One `colearn-hpc fit` across the namespaces."""

    def __init__(self, net: Namespaces, chosen: Any, folder: Path, name: str, *more: str) -> None:
        self.net, self.pause = net, chosen.pause
        self.folder, self.log = folder / name, folder / f"{name}{''.join(more)}.txt"
        ranks = chosen.centers * chosen.ranks
        # The launcher sits in data center 0, as it would, so that it too lives by the settings there.
        command = [
            "ip",
            "netns",
            "exec",
            net.hosts[0],
            str(find_mpirun()),
            *net.mpirun_options(chosen.ranks),
            *chosen.mpirun.split(),
            "-n",
            str(ranks),
        ]
        command += [sys.executable, "-m", "colearn_hpc", "fit", "--model", "network_cut.Slow"]
        command += ["--model.width", str(chosen.floats // 100), "--model.pause", str(chosen.pause)]
        command += ["--colearning.rounds", str(ROUNDS), "--colearning.local_epochs", "1"]
        command += ["--colearning.local_epochs_rule", "fle", "--centers", str(chosen.centers)]
        if chosen.round_timeout:
            command += ["--colearning.round_timeout", str(chosen.round_timeout)]
        command += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
        command += ["--runs", str(folder), "--name", name, *more]
        env = environment() | {"OMPI_MCA_mpi_warn_on_fork": "0"}
        env["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{env['PYTHONPATH']}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def rounds(self) -> int:
        """How many are logged."""
        file = self.folder / "rounds.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def wait_for(self, moment: str) -> None:
        """Until the run is there, in round 1. Ends the program if it never is."""
        while not self.rounds():
            self._must_live()
            time.sleep(0.02)
        time.sleep(2 * self.pause)  # the round before has left the wire, and this one's training is under way
        while moment == "exchange":
            before = self.net.bytes_out(CUT)
            time.sleep(0.1)
            self._must_live()
            if self.net.bytes_out(CUT) - before > 30_000:  # news and statuses are far less
                return

    def ends(self, limit: float, mended_after: float) -> dict[str, Any]:
        """Watch until nothing of the run is left, at most ``limit`` s; the link comes back after ``mended_after`` s."""
        start, mended, gone = time.monotonic(), False, {}
        while (seconds := time.monotonic() - start) < limit:
            if not mended and seconds >= mended_after:
                self.net.mend(CUT)
                mended = True
            left = self.net.processes()
            for host in self.net.hosts:
                gone.setdefault(host, round(seconds, 1)) if host not in left else gone.pop(host, None)
            if self.process.poll() is not None:
                gone.setdefault("mpirun", round(seconds, 1))
                if not left:
                    break
            time.sleep(0.2)
        hung = sorted({"mpirun", *self.net.hosts} - set(gone))
        if hung:
            self.net.kill_all()
            self.process.kill()
        self.net.mend(CUT)
        return {"exit code": self.process.wait(), "gone after (s)": gone, "hung": hung}

    def bits(self) -> str:
        """A digest of the shared model, empty where there is none of the last round."""
        if self.rounds() < ROUNDS:
            return ""
        weights = torch.load(self.folder / "shared.ckpt", weights_only=True)["state_dict"]
        return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()

    def said(self) -> list[str]:
        """The lines of the output that tell the user of the failure."""
        signs = ("error", "rank died", "did not arrive", "lost", "silent", "Connection", "terminated", "aborted")
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        return list(dict.fromkeys(line for line in lines if any(sign in line for sign in signs)))[:8]

    def _must_live(self) -> None:
        if self.process.poll() is not None:
            sys.exit(f"the run ended too early ({self.process.returncode}):\n{self.log.read_text()}")


def trial(net: Namespaces, chosen: Any, folder: Path, reference: str, moment: str, seconds: float) -> dict[str, Any]:
    """Cut the link once, watch, and resume if need be."""
    run = Run(net, chosen, folder, f"{moment}-{seconds:g}")
    run.wait_for(moment)
    net.cut(CUT)
    found = run.ends(chosen.limit, seconds)
    row = {"cut in": moment, "for (s)": "ever" if math.isinf(seconds) else seconds, **found, "said": run.said()}
    row["bits"] = run.bits() == reference
    if not row["bits"]:
        again = Run(net, chosen, folder, f"{moment}-{seconds:g}", "--resume")
        row["resumed: exit code"] = again.ends(chosen.limit, 0)["exit code"]
        row["resumed: bits"] = again.bits() == reference
        row["resumed: rounds"] = again.rounds()
    return row


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, default=3, help="K (default: %(default)s)")
    options.add_argument("--ranks", type=int, default=2, help="ranks per data center (default: %(default)s)")
    options.add_argument("--seconds", type=float, nargs="+", default=[5, 60, math.inf], help="inf: for ever")
    options.add_argument("--moments", nargs="+", default=["training", "exchange"], help="(default: %(default)s)")
    options.add_argument("--megabits", type=int, default=20, help="of each link (default: %(default)s)")
    options.add_argument("--floats", type=int, default=2_000_000, help="of the model (default: %(default)s)")
    options.add_argument("--pause", type=float, default=0.5, help="seconds per batch (default: %(default)s)")
    options.add_argument("--round-timeout", type=float, help="of the run (default: none)")
    options.add_argument("--retries", type=int, default=0, help="net.ipv4.tcp_retries2 (default: the kernel's)")
    options.add_argument("--limit", type=float, default=1500, help="s after the cut: a hang (default: %(default)s)")
    options.add_argument("--mpirun", default="", help="more options for mpirun, in one string")
    options.add_argument("--name", default="cut", help="of the namespaces (default: %(default)s)")
    options.add_argument("--network", default="10.93.0", help="of their addresses (default: %(default)s)")
    options.add_argument("--folder", type=Path, help="keep run folders and outputs there")
    chosen = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with Namespaces(chosen.name, chosen.network, chosen.centers, chosen.megabits, folder, chosen.retries) as net:
            undisturbed = Run(net, chosen, folder, "undisturbed")
            undisturbed.ends(chosen.limit, 0)
            reference = undisturbed.bits()
            if not reference:
                sys.exit(undisturbed.log.read_text())
            for seconds in chosen.seconds:
                for moment in chosen.moments:
                    rows.append(trial(net, chosen, folder, reference, moment, seconds))
                    print(rows[-1], file=sys.stderr, flush=True)
    report(rows, chosen)


if __name__ == "__main__":
    main()
