"""Lightning under its two names, ``lightning.pytorch`` and ``pytorch_lightning``: one code in two packages, of which
neither takes the other's objects.

All of this package takes Lightning from here. A class that derives from one of Lightning's derives from it under every
name that is *in use*: imported already, or installed where none is imported yet, because ``import colearn_hpc`` stands
before ``import lightning`` in many a sorted list. The command line settles on the one name that
the user's classes have.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType, new_class
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.accelerators import CUDAAccelerator
    from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
    from pytorch_lightning.plugins.environments import ClusterEnvironment
    from pytorch_lightning.strategies import DDPStrategy
    from pytorch_lightning.utilities import rank_zero_warn
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

__all__ = [
    "CSVLogger",
    "CUDAAccelerator",
    "Callback",
    "Checkpoint",
    "ClusterEnvironment",
    "DDPStrategy",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "ProgressBar",
    "TensorBoardLogger",
    "Trainer",
    "fabric_of",
    "in_use",
    "installed",
    "kinds",
    "package_of",
    "rank_zero_warn",
    "settle_on",
]

NAMES = ("pytorch_lightning", "lightning.pytorch")
FABRIC = {"pytorch_lightning": "lightning_fabric", "lightning.pytorch": "lightning.fabric"}
STOLEN = ("2.6.2", "2.6.3")  # releases that thieves published: importing one sends passwords and keys away

# What others derive from: from all names in use at once.
_BASES = {
    "CUDAAccelerator": "accelerators",
    "Callback": "callbacks",
    "Checkpoint": "callbacks",
    "ClusterEnvironment": "plugins.environments",
    "DDPStrategy": "strategies",
    "LightningDataModule": "",
    "LightningModule": "",
    "ProgressBar": "callbacks",
}
# What is called or made, or stands in annotations: the first name's.
_FIRST = {
    "CSVLogger": "loggers",
    "LightningArgumentParser": "cli",
    "LightningCLI": "cli",
    "MisconfigurationException": "utilities.exceptions",
    "TensorBoardLogger": "loggers",
    "Trainer": "",
    "rank_zero_warn": "utilities",
}

_in_use: tuple[str, ...] = ()


def in_use() -> tuple[str, ...]:
    """The names that what this package makes is for; settled when first asked for."""
    global _in_use
    if not _in_use:
        _in_use = tuple(name for name in NAMES if name in sys.modules) or installed()
    return _in_use


def installed() -> tuple[str, ...]:
    """The names that can be imported; the usual one where there is none, whose import then says so."""
    found = (name for name in NAMES if find_spec(name.partition(".")[0]) is not None and not _is_stolen(name))
    return tuple(found) or NAMES[:1]


def settle_on(name: str) -> None:
    """Make what this package makes for this name alone; without effect where something has been made already."""
    global _in_use
    _in_use = _in_use or (name,)


def kinds(where: str, name: str) -> tuple[Any, ...]:
    """A class of Lightning under every name that is imported by now: for ``isinstance``, whoever made the object.

    Args:
        where: its module, without Lightning's name: ``callbacks``.
        name: its own.
    """
    return tuple(getattr(import_module(_path(package, where)), name) for package in NAMES if package in sys.modules)


def package_of(something: object) -> ModuleType:
    """The Lightning that an object is of, such as a Trainer."""
    for kind in type(something).__mro__:
        for name in NAMES:
            if f"{kind.__module__}.".startswith(f"{name}."):
                return import_module(name)
    raise TypeError(f"{type(something).__name__} is not of Lightning: {something!r:.200}")


def fabric_of(something: object) -> ModuleType:
    """The Fabric below :func:`package_of`."""
    return import_module(FABRIC[package_of(something).__name__])


def _is_stolen(name: str) -> bool:
    try:
        return version(name.partition(".")[0].replace("_", "-")) in STOLEN
    except PackageNotFoundError:
        return False


def _at_home_here(namespace: dict[str, Any]) -> None:
    namespace["__module__"] = __name__  # where pickle finds it


def _path(package: str, where: str) -> str:
    return f"{package}.{where}" if where else package


def __getattr__(name: str) -> Any:
    if name in _BASES:
        found = [getattr(import_module(_path(package, _BASES[name])), name) for package in in_use()]
        made = found[0] if len(found) == 1 else new_class(name, tuple(found), {}, _at_home_here)
    elif name in _FIRST:
        made = getattr(import_module(_path(in_use()[0], _FIRST[name])), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made
