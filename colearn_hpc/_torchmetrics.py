"""Imports torchmetrics, and torch with it, in half the time: every rank of every job waits for that.

torchmetrics 1.9, which Lightning imports, takes the whole of ``scipy.signal`` only to give it an alias of an old name
that nothing in torchmetrics uses any more. While it is imported a stand-in that has the name already takes that place;
should another version want more of it, it gets that from the real one.

The garbage collector looks at all that thousands of modules make, again and again and once more at the process's end,
and finds nothing. It is off meanwhile, and leaves alone afterwards what is there.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from colearn_hpc._torchvision import make_torchvision_importable

_NAME = "scipy.signal"


def import_torchmetrics() -> None:
    """Import torchmetrics, with what its import of torchvision needs. To be called before Lightning is imported.

    Whoever asks for ``scipy.signal`` afterwards gets the real one.
    """
    if "torchmetrics" in sys.modules:
        return
    with _no_collection(), _stand_in():
        make_torchvision_importable()
        import torchmetrics  # noqa: F401


@contextmanager
def _no_collection() -> Iterator[None]:
    collects, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:  # otherwise there may be tensors of the user's, which he wants to be rid of one day
            gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def _stand_in() -> Iterator[None]:
    if _NAME in sys.modules or find_spec("scipy") is None:
        yield
        return
    module: Any = ModuleType(_NAME)
    module.hamming = None
    module.__getattr__ = _of_the_real_one
    sys.modules[_NAME] = module
    try:
        yield
    finally:
        if sys.modules[_NAME] is module:
            del sys.modules[_NAME]


def _of_the_real_one(name: str) -> Any:
    if name.startswith("__"):  # the import system asks for __path__ and the like, and takes no for an answer
        raise AttributeError(name)
    if sys.modules.get(_NAME) is not None and sys.modules[_NAME].__spec__ is None:  # still the stand-in
        del sys.modules[_NAME]
    return getattr(import_module(_NAME), name)
