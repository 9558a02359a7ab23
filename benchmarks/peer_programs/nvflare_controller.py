"""NVFlare's FedAvg with a clock: seconds from the choice of a round's clients to its mean. Sent along with a job."""

import json
import time
from pathlib import Path

import numpy as np
import nvflare
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg


class TimedFedAvg(FedAvg):
    """So many rounds; what was found is written to a file.

    Args:
        settings: path of job.json.
    """

    def __init__(self, settings: str):
        self.settings = settings
        self.job = json.loads(Path(settings).read_text())
        super().__init__(num_clients=self.job["sites"], num_rounds=self.job["rounds"], persistor_id="")
        self.seconds = []

    def load_model(self):
        return FLModel(params=self.first())

    def first(self):
        """The first model, drawn."""
        draw = np.random.default_rng(7)
        shapes = self.job["shapes"]
        return {f"tensor{i}": draw.standard_normal(shape, np.float32) for i, shape in enumerate(shapes)}

    def sample_clients(self, num_clients=None):
        self.start = time.perf_counter()
        return super().sample_clients(num_clients)

    def update_model(self, model, aggregated):
        found = super().update_model(model, aggregated)
        self.seconds.append(time.perf_counter() - self.start)
        return found

    def save_model(self, model):
        rounds = len(self.seconds)
        if rounds < self.job["rounds"]:
            return
        for name, before in self.first().items():
            step = 0.01 * rounds * (self.job["sites"] + 1) / 2
            np.testing.assert_allclose(model.params[name], before + step, atol=1e-4)
        answer = {"seconds": self.seconds, "version": f"nvflare {nvflare.__version__}, gRPC"}
        Path(self.job["answer"]).write_text(json.dumps(answer))
