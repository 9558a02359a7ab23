"""Two data centers of two ranks train the toy privately; at the end each rank writes what it has.

usage: private.py OUT KEYS KILL_AFTER

KEYS: "known" gives each data center a key that depends on its index alone, "own" leaves it to the operating system,
"resume" goes on from the resume points. KILL_AFTER: the step after which every rank kills itself; 0: none.
"""

import toy  # first: makes torchvision importable
import json
import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from colearn_hpc import CoLearning, DataCenter
from colearn_hpc.trainer.private_training import PrivateDDPStrategy, PrivateTraining


class Kill(Callback):
    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def main(out: Path, keys: str, kill_after: int) -> None:
    toy.quiet()
    pl.seed_everything(0, verbose=False)
    center = DataCenter.join(2)
    private = PrivateTraining(noise=1.0, delta=1e-2, budget=50)
    if keys == "known":
        key = bytes([center.index]) * 32
        private.load_state_dict({"key": key.hex(), "weights": "", "accountant": {"history": []}})
    colearning = CoLearning(rounds=3, local_epochs=1, epsilon=0, run_dir=out, centers=center)
    module = toy.Toy(toy.network(seed=center.world_rank))
    trainer = toy.trainer(center, private, colearning, Kill(kill_after), strategy=PrivateDDPStrategy())
    path = colearning.resume_path() if keys == "resume" else None
    trainer.fit(module, toy.loader(center.index, center.size, center.rank), ckpt_path=path)
    found = {
        "center": center.index,
        "weights": torch.cat([p.detach().reshape(-1) for p in module.parameters()]).tolist(),
        "names": [name for name, _ in module.named_parameters()],
        "key": private.state_dict()["key"],
        "epsilon": private.epsilon(),
        "steps": private.accountant.steps,
        "optimizer": type(trainer.optimizers[0]).__name__,
    }
    (out / f"found-{center.world_rank}.json").write_text(json.dumps(found))


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
