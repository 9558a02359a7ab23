"""Flower's simulation engine: a ServerApp with FedAvg, and ClientApps in processes of Ray, which this program starts.

Seconds are the ServerApp's, from configuring a round to having its mean: the engine has no clients that keep a model.
"""

import sys
import time

STARTED = time.time()
ARGUMENTS = sys.argv[:4]

import flwr  # noqa: E402
import torch  # noqa: E402
from flower_message import Timed  # noqa: E402
from flwr.app import ArrayRecord, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.common import Message  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

AT_ONCE = 2  # clients: the machine has two cores
client, server = ClientApp(), ServerApp()


def the_job():
    """The module ``job``; a process of Ray has other arguments than this program."""
    sys.argv[:] = ARGUMENTS
    import job

    return job


@client.train()
def train(message, context):
    job = the_job()
    number, index = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
    net = job.network()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    job.train(net, number, index)
    if not job.EPOCHS and index:  # other contents in every message, with the same mean: none can be left out
        last = job.PARTICIPANTS - 1
        step = 0.001 * (number + 1) if number < last else -0.001 * last * job.PARTICIPANTS / 2
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(step)
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    job = the_job()
    net, strategy = job.network(), Timed(job.PARTICIPANTS)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(net.state_dict()), num_rounds=job.ROUNDS)
    net.load_state_dict(result.arrays.to_torch_state_dict())
    job.finished(strategy.seconds, net, f"flwr {flwr.__version__}, simulation", STARTED)


if __name__ == "__main__":
    workers = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": AT_ONCE}}
    run_simulation(server, client, num_supernodes=the_job().PARTICIPANTS, backend_config=workers)
