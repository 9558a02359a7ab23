"""Ours: without training the exchange of a round, with training a Lightning Trainer with CoLearning. Run by mpirun."""

import time

STARTED = time.time()
import sys  # noqa: E402
import tempfile  # noqa: E402

from common import Participant  # noqa: E402  # first: it imports as the command line does, in half the time

# isort: split
import job  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from mpi4py import MPI  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import colearn_hpc  # noqa: E402
from colearn_hpc import CoLearning, DataCenter  # noqa: E402

CODEC = sys.argv[4] if len(sys.argv) > 4 else "fp32"


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = job.network()

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def exchange(center):
    net = job.network()
    participant = Participant(CODEC)
    participant.start_from(net)
    seconds = []
    for index in range(job.ROUNDS):
        job.train(net, center.index, index)
        MPI.COMM_WORLD.Barrier()
        start = time.perf_counter()
        participant.average()
        MPI.COMM_WORLD.Barrier()
        seconds.append(time.perf_counter() - start)
    return seconds, net


def fit(center):
    with tempfile.TemporaryDirectory() as folder:
        where = MPI.COMM_WORLD.bcast(folder)
        colearning = CoLearning(
            rounds=job.ROUNDS,
            local_epochs=job.EPOCHS,
            schedule="constant",
            local_epochs_rule="fle",
            exchange={"codec": CODEC},
            run_dir=where,
            centers=center,
        )
        task = Task()
        trainer = pl.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            callbacks=[colearning],
            default_root_dir=where,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )
        torch.manual_seed(center.index)
        trainer.fit(task, DataLoader(TensorDataset(*job.shard(center.index)), batch_size=32, shuffle=True))
        MPI.COMM_WORLD.Barrier()
    return [], task.net


center = DataCenter.join()
seconds, net = (fit if job.EPOCHS else exchange)(center)
if center.is_first:
    job.finished(seconds, net, f"colearn_hpc {colearn_hpc.__version__}, {CODEC}", STARTED)
