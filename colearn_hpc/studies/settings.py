"""Nested settings with dotted keys: ``{"colearning.epsilon": 0.02}`` laid over a configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from colearn_hpc.errors import ConfigurationError


def merged(base: Mapping[str, Any], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``overrides`` laid over it, later ones last; the arguments stay as they are.

    Keys may be dotted; mappings are merged, everything else is replaced. A mapping with a ``class_path`` replaces
    what was there if it names another class: the arguments of one class are none of another.

    Raises:
        ConfigurationError: a dotted key leads through something that is no mapping.
    """
    result = copy.deepcopy(dict(base))
    for override in overrides:
        for key, value in override.items():
            _put(result, key.split("."), copy.deepcopy(value), key)
    return result


def lookup(settings: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value under a dotted key."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _put(target: dict[str, Any], path: list[str], value: Any, whole: str) -> None:
    for part in path[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigurationError(f"setting {whole!r}: {part!r} is {target!r}, which has nothing below it")
    last = path[-1]
    present = target.get(last)
    if isinstance(value, Mapping) and isinstance(present, dict):
        if "class_path" in value and value["class_path"] != present.get("class_path"):
            target[last] = merged({}, value)
        else:
            target[last] = merged(present, value)
    else:
        target[last] = merged({}, value) if isinstance(value, Mapping) else value
