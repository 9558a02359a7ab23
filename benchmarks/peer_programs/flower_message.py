"""Flower's Message API: a ServerApp with FedAvg, and ClientApps; an app of `flwr run` (``benchmarks/federation.py``).

Seconds are the ServerApp's, from configuring a round to having its mean. Every client adds a number in every round:
contents that the server has already would not be sent again.
"""

import json
import time
from pathlib import Path

import flwr
import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Message
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()  # on lines of their own: `flwr run` looks for them in the text


@client.train()
def train(message, context):
    """Training, as far as this measures it."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    number = np.float32(0.01 * (1 + int(context.node_config["number"])))
    content = {
        "arrays": ArrayRecord([array + number for array in arrays]),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(content=RecordDict(content), reply_to=message)


class Timed(FedAvg):
    """FedAvg over so many clients, with a clock."""

    def __init__(self, clients):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.seconds = []

    def configure_train(self, server_round, arrays, config, grid):
        self.start_of_round = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert not any(reply.has_error() for reply in replies), "a client failed"
        found = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self.start_of_round)
        return found


class Checked(Timed):
    """After the last round the mean is checked, and what was found is written to a file.

    Args:
        settings: of the job.
        first: the first model.
    """

    def __init__(self, settings, first):
        super().__init__(settings["sites"])
        self.settings, self.first = settings, first

    def aggregate_train(self, server_round, replies):
        found = super().aggregate_train(server_round, replies)
        if server_round == self.settings["rounds"]:
            step = 0.01 * server_round * (self.settings["sites"] + 1) / 2
            for array, before in zip(found[0].to_numpy_ndarrays(), self.first, strict=True):
                np.testing.assert_allclose(array, before + step, atol=1e-4)
            answer = {"seconds": self.seconds, "version": f"flwr {flwr.__version__}"}
            Path(self.settings["answer"]).write_text(json.dumps(answer))
        return found


@server.main()
def main(grid, context):
    """So many rounds."""
    settings = json.loads(Path(context.run_config["job"]).read_text())
    # Drawn: a server that keeps contents by their digests would take equal pieces for one.
    draw = np.random.default_rng(7)
    first = [draw.standard_normal(shape, np.float32) for shape in settings["shapes"]]
    Checked(settings, first).start(grid=grid, initial_arrays=ArrayRecord(first), num_rounds=settings["rounds"])
