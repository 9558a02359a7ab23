"""Co-learning over data centers with PyTorch Lightning and MPI.

Public names are resolved when they are asked for: importing the package starts no MPI, takes no torch, and changes
nothing in the process.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from colearn_hpc._version import __version__

if TYPE_CHECKING:
    from colearn_hpc.algorithm.kept_model import LatestMean
    from colearn_hpc.algorithm.learning_rate import ConstantLR, CyclicalLR, ExponentialLR, LinearLR, WarmUp
    from colearn_hpc.algorithm.local_correction import FedProx, Scaffold
    from colearn_hpc.algorithm.local_epochs import (
        AdaptiveEpochs,
        DecayingEpochs,
        FixedEpochs,
        IncreasingEpochs,
        InSteps,
        PlateauEpochs,
        PostLocalEpochs,
        QuadraticEpochs,
    )
    from colearn_hpc.algorithm.outer import DelayedNesterov, FedAdam, FedYogi, OuterSGD
    from colearn_hpc.join import DataCenter
    from colearn_hpc.launching import launch
    from colearn_hpc.trainer.callback import CoLearning
    from colearn_hpc.trainer.environment import DataCenterEnvironment

_HOMES = {
    "AdaptiveEpochs": "colearn_hpc.algorithm.local_epochs",
    "CoLearning": "colearn_hpc.trainer.callback",
    "ConstantLR": "colearn_hpc.algorithm.learning_rate",
    "CyclicalLR": "colearn_hpc.algorithm.learning_rate",
    "DataCenter": "colearn_hpc.join",
    "DataCenterEnvironment": "colearn_hpc.trainer.environment",
    "DecayingEpochs": "colearn_hpc.algorithm.local_epochs",
    "DelayedNesterov": "colearn_hpc.algorithm.outer",
    "ExponentialLR": "colearn_hpc.algorithm.learning_rate",
    "FedAdam": "colearn_hpc.algorithm.outer",
    "FedProx": "colearn_hpc.algorithm.local_correction",
    "FedYogi": "colearn_hpc.algorithm.outer",
    "FixedEpochs": "colearn_hpc.algorithm.local_epochs",
    "IncreasingEpochs": "colearn_hpc.algorithm.local_epochs",
    "InSteps": "colearn_hpc.algorithm.local_epochs",
    "LatestMean": "colearn_hpc.algorithm.kept_model",
    "LinearLR": "colearn_hpc.algorithm.learning_rate",
    "OuterSGD": "colearn_hpc.algorithm.outer",
    "PlateauEpochs": "colearn_hpc.algorithm.local_epochs",
    "PostLocalEpochs": "colearn_hpc.algorithm.local_epochs",
    "QuadraticEpochs": "colearn_hpc.algorithm.local_epochs",
    "Scaffold": "colearn_hpc.algorithm.local_correction",
    "WarmUp": "colearn_hpc.algorithm.learning_rate",
    "launch": "colearn_hpc.launching",
}

__all__ = [
    "AdaptiveEpochs",
    "CoLearning",
    "ConstantLR",
    "CyclicalLR",
    "DataCenter",
    "DataCenterEnvironment",
    "DecayingEpochs",
    "DelayedNesterov",
    "ExponentialLR",
    "FedAdam",
    "FedProx",
    "FedYogi",
    "FixedEpochs",
    "InSteps",
    "IncreasingEpochs",
    "LatestMean",
    "LinearLR",
    "OuterSGD",
    "PlateauEpochs",
    "PostLocalEpochs",
    "QuadraticEpochs",
    "Scaffold",
    "WarmUp",
    "__version__",
    "launch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'colearn_hpc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
