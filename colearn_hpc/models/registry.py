"""From the name in a YAML file to a network: ``network: densenet40``.

Three kinds of names exist: the ones registered in this package, ``timm/NAME`` for every image network of timm, and
the dotted path of a user's own class (``my_pkg.my_module.MyNet``).
"""

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from colearn_hpc.errors import ConfigurationError

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)

# Imported at the first look-up rather than by the package, so that `import colearn_hpc.models` stays light.
_ROOMS = tuple(f"colearn_hpc.models.{room}" for room in ("audio", "image", "text", "vgg"))
_TIMM = "timm/"

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[B], B]:
    """Make a builder known under ``name``.

    Args:
        name: What a config writes after ``network:``.

    Returns:
        A decorator that returns the builder unchanged. The builder takes ``num_classes`` and its own keywords and
        returns an ``nn.Module``.

    Raises:
        ConfigurationError: ``name`` is taken by another builder, or contains a dot (dots mean a class path).
    """
    if not name or "." in name or name.startswith(_TIMM):
        raise ConfigurationError(
            f"network name {name!r}: dots are for class paths and {_TIMM} is for timm; choose another"
        )

    def remember(builder: B) -> B:
        known = _BUILDERS.get(name)
        # The same function again is a reloaded module (notebooks), not a clash.
        if known is not None and (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
            raise ConfigurationError(
                f"network name {name!r} is already taken by {known.__module__}.{known.__qualname__}; choose another"
            )
        _BUILDERS[name] = builder
        return builder

    return remember


def network_names() -> list[str]:
    """The registered names, sorted."""
    for room in _ROOMS:
        import_module(room)
    return sorted(_BUILDERS)


def build_network(name: str, num_classes: int, **args: Any) -> nn.Module:
    """Build a network by name.

    Args:
        name: A registered name, ``timm/NAME``, or the dotted path of an ``nn.Module`` class. The class is given
            ``num_classes`` if its constructor takes it.
        num_classes: Length of the network's output row.
        **args: The network's own keywords (``network_args:`` in a config).

    Returns:
        The network, in training mode, on the CPU, with its own initial weights.

    Raises:
        ConfigurationError: The name is unknown (the nearest names are listed), the class path leads nowhere or to
            something else than an ``nn.Module`` class, or the keywords do not fit.
    """
    if num_classes < 1:
        raise ConfigurationError(f"num_classes={num_classes} for network {name!r}; set it to 1 or more")
    if name.startswith(_TIMM):  # before the dot: timm's names may carry one, as in timm/resnet50.a1_in1k
        from colearn_hpc.models.timm_networks import build_timm

        return build_timm(name, num_classes, **args)
    builder = _import_class(name) if "." in name else _look_up(name)
    signature = inspect.signature(builder)
    takes_classes = "num_classes" in signature.parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()
    )
    if takes_classes:
        args = {"num_classes": num_classes, **args}
    try:
        # Before the call: a TypeError from inside the builder is the builder's own and keeps its traceback.
        signature.bind(**args)
    except TypeError as error:
        raise ConfigurationError(
            f"network {name!r} was given {sorted(args)}, but {error}; it takes {name}{signature}"
        ) from None
    return builder(**args)


def _look_up(name: str) -> Builder:
    names = network_names()
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        raise ConfigurationError(
            f"network {name!r} is not known; nearest: {', '.join(near)}. "
            f"timm's networks are named {_TIMM}NAME; your own class is given by its dotted path, "
            "as in my_pkg.my_module.MyNet"
        )
    return _BUILDERS[name]


def _import_class(path: str) -> type[nn.Module]:
    module_name, _, class_name = path.rpartition(".")
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"network {path!r} was read as class {class_name!r} of module {module_name!r}, but: {error}. "
            "Check the spelling, and that the module can be imported where the job runs (installed, or in PYTHONPATH)"
        ) from error
    # Classes only: the path may come from somebody else's checkpoint, and calling whatever it names, with arguments
    # that it also names, would let a weights file run any function on this machine.
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ConfigurationError(
            f"network {path!r} is {type(found).__name__} {found!r}, not a subclass of torch.nn.Module; "
            "name a class, or register a function under a name with colearn_hpc.models.register"
        )
    return found
