"""Imports torch, torchmetrics and Lightning in half the time: every rank of every job waits for that.

Two thirds of what these import is not used by a training run:

- torchmetrics takes matplotlib, ``scipy.signal``, torchvision and transformers for a few of its metrics. Meanwhile
  stand-ins take their places (:class:`_Later`), and what torchmetrics keeps of them becomes real at first use.
- Lightning, and every step of every optimizer, take torch's compiler, ``torch._dynamo``, which only ``torch.compile``
  needs. A stand-in (:class:`_Compiler`) answers what they ask of it, and is gone when anybody asks for more.
- The garbage collector looks at all that thousands of modules make, again and again and once more at the process's
  end, and finds nothing. It is off meanwhile, and leaves alone afterwards what is there.

For the command line alone: ``import colearn_hpc`` changes nothing in a user's process.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from colearn_hpc._torchvision import make_torchvision_importable

_FOR_SOME_METRICS = ("matplotlib", "scipy.signal", "torchvision", "transformers")
_COMPILER = "torch._dynamo"


def import_quickly() -> None:
    """Import torch and torchmetrics, and put the compiler's stand-in in its place. To be called before Lightning comes.

    Whoever imports what has a stand-in afterwards gets the real one.
    """
    if "torchmetrics" in sys.modules:
        return
    with _no_collection():
        make_torchvision_importable()
        import torch

        if _COMPILER not in sys.modules:
            _Compiler.take_the_place(torch)
        with _stand_ins(_FOR_SOME_METRICS):
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


class _Later:
    """What an expression over a module that is not imported yet will be: ``plt.style.context("default")(plot)``.

    It can be written down while its module has a stand-in, and is worked out at its first use after that.
    """

    def __init__(self, work_out: Callable[[], Any], root: str, places: _Places) -> None:
        self.__dict__.update(_work_out=functools.cache(work_out), _root=root, _places=places)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for __path__ and the like, and takes no for an answer
            raise AttributeError(name)
        if self._places.taken:
            return _Later(lambda: getattr(self._work_out(), name), self._root, self._places)
        return getattr(self._work_out(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._places.taken:
            return _Later(lambda: self._work_out()(*args, **kwargs), self._root, self._places)
        return self._work_out()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        """Nothing is an instance of a class whose module nobody has imported."""
        return self._root in sys.modules and isinstance(instance, self._work_out())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        """The base of a class: that must be there."""
        with self._places.given_back():
            return (self._work_out(),)


class _Places(MetaPathFinder, Loader):
    """Imports a :class:`_Later` in place of each of some packages and of all that is in them."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots, self.taken = roots, False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        hidden = any(name == root or name.startswith(f"{root}.") for root in self.roots)
        return ModuleSpec(name, self, is_package=True) if hidden else None

    def create_module(self, spec: ModuleSpec) -> Any:
        root = next(root for root in self.roots if f"{spec.name}.".startswith(f"{root}."))
        return _Later(functools.partial(import_module, spec.name), root, self)

    def exec_module(self, module: Any) -> None:
        """There is nothing to run."""

    def take(self) -> None:
        self.taken = True
        sys.meta_path.insert(0, self)

    def give_back(self) -> None:
        self.taken = False
        sys.meta_path.remove(self)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Later)]:
            stand_in = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            around = vars(sys.modules[parent]) if parent in sys.modules else {}
            if around.get(child) is stand_in:
                del around[child]

    @contextmanager
    def given_back(self) -> Iterator[None]:
        taken = self.taken
        if taken:
            self.give_back()
        try:
            yield
        finally:
            if taken:
                self.take()


@contextmanager
def _stand_ins(names: Sequence[str]) -> Iterator[None]:
    """Stand-ins for those packages of ``names`` that are installed and not imported yet."""
    missing = [name for name in names if name not in sys.modules and find_spec(name.partition(".")[0]) is not None]
    places = _Places(missing)
    places.take()
    try:
        yield
    finally:
        places.give_back()


class _Compiler(ModuleType):
    """In the place of ``torch._dynamo`` until somebody asks for more than a run without ``torch.compile`` needs."""

    utils: ModuleType
    trace_rules: ModuleType

    @classmethod
    def take_the_place(cls, torch: ModuleType) -> None:
        spec = find_spec(_COMPILER)
        if spec is None:
            return
        stand_in = cls(_COMPILER, cls.__doc__)
        stand_in.__spec__, stand_in.__file__ = spec, spec.origin
        stand_in.__path__ = list(spec.submodule_search_locations or [])
        # What DDP asks: how the compiler is to treat it (this is the default; whoever sets another imports the
        # compiler's settings for that), and that the compiler should look at torch.distributed anew.
        stand_in.utils = _Part("utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")
        stand_in.trace_rules = _Part("trace_rules", clear_lru_cache=lambda: None)
        sys.modules[_COMPILER] = stand_in
        torch._dynamo = stand_in  # type: ignore[attr-defined]
        sys.meta_path.insert(0, _CompilersParts())

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        """A mark for the compiler, which is not there."""

    class _OfACompiledModule(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return _compiler_is_there() and isinstance(instance, sys.modules[_COMPILER].OptimizedModule)

    class OptimizedModule(metaclass=_OfACompiledModule):
        """Lightning asks whether a model is one. None is before the compiler is there."""

    @staticmethod
    def disable(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """``fn``, and once the compiler is there, what it makes of it."""
        if not callable(fn) or isinstance(fn, type):
            return _the_compiler().disable(fn, *args, **kwargs)

        @functools.wraps(fn)
        def uncompiled(*arguments: Any, **named: Any) -> Any:
            return (disabled() if _compiler_is_there() else fn)(*arguments, **named)

        disabled = functools.cache(lambda: _the_compiler().disable(fn, *args, **kwargs))
        return uncompiled

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_the_compiler(), name)


class _Part(ModuleType):
    """A module of the compiler with a few answers of its own; for any other the compiler comes."""

    def __init__(self, name: str, **answers: Callable[[], Any]) -> None:
        super().__init__(name)
        self.__dict__.update(answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_the_compiler(), self.__name__), name)


class _CompilersParts(MetaPathFinder, Loader):
    """``import torch._dynamo.config`` is to import the package, as it does without a stand-in.

    The package may import that module on its way. Then there is nothing left to load; but the import system, which has
    not seen the package come, would load the module again, by its own spec.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[ModuleType, ModuleSpec | None]] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{_COMPILER}.") or _compiler_is_there():
            return None
        _the_compiler()
        if name not in sys.modules:
            return None
        module = sys.modules.pop(name)  # until create_module; while it is there its own spec is taken
        self._loaded[name] = module, module.__spec__
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._loaded[spec.name][0]

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._loaded.pop(module.__name__)[1]


def _compiler_is_there() -> bool:
    return not isinstance(sys.modules.get(_COMPILER), _Compiler)


def _the_compiler() -> ModuleType:
    if not _compiler_is_there():
        del sys.modules[_COMPILER]  # the import puts the real one there, and into torch
    return import_module(_COMPILER)
