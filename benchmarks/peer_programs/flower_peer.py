"""Flower: a gRPC server and NumPy clients, FedAvg. Seconds are the server's, from sending the model to having the mean.

The program starts its own clients: argument 4 is a client's number.
"""

import logging
import subprocess
import sys
import time

STARTED = time.time()
import flwr  # noqa: E402
import job  # noqa: E402
import torch  # noqa: E402
from flwr.client import NumPyClient  # noqa: E402
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays  # noqa: E402
from flwr.compat.client.app import start_client  # noqa: E402
from flwr.server import Server, ServerConfig, SimpleClientManager, start_server  # noqa: E402
from flwr.server.strategy import FedAvg  # noqa: E402

logging.getLogger("flwr").setLevel(logging.ERROR)
ADDRESS = "127.0.0.1:19732"


def read(net):
    return [p.detach().numpy() for p in net.parameters()]


def write(net, arrays):
    with torch.no_grad():
        for p, array in zip(net.parameters(), arrays, strict=True):
            p.copy_(torch.from_numpy(array))


class Client(NumPyClient):
    def __init__(self, number):
        self.number, self.net, self.round = number, job.network(), 0

    def fit(self, parameters, config):
        write(self.net, parameters)
        job.train(self.net, self.number, self.round)
        self.round += 1
        return read(self.net), 1, {}


class TimedServer(Server):
    seconds: list = []  # noqa: RUF012

    def fit_round(self, server_round, timeout):
        start = time.perf_counter()
        found = super().fit_round(server_round, timeout)
        self.seconds.append(time.perf_counter() - start)
        assert found is not None and not found[2][1], "a client failed"
        return found


def serve():
    net = job.network()
    n = job.PARTICIPANTS
    strategy = FedAvg(
        min_fit_clients=n,
        min_available_clients=n,
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters(read(net)),
    )
    server = TimedServer(client_manager=SimpleClientManager(), strategy=strategy)
    clients = [subprocess.Popen([sys.executable, *sys.argv, str(k)]) for k in range(n)]
    start_server(server_address=ADDRESS, server=server, config=ServerConfig(num_rounds=job.ROUNDS))
    for client in clients:
        client.wait(60)
    write(net, parameters_to_ndarrays(server.parameters))
    job.finished(server.seconds, net, f"flwr {flwr.__version__}", STARTED)


if len(sys.argv) > 4:
    start_client(server_address=ADDRESS, client=Client(int(sys.argv[4])).to_client())
else:
    serve()
