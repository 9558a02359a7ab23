"""Trains small runs and records what each rank saw of them, in order: one JSON file a scenario. test_traces.py compares
them with tests/golden/traces/, which the code of version 0.1.0 wrote.

A trace holds of each part (one ``fit``, two where the run is stopped and resumed):

    meetings  at a round's end: what each data center brought; each different one once, in the order of rank 0
    ranks     of every rank its lines: a meeting by its number, a mean by its digest, the module's state by its digest
              at each hook and in each checkpoint
    rounds    rounds.jsonl
    summary   of summary.json what a clock does not say

Nothing that depends on time is in it. Digests of weights depend on the processor: ``reference`` is the digest of a
fixed computation in plain torch, equal where these digests must be.

To write a new golden, run this by hand, look at what it has written, and move the file:

    mpirun --oversubscribe -n 4 python tests/mpi/programs/traces.py --out FOLDER NAME [NAME ...]

Of a run that was stopped on purpose, FOLDER/stopped/NAME holds the run folder as it was then. ``--last`` records only
the last part, of a run that stands in FOLDER/runs/NAME.
"""

import os

# Before torch is loaded: the same instructions on every processor that is alike enough.
SAME_BITS = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
os.environ |= SAME_BITS

import toy  # before Lightning: makes torchvision importable
import argparse
import json
import math
import shutil
import signal
import time
from hashlib import sha256
from pathlib import Path

import pytorch_lightning as pl
import torch
import trace_taps
from mpi4py import MPI
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from trace_scenarios import OTHERS, SCENARIOS

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.errors import Interrupted


def network(center: int) -> nn.Module:
    torch.manual_seed(11 + center)
    return nn.Sequential(
        nn.Linear(toy.FEATURES, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, toy.CLASSES)
    )


def loader(center: DataCenter) -> DataLoader:
    """Shuffled. Later data centers have a batch more each."""
    examples = toy.data(center.index, toy.EXAMPLES + toy.BATCH * center.index)
    if center.size == 1:
        return DataLoader(examples, batch_size=toy.BATCH, shuffle=True)
    sampler = DistributedSampler(examples, center.size, center.rank)
    return DataLoader(examples, batch_size=toy.BATCH // center.size, sampler=sampler)


class Net(toy.Toy):
    """Draws from the generators, and has buffers of floats and of integers."""

    def __init__(self, center: int, optimizer: str) -> None:
        super().__init__(network(center))
        self.kind = optimizer

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).softmax(1)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        if self.kind == "Adam":
            # With a small eps a gradient's last bit would decide a step's sign: no two processors would be near.
            return torch.optim.Adam(self.parameters(), lr=0.02, eps=1e-3)
        return super().configure_optimizers()


# --- recording ----------------------------------------------------------------------------------------


def digest(tensors) -> str:
    return sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


class Trace(pl.Callback):
    """What this rank saw: (what, content) in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def meeting(self, content) -> None:
        self.seen.append(("meeting", json.dumps(plain(content))))

    def mean(self, vector) -> None:
        self.seen.append(("mean", digest([vector])))

    def state(self, hook, trainer, state) -> None:
        self.seen.append((f"{hook} {trainer.current_epoch}", digest(state.values())))

    def on_train_epoch_start(self, trainer, pl_module):
        self.state("epoch starts", trainer, pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.state("last batch", trainer, pl_module.state_dict())

    def on_validation_end(self, trainer, pl_module):
        self.state("validated", trainer, pl_module.state_dict())

    def on_train_epoch_end(self, trainer, pl_module):
        self.state("epoch ends", trainer, pl_module.state_dict())

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.state("checkpoint", trainer, checkpoint["state_dict"])

    def on_train_end(self, trainer, pl_module):
        self.state("train ends", trainer, pl_module.state_dict())


def plain(value):
    """As JSON can say it, without what a clock measured. Of a reason for people only that there is one."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not key.endswith("seconds")}
        return {key: bool(item) if key == "absent" else plain(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounds_of(run: Path) -> list:
    """rounds.jsonl as version 0.1.0 wrote it; before the first round's end there is none."""
    path = run / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        line.pop("chain", None)  # of digests of all that is compared here, and of settings, which are not
        line["centers"] = [trace_taps.without_new_fields(center) for center in line["centers"]]
    return [plain(line) for line in lines]


def joined(traces: list[list], run: Path) -> dict:
    """One part, from what its ranks saw."""
    meetings = list(dict.fromkeys(content for seen in traces for what, content in seen if what == "meeting"))
    number = {content: str(k) for k, content in enumerate(meetings)}
    summary = json.loads((run / "summary.json").read_text())
    return {
        "meetings": [json.loads(meeting) for meeting in meetings],
        "ranks": [[f"{what} {number.get(content, content)}" for what, content in seen] for seen in traces],
        "rounds": rounds_of(run),
        "summary": {key: summary.get(key) for key in ("status", "stopped_by", "rounds", "epochs", "relative_change")},
    }


def text_of(trace: dict) -> str:
    """JSON with a line for each thing that was seen."""

    def lines(items, indent):
        return "[\n" + ",\n".join(f"{indent}  {json.dumps(item)}" for item in items) + f"\n{indent}]"

    parts = []
    for part in trace["parts"]:
        ranks = ",\n".join("      " + lines(rank, "      ") for rank in part["ranks"])
        parts.append(
            f'    {{\n      "meetings": {lines(part["meetings"], "      ")},\n'
            f'      "ranks": [\n{ranks}\n      ],\n'
            f'      "rounds": {lines(part["rounds"], "      ")},\n'
            f'      "summary": {json.dumps(part["summary"])}\n    }}'
        )
    return f'{{\n  "reference": "{trace["reference"]}",\n  "parts": [\n' + ",\n".join(parts) + "\n  ]\n}\n"


def reference() -> str:
    """Digest of a net that was trained for an epoch in plain torch."""
    net = network(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for x, y in toy.loader(0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return digest(net.state_dict().values())


# --- disturbing ---------------------------------------------------------------------------------------


class Disturbs(pl.Callback):
    """Lets happen what a scenario says.

    Args:
        fails: a data center, an epoch, and a batch of it or "validation", at which its rank 0 raises an error, and how
            often.
        leaves: a data center, an epoch, and a batch of it, after which its Trainer is told to stop.
        stops: an epoch, and a batch of it or "last", after which all ranks are signalled when all are there.
    """

    def __init__(self, center: DataCenter, fails=None, leaves=None, stops=None) -> None:
        self.center, self.fails, self.leaves, self.stops = center, fails, leaves, stops
        self.failed = 0

    def here(self, trainer, moment) -> tuple:
        return self.center.name, trainer.current_epoch, str(moment)

    def fail(self, trainer, moment) -> None:
        if self.fails and self.here(trainer, moment) == self.fails[:3] and not self.center.rank:
            self.failed += 1
            if self.failed <= self.fails[3]:
                raise RuntimeError(f"this is failure {self.failed}")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.fail(trainer, batch_idx)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.fail(trainer, "validation")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.leaves and self.here(trainer, batch_idx) == self.leaves:
            trainer.should_stop = True
        if self.stops in [(trainer.current_epoch, batch_idx), (trainer.current_epoch, "last" * trainer.is_last_batch)]:
            self.center.world.Barrier()
            os.kill(os.getpid(), signal.SIGUSR1)


def fit(center, run, trace, *, optimizer="SGD", trainer=None, callbacks=(), fails=None, leaves=None, stops=None, **own):
    """One ``fit``, from where the run folder stands.

    Args:
        trace: records it.
        optimizer: of the module.
        trainer: arguments of the Trainer.
        callbacks: what makes further ones.
        fails, leaves, stops: see :class:`Disturbs`.
        own: arguments of CoLearning.
    """
    pl.seed_everything(5 + center.world_rank, verbose=False)
    settings = {"rounds": 3, "local_epochs": 2, "epsilon": 0.0, "validation": "lightning"} | own
    colearning = CoLearning(run_dir=run, centers=center, **settings)
    disturbs = Disturbs(center, fails, leaves, stops)
    made = toy.trainer(center, colearning, trace, *(make() for make in callbacks), disturbs, **(trainer or {}))
    data = {"train_dataloaders": loader(center), "val_dataloaders": toy.loader(99)}
    colearning.fit(made, Net(center.world_rank, optimizer), ckpt_path=colearning.resume_path(), **data)


# --- the program --------------------------------------------------------------------------------------


def together(comm: MPI.Comm) -> None:
    """Wait for all without burning a core."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


def record(out: Path, name: str, comm: MPI.Comm, trace: Trace, last: bool) -> None:
    found = (SCENARIOS | OTHERS)[name]
    run, parts = out / "runs" / name, []
    for number, settings in enumerate(found["parts"]):
        if last and number + 1 < len(found["parts"]):
            continue
        center = DataCenter.join(found["centers"], comm)
        trace.seen = []
        try:
            fit(center, run, trace, **settings)
        except Interrupted:
            assert settings["stops"], "nobody else stops a run"
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # the next one makes worlds of its own
        del os.environ["COLEARN_CENTER"]
        traces = comm.gather(trace.seen)
        if traces is not None:
            parts.append(joined(traces, run))
            if settings.get("stops"):
                shutil.copytree(run, out / "stopped" / name)
        together(comm)
    if parts:
        path = out / f"{name}.json"
        path.write_text(text_of({"reference": reference(), "parts": parts}))
        print(f"written: {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--last", action="store_true")
    parser.add_argument("names", nargs="+", choices=[*SCENARIOS, *OTHERS])
    arguments = parser.parse_args()
    toy.quiet()
    torch.set_num_threads(1)
    trace, world = Trace(), MPI.COMM_WORLD
    trace_taps.tap(trace.meeting, trace.mean)
    for name in arguments.names:
        found = (SCENARIOS | OTHERS)[name]
        takes_part = world.rank < found["centers"] * found["ranks"]
        comm = world.Split(0 if takes_part else MPI.UNDEFINED)
        if takes_part:
            record(arguments.out, name, comm, trace, arguments.last)
        together(world)


if __name__ == "__main__":
    main()
