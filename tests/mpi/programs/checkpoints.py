"""Resumes runs of two data centers from every checkpoint that a user's ModelCheckpoint has written in them. Each must
end as the whole run did.

Prints a line of JSON: {NET: {CASE: {WRITER: {FILE: "same", "refused: MESSAGE" or what is different}}}}.

usage: checkpoints.py OUT
"""

import traces  # first: the same bits on every processor that is alike enough
import json
import shutil
import sys
from pathlib import Path

import pytorch_lightning as pl
import toy
import torch
from mpi4py import MPI
from pytorch_lightning.callbacks import ModelCheckpoint

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.errors import ColearnError

NETS = {
    "draws nothing": (lambda: toy.Toy(toy.network(center.index)), False),
    "draws": (lambda: traces.Net(center.index, "SGD"), True),  # and shuffles
}
CASES = {
    "T=2": {"local_epochs": 2},
    "overlap, T=2": {"local_epochs": 2, "exchange": {"overlap": True}},
    "overlap, T=1": {"local_epochs": 1, "exchange": {"overlap": True}},
}
WRITERS = {
    "validated": {"monitor": "val_loss", "save_on_train_epoch_end": False},
    "epoch-end": {"save_on_train_epoch_end": True},
    "mid-epoch": {"every_n_train_steps": 3},
}


def fit(run: Path, net: str, case: str, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> str:
    """Returns the digest of the model that the run ends with."""
    pl.seed_everything(5 + center.world_rank, verbose=False)
    made, shuffle = NETS[net]
    colearning = CoLearning(rounds=3, epsilon=0.0, run_dir=run, centers=center, validation="lightning", **CASES[case])
    trainer = toy.trainer(center, colearning, *callbacks, enable_checkpointing=bool(callbacks), num_sanity_val_steps=0)
    data = {
        "train_dataloaders": toy.loader(center.index, shuffle=shuffle),
        "val_dataloaders": toy.loader(99),
        "weights_only": False,  # the checkpoint is this run's own
    }
    colearning.fit(trainer, module := made(), ckpt_path=ckpt_path, **data)
    MPI.COMM_WORLD.Barrier()  # the first leader writes the lines
    return traces.digest(module.state_dict().values())


def resumed(run: Path, path: Path, net: str, case: str, whole: Path, end: str) -> str:
    """What becomes of the run that goes on from ``path``, as all ranks see it."""
    if center.is_first:
        run.mkdir()
        shutil.copy(whole / "rounds.jsonl", run)
    try:
        found = fit(run, net, case, ckpt_path=path)
    except ColearnError as error:
        said = f"refused: {error}"
    else:
        same_rounds = traces.rounds_of(run) == traces.rounds_of(whole)
        said = "other rounds" if not same_rounds else "same" if found == end else "another model"
    return "; ".join(dict.fromkeys(MPI.COMM_WORLD.allgather(said)))


def results(folder: Path, net: str, case: str) -> dict[str, dict[str, str]]:
    written = folder / "written" / center.name
    names = {name: f"{{epoch}}-{{step}}-{name}" for name in WRITERS}
    writers = [ModelCheckpoint(written, names[name], save_top_k=-1, **when) for name, when in WRITERS.items()]
    end = fit(folder / "whole", net, case, *writers)
    found = {name: {} for name in WRITERS}
    for name, of_writer in found.items():
        for path in sorted(written.glob(f"*-{name}.ckpt")):
            of_writer[path.name] = resumed(folder / path.stem, path, net, case, folder / "whole", end)
    return found


toy.quiet()
torch.set_num_threads(1)
out, center = Path(sys.argv[1]), DataCenter.join(2)
found = {net: {case: results(out / net / case, net, case) for case in CASES} for net in NETS}
if center.is_first:
    print(json.dumps(found), flush=True)
