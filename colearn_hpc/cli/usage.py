"""What is wrong with a command line or a configuration, in one line, with the nearest name that there is.

jsonargparse says it in ten lines, in the terms of Python's types; what it found is read from there.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from colearn_hpc.cli.parsing import nearest
from colearn_hpc.cli.shipped import folder
from colearn_hpc.errors import ConfigurationError

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


class UsageError(ConfigurationError):
    """The command line or a configuration file cannot be read."""

    key = "command-line"


def in_one_line(error: str, known: Sequence[str]) -> str:
    """An error of jsonargparse for people; one that is of another form as it is, on one line.

    Args:
        error: its text.
        known: all options, without the dashes.
    """
    if found := re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", error):
        hint = nearest(found[1] or found[2], known, cutoff=0.75) or "`colearn-hpc fit --help` lists what there is"
        return f"{_flat(error)}; {hint}"
    if not (where := re.search(r'Parser key "([\w.]+)"', error)):
        return _flat(error)
    key, value = where[1], _value(error)
    if key == "config" and (missing := re.search(r"File does not exist: '(.*)'", error)):
        return f"config={missing[1]}: there is no such file; {_file_like(Path(missing[1]))}"
    if found := re.search(
        r"given class_path '[\w.]+':\s+Parser key \"([\w.]+)\"(.*?)(?:\n    - |\Z)", error, re.DOTALL
    ):
        return in_one_line(f'Parser key "{key}.{found[1]}"{found[2]}', known)
    if found := re.search(r"Import path does not (?:correspond to a subclass of|implement protocol) (\w+)", error):
        return f"{key}={value}: is no {found[1]}"
    if found := re.search(r"given class_path '([\w.]+)':\s+(.* required: .*)", error):
        return f"{key}: {found[1]}: {found[2]}"
    if found := re.search(r"given class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", error):
        hint = nearest(found[2], _arguments(found[1])) or f"`fit --{key}.help {found[1]}` lists what it takes"
        return f"{key}.{found[2]}: {found[1]} has no such argument; {hint}"
    expected = [_TYPES.get(name, name) for name in dict.fromkeys(re.findall(r"Expected an? <class '([\w.]+)'>", error))]
    choices = list(dict.fromkeys(re.findall(r"'([^']*)'", " ".join(re.findall(r"Literal\[(.*?)\]", error)))))
    classes = _classes(error, value)
    if choices or classes is not None:
        reason = re.search(r"Problem with given class_path .*:\s+(.*)", error)
        must = f"must be one of {', '.join(choices)}" if choices else "there is no such class"
        if classes is not None and choices:
            must += ", or a class"
        elif choices and (values := [kind for kind in expected if kind != "null"]):
            must = f"must be {' or '.join(values)} or {must.removeprefix('must be ') if choices[1:] else choices[0]}"
        elif reason and not choices:
            must = reason[1]
        hint = nearest(value, [*choices, *(classes or [])])
        return f"{key}={value}: {must}" + (f"; {hint}" if hint else "")
    if expected:
        return f"{key}={value}: must be {' or '.join(expected)}"
    return _flat(error)


def _file_like(path: Path) -> str:
    """What to do where a configuration is not there: its neighbour with a near name, or the package's own."""
    if hint := nearest(path.name, [one.name for one in path.parent.glob("*.y*ml")], cutoff=0.75):
        return hint
    if (folder("configs") / path.name).is_file():
        return f"`colearn-hpc configs copy {path.stem}` brings it"
    return "`colearn-hpc configs list` names those that come with this package"


def _flat(error: str) -> str:
    return " ".join(error.split())


def _value(error: str) -> str:
    """What was given: ``Given value: X``, ``Got value: X``, or the value of one argument of a class."""
    given = re.findall(r"(?:Given|Got) value: (.*)", error)
    inner = re.search(r"^NestedArg\(key='(\w+)', val='?(.*?)'?\)$", given[-1]) if given else None
    return inner[2] if inner else given[-1].strip() if given else ""


def _classes(error: str, value: str) -> list[str] | None:
    """Names of classes that could have been meant; None where no class is wanted."""
    if "Expected a dot import path" not in error and "Problem with given class_path" not in error:
        return None
    prefix = value.rpartition(".")[0]
    if (module := _imported(prefix)) is not None:
        names = {*dir(module), *getattr(module, "__all__", ())}
        return [f"{prefix}.{name}" for name in sorted(names) if name[:1].isupper()]
    bases = re.findall(r"([\w.]+\.\w+)(?:'>|\])", "".join(re.findall(r"Subtypes: (.*)", error)))
    found = [base for path in bases if (base := _imported(path)) is not None]
    return sorted({name for base in found for name in _subclasses(base)})


def _subclasses(base: Any) -> set[str]:
    names = {base.__name__}
    for kind in type.__subclasses__(base):
        names |= _subclasses(kind)
    return names


def _arguments(path: str) -> list[str]:
    """All arguments of a class, those of its bases too."""
    found = _imported(path)
    kinds = inspect.getmro(found) if inspect.isclass(found) else ()
    makers = [vars(kind).get("__init__") for kind in kinds]
    return [name for made in makers if inspect.isfunction(made) for name in inspect.signature(made).parameters]


def _imported(path: str) -> Any:
    """A module, or what is in one; None where there is no such thing."""
    if not path:
        return None
    try:
        return importlib.import_module(path)
    except Exception:  # not a module, or one that fails
        module, _, name = path.rpartition(".")
        return getattr(_imported(module), name, None)


def asks(argv: Sequence[str]) -> bool:
    """Whether the command line asks for help or for the configuration, after which a parser leaves."""
    options = [argument.partition("=")[0] for argument in argv if argument.startswith("-")]
    return any(option == "-h" or "help" in option or "print_config" in option for option in options)


def who_left(stop: BaseException) -> str:
    """Of code that ends the process when it is imported."""
    frames = [frame for frame in traceback.extract_tb(stop.__traceback__) if "site-packages" not in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} calls sys.exit() when it is imported"


def check_config_files(argv: Sequence[str]) -> None:
    """The parser's own messages do not say which file they are about.

    Raises:
        UsageError: a configuration file is no YAML, or holds no settings.
    """
    given = [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    given += [value for option, value in itertools.pairwise(argv) if option in ("--config", "-c")]
    for path in map(Path, given):
        if not os.path.isfile(path):  # noqa: PTH113 - may be settings themselves, too long for a path
            continue
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"configuration {path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            found = "nothing" if content is None else f"a {type(content).__name__}"
            raise UsageError(f"configuration {path} must hold `setting: value` lines, found {found}")
