"""APPFL: its MPI server (rank 0) and clients, synchronous FedAvg. Run by mpirun with one rank more than participants.

Seconds are a client's, from sending its model to having the mean: the slowest client of a round.
"""

import logging
import sys
import time

STARTED = time.time()
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

from colearn_hpc._torchvision import make_torchvision_importable  # noqa: E402

make_torchvision_importable()  # APPFL imports it, and the registry's does not load beside a CPU build of torch

import job  # noqa: E402
from appfl.agent import ServerAgent  # noqa: E402
from appfl.comm.mpi import MPIClientCommunicator, MPIServerCommunicator  # noqa: E402
from appfl.config import ServerAgentConfig  # noqa: E402
from mpi4py import MPI  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

logging.disable(logging.INFO)
world = MPI.COMM_WORLD
# By default APPFL collects garbage after every step, which took 12 of 13 seconds of a round of a million floats.
FAST = {"optimize_memory": False}
if world.rank == 0:
    config = ServerAgentConfig(
        client_configs=OmegaConf.create(
            {
                "train_configs": {},
                "model_configs": {
                    "model_path": str(Path(__file__).with_name("job.py")),
                    "model_name": "network",
                    "model_kwargs": {},
                },
            }
        ),
        server_configs=OmegaConf.create(
            {
                **FAST,
                "num_clients": job.PARTICIPANTS,
                "num_global_epochs": job.ROUNDS,
                "scheduler": "SyncScheduler",
                "scheduler_kwargs": {"same_init_model": True} | FAST,
                "aggregator": "FedAvgAggregator",
                "aggregator_kwargs": {"client_weights_mode": "equal"} | FAST,
                "logging_output_dirname": str(job.FOLDER),
                "logging_output_filename": "appfl",
            }
        ),
    )
    server = MPIServerCommunicator(world, ServerAgent(config), logger=logging.getLogger("quiet"), **FAST)
    server.serve()
    sys.exit()

client = MPIClientCommunicator(world, server_rank=0, **FAST)
net = job.network()


def take(model):
    net.load_state_dict(model[0] if isinstance(model, tuple) else model)


client.get_configuration()
take(client.get_global_model(init_model=True))
clients = world.Create_group(world.group.Excl([0]))
seconds = []
for index in range(job.ROUNDS):
    job.train(net, world.rank - 1, index)
    clients.Barrier()
    start = time.perf_counter()
    model, told = client.update_global_model(net.state_dict())
    take(model)
    seconds.append(clients.allreduce(time.perf_counter() - start, MPI.MAX))
client.invoke_custom_action(action="close_connection")
if world.rank == 1:
    job.finished(seconds, net, f"appfl {version('appfl')}", STARTED)
