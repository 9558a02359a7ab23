"""Which of Lightning's two names a command line is for: the one that the user's own classes have.

The classes are named on the command line and in configuration files. Their modules are imported here, before anything
of this package that derives from Lightning, and what is wrong with them is left to the parser to say.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from colearn_hpc import _lightning

_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def settle(argv: Sequence[str]) -> None:
    """Settle on a name, by the first class in the command line or its configuration files that has one."""
    for name in _class_paths(argv):
        module, _, attribute = name.rpartition(".")
        if module.split(".")[0] in ("colearn_hpc", "torch", "torchvision"):
            continue
        kind: Any = None
        with contextlib.suppress(Exception):
            kind = getattr(import_module(module), attribute, None)
        found = [one for one in _lightning.NAMES if _derives_from(kind, one)]
        if found:
            return _lightning.settle_on(found[0])
    imported = [one for one in _lightning.NAMES if one in sys.modules]
    _lightning.settle_on((*imported, *_lightning.installed())[0])


def _derives_from(kind: Any, lightning: str) -> bool:
    return isinstance(kind, type) and any(f"{one.__module__}.".startswith(f"{lightning}.") for one in kind.__mro__)


def _class_paths(argv: Sequence[str]) -> Iterator[str]:
    """Dotted names in the arguments, and the class paths in the files that they name."""
    for argument in argv:
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        if value.endswith((".yaml", ".yml")):
            with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
                yield from _in_config(yaml.safe_load(Path(value).read_text()))
        elif _CLASS.fullmatch(value):
            yield value


def _in_config(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, item in content.items():
            if key == "class_path" and isinstance(item, str) and _CLASS.fullmatch(item):
                yield item
            else:
                yield from _in_config(item)
    elif isinstance(content, list):
        for item in content:
            yield from _in_config(item)
