"""Co-learning over data centers with PyTorch Lightning and MPI.

Public names are resolved when they are asked for: importing the package starts no MPI, takes no torch, and changes
nothing in the process.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from colearn_hpc._version import __version__

if TYPE_CHECKING:
    from colearn_hpc.algorithm.learning_rate import ConstantLR, CyclicalLR, ExponentialLR
    from colearn_hpc.algorithm.local_epochs import FixedEpochs, IncreasingEpochs, QuadraticEpochs
    from colearn_hpc.algorithm.outer import OuterSGD
    from colearn_hpc.join import DataCenter
    from colearn_hpc.trainer.callback import CoLearning
    from colearn_hpc.trainer.environment import DataCenterEnvironment

_HOMES = {
    "CoLearning": "colearn_hpc.trainer.callback",
    "ConstantLR": "colearn_hpc.algorithm.learning_rate",
    "CyclicalLR": "colearn_hpc.algorithm.learning_rate",
    "DataCenter": "colearn_hpc.join",
    "DataCenterEnvironment": "colearn_hpc.trainer.environment",
    "ExponentialLR": "colearn_hpc.algorithm.learning_rate",
    "FixedEpochs": "colearn_hpc.algorithm.local_epochs",
    "IncreasingEpochs": "colearn_hpc.algorithm.local_epochs",
    "OuterSGD": "colearn_hpc.algorithm.outer",
    "QuadraticEpochs": "colearn_hpc.algorithm.local_epochs",
}

__all__ = [
    "CoLearning",
    "ConstantLR",
    "CyclicalLR",
    "DataCenter",
    "DataCenterEnvironment",
    "ExponentialLR",
    "FixedEpochs",
    "IncreasingEpochs",
    "OuterSGD",
    "QuadraticEpochs",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'colearn_hpc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
