"""The rivals that rivals.py trains, and test_rivals_trained.py as literal loops: arguments of CoLearning by name."""

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

FIXED = {"local_epochs": 2, "local_epochs_rule": "fle", "schedule": "constant"}
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
    "overlapped": FIXED | {"local_epochs_rule": AdaptiveEpochs(4), "exchange": {"overlap": True}},
}
# Two ranks in each data center.
SEVERAL_RANKS = ("adacomm", "fedprox", "scaffold", "fedbn", "lawa")
EXAMPLES, BATCH, RATE, ROUNDS = 32, 8, 0.1, 4


def momentum(name: str) -> float:
    """SCAFFOLD is derived for plain SGD."""
    return 0.0 if name == "scaffold" else 0.9
