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
        shapes = self.job["shapes"]
        return FLModel(params={f"tensor{i}": np.full(shape, 0.05, np.float32) for i, shape in enumerate(shapes)})

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
        for array in model.params.values():
            np.testing.assert_allclose(array, 0.05 + 0.01 * rounds * (self.job["sites"] + 1) / 2, atol=1e-5)
        answer = {"seconds": self.seconds, "version": f"nvflare {nvflare.__version__}, gRPC"}
        Path(self.job["answer"]).write_text(json.dumps(answer))
