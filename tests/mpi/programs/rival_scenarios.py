"""The rivals that rivals.py trains, and test_rivals_trained.py as literal loops: arguments of CoLearning by name."""

import torch
import toy
from torch import nn

from colearn_hpc.algorithm import (
    AdaptiveEpochs,
    DecayingEpochs,
    FedAdam,
    FedProx,
    LatestMean,
    LinearLR,
    OuterSGD,
    PlateauEpochs,
    PostLocalEpochs,
    Scaffold,
)
from colearn_hpc.models import Muon

FIXED = {"local_epochs": 2, "local_epochs_rule": "fle", "schedule": "constant"}
STREAMING = FIXED | {"local_epochs": 1, "outer_optimizer": OuterSGD()}
SCENARIOS = {
    "fedavg": FIXED,
    "plateau": FIXED | {"local_epochs_rule": PlateauEpochs(1, window=2)},
    "adacomm": FIXED | {"local_epochs_rule": AdaptiveEpochs(4)},
    "decaying": FIXED | {"local_epochs_rule": DecayingEpochs(12, by="loss")},
    "post-local": FIXED | {"local_epochs_rule": PostLocalEpochs(switch=2, after=2)},
    "fedprox": FIXED | {"local_correction": FedProx(0.5)},
    "scaffold": FIXED | {"local_correction": Scaffold()},
    "fedbn": FIXED | {"local_layers": "batch_norm"},
    "head": FIXED | {"local_layers": ["net.4"]},
    "lawa": FIXED | {"kept_model": LatestMean(2)},
    "fedswa": FIXED | {"schedule": LinearLR(0.1), "outer_optimizer": OuterSGD(0.6, 0.0, nesterov=False)},
    "fedadam": FIXED | {"outer_optimizer": FedAdam(0.05)},
    "muloco": FIXED | {"outer_optimizer": OuterSGD(), "optimizer_state": "keep"},
    "streaming": STREAMING | {"exchange": {"fragments": 3}, "optimizer_state": "keep"},
    "streaming-overlap": STREAMING | {"exchange": {"fragments": 2, "overlap": True}},
    "streaming-mixing": STREAMING | {"exchange": {"fragments": 2, "overlap": True, "mixing": 0.3}},
    "streaming-int4": STREAMING | {"exchange": {"fragments": 3, "overlap": True, "codec": "int4"}},
    "muloco-whole": FIXED | {"outer_optimizer": OuterSGD(), "optimizer_state": "keep", "exchange": {"fragments": 1}},
    "diloco-overlap": FIXED | {"outer_optimizer": OuterSGD(), "exchange": {"overlap": True}},
    "diloco-mixing": FIXED | {"outer_optimizer": OuterSGD(), "exchange": {"overlap": True, "mixing": 0.3}},
    "overlapped": FIXED | {"local_epochs_rule": AdaptiveEpochs(4), "exchange": {"overlap": True}},
}
# Two ranks in each data center.
SEVERAL_RANKS = ("adacomm", "fedprox", "scaffold", "fedbn", "lawa", "streaming")
EXAMPLES, BATCH, RATE, ROUNDS = 32, 8, 0.1, 4


def network(name: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [nn.Linear(toy.FEATURES, 5), nn.BatchNorm1d(5), nn.Tanh()]
    if name.startswith(
        "muloco"
    ):  # that bias has a gradient of rounding errors, and Adam makes steps of a full size of them
        body[0].bias = None
    return nn.Sequential(*body, nn.Linear(5, 4), nn.Linear(4, toy.CLASSES))


def optimizer(name: str, parameters) -> torch.optim.Optimizer:
    """A data center's own. SCAFFOLD is derived for plain SGD."""
    if name.startswith("muloco"):
        return Muon(parameters, lr=RATE)
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.0 if name == "scaffold" else 0.9)
