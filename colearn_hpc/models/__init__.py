"""Networks and the LightningModules that train them. Nothing in here knows of MPI or of rounds.

Each name is imported when it is first used. So importing this package does not import torch.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "Classifier": "colearn_hpc.models.task",
    "ConfusionMatrixFile": "colearn_hpc.models.confusion",
    "Muon": "colearn_hpc.models.muon",
    "MultilabelTask": "colearn_hpc.models.task_multilabel",
    "build_network": "colearn_hpc.models.registry",
    "network_names": "colearn_hpc.models.registry",
    "register": "colearn_hpc.models.registry",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
