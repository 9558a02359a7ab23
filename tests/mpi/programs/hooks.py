"""Two data centers; in each case one rank ends in one hook of Lightning: by an error, by sys.exit(). Cases follow each
other in one process.

Of each case and rank it writes CASES/NUMBER/RANK.code and RANK.err, and RANK.struck where the error was raised. A case
may end the processes (where a rank cannot reach the others it ends all); whoever has started them goes on with the
next.

usage: hooks.py CASES.json FIRST
CASES.json: a list of [owner, hook, way, world rank]; FIRST: number of the first one to run
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

import toy
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import distributed

from colearn_hpc.cli import main
from colearn_hpc.mpi.startup import launched_as, leave_together

LONGEST = 100.0  # s for a case on a machine that other work keeps busy; 60 are promised on one of its own


class Model(toy.Toy):
    """With a scheduler, so that its hooks are called."""

    def __init__(self):
        super().__init__(toy.network(0))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)]


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return toy.loader(0)

    def val_dataloader(self):
        return toy.loader(1)


class Watcher(pl.Callback):
    """A callback with a state."""

    def state_dict(self):
        return {"seen": 1}


class Log(Logger):
    name, version = "log", 0

    def log_hyperparams(self, *_, **__): ...

    def log_metrics(self, metrics, step=None): ...


OWNERS = {"model": Model, "data": Data, "callback": Watcher, "logger": Log}
MORE = {
    "model": "setup teardown prepare_data configure_model configure_optimizers configure_callbacks "
    "configure_gradient_clipping training_step validation_step backward optimizer_step forward optimizer_zero_grad "
    "lr_scheduler_step transfer_batch_to_device state_dict __init__",
    "data": "setup teardown prepare_data train_dataloader val_dataloader transfer_batch_to_device state_dict "
    "load_state_dict __init__",
    "callback": "setup teardown state_dict load_state_dict __init__",
    "logger": "log_hyperparams log_metrics save finalize after_save_checkpoint __init__",
}


def hooks(owner):
    """Names of all hooks that an owner can have: what Lightning's base class calls ``on_...``, and MORE."""
    base = OWNERS[owner].__mro__[-2] if owner == "logger" else OWNERS[owner]
    named = [name for name in dir(base) if name.startswith("on_") and callable(getattr(base, name))]
    return sorted({*named, *MORE[owner].split()})


class MuteError(RuntimeError):
    def __str__(self):
        raise RuntimeError("a text that cannot be read")


def ending(way, hook):
    """What a hook raises.

    Args:
        way: "raise"; "exit": ``sys.exit()``, ``sys.exit(0)``, ``sys.exit(3)`` or with a text, in turn; "mute": an error
            whose text is empty, or cannot be read.
        hook: its name.
    """
    text, number = f"patient 4711 in {hook}", sum(map(ord, hook))
    if way == "exit":
        return SystemExit((None, 0, 3, text)[number % 4])
    return ValueError(text) if way == "raise" else (TimeoutError(), MuteError())[number % 2]


def overriding(owner, hook, way, struck=None):
    """The owner's class with that hook overridden: in all ranks, for Lightning does more where a hook is (a barrier
    around ``prepare_data``). It raises where ``struck`` is a path, and is the base class's elsewhere."""
    base = OWNERS[owner]

    def method(self, *arguments, **more):
        if struck is None:
            return getattr(base, hook)(self, *arguments, **more)
        struck.touch()
        raise ending(way, hook)

    return type(f"{base.__name__}Raising", (base,), {hook: method, "__module__": __name__})


def run(number, owner, hook, way, raises, where, rank):
    folder = where / str(number)
    folder.mkdir(exist_ok=True)
    here = sys.modules["hooks"] = sys.modules[__name__]
    for name, kind in OWNERS.items():
        setattr(here, f"Used{name}", kind)
    struck = folder / f"{rank}.struck" if rank == raises else None
    setattr(here, f"Used{owner}", overriding(owner, hook, way, struck))
    arguments = ["fit", "--model=hooks.Usedmodel", "--data=hooks.Useddata", "--centers=2", "--colearning.rounds=2"]
    arguments += ["--colearning.local_epochs=1", "--colearning.schedule=none", f"--runs={folder}", "--name=run"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    arguments += ["--trainer.callbacks+=hooks.Usedcallback", "--trainer.logger=hooks.Usedlogger"]
    arguments += ["--trainer.num_sanity_val_steps=0", "--trainer.enable_model_summary=false"]
    terminal = os.dup(2)
    with (folder / f"{rank}.err").open("w") as file:
        os.dup2(file.fileno(), 2)
        code = main(arguments)
        sys.stderr.flush()
    os.dup2(terminal, 2)
    os.close(terminal)
    (folder / f"{rank}.code").write_text(str(code))


if __name__ == "__main__":
    path, first = Path(sys.argv[1]), int(sys.argv[2])
    rank, _ = launched_as()
    cases = json.loads(path.read_text())
    for number in range(first, len(cases)):
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        os.environ.pop("COLEARN_CENTER", None)
        run(number, *cases[number], path.parent, rank)
        if distributed.is_initialized():
            distributed.destroy_process_group()  # Lightning would take the last case's
        leave_together()
    faulthandler.cancel_dump_traceback_later()
    sys.exit(0)
