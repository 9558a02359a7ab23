"""A study file: what is compared with what, and with which budget. See configs/studies/ and docs/studies.md.

name: ablation_digits
config: ../quickstart.yaml       # relative to this file; what `fit --config` takes
centers: 5
epochs: 60                       # local epochs of every data center in every arm: the equal budget
trials: 5                        # or seeds: [0, 1, 2, 3, 4]
arms: [clr+ile, elr+fle, vanilla]
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.methods import ARMS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # names become folders
_SMOKE_KEYS = ("arms", "epochs", "models", "seeds", "set", "trials")


@dataclass(frozen=True)
class Variant:
    """One value of an axis of the grid: an arm, a model, a data set.

    Attributes:
        name: its name.
        settings: what it changes in the configuration.
        ranks: for an arm that puts all ranks into one data center: ``center`` starts one data center's ranks
            (its global batch is then that of a data center), ``all`` those of all data centers.
        paper_row: for a model: its row in the paper's Table 2.
        label: name for people; empty: the name.
    """

    name: str
    settings: dict[str, Any]
    ranks: str = "center"
    paper_row: str = ""
    label: str = ""


@dataclass(frozen=True)
class Tune:
    """The search before the reported runs.

    Attributes:
        trials: settings that are tried for every arm: equally many.
        grids: arm -> setting -> the values that are tried.
        seeds: each setting is trained with each; none of the reported ones.
        settings: laid over those of all trials; they name the validation data.
        epochs: of a trial; None: as many as a reported run has.
    """

    trials: int
    grids: dict[str, dict[str, list[Any]]]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    epochs: int | None = None


@dataclass(frozen=True)
class Link:
    """The link over which the report's wall clock is counted: a model, not a measurement.

    Attributes:
        megabits: per second, of each data center, both ways.
        milliseconds: from one data center to another, one way.
    """

    megabits: float = 100.0
    milliseconds: float = 20.0


@dataclass(frozen=True)
class Study:
    """A study file, checked.

    Attributes:
        name, title: for folders and for people.
        base: the configuration that all runs share.
        centers, ranks_per_center: K and the ranks of each.
        epochs: local epochs of every data center in every run.
        seeds: one trial each.
        metric: name of the metric that is compared; higher is better.
        settings: laid over ``base`` for all runs.
        arms, models, data: the axes.
        seed_keys: settings that a trial's seed is written to.
        threads: per rank; None: cores / ranks that run at once.
        prepare: the command that makes the data, shown when they are missing.
        smoke: whether this is the tiny form.
        tune: the search before the reported runs; None: there is none.
        link: over which the report counts wall clock.
    """

    name: str
    title: str
    base: dict[str, Any]
    centers: int
    epochs: int
    seeds: tuple[int, ...]
    arms: tuple[Variant, ...]
    models: tuple[Variant, ...]
    data: tuple[Variant, ...]
    metric: str = "val_acc"
    ranks_per_center: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    seed_keys: tuple[str, ...] = ("seed_everything", "data.init_args.seed")
    threads: int | None = None
    prepare: str = ""
    smoke: bool = False
    tune: Tune | None = None
    link: Link = field(default_factory=Link)


_KEYS = {
    "arms",
    "centers",
    "config",
    "data",
    "epochs",
    "link",
    "metric",
    "models",
    "name",
    "prepare",
    "ranks_per_center",
    "seed_keys",
    "seeds",
    "set",
    "smoke",
    "threads",
    "title",
    "trials",
    "tune",
}


def read_study(path: Path, smoke: bool = False) -> Study:
    """Read and check a study file.

    Args:
        path: the YAML file.
        smoke: take the tiny budget of its ``smoke:`` part (2 epochs and 1 trial unless it says otherwise).

    Raises:
        ConfigurationError: the file or the configuration it names cannot be read, or a key is unknown, missing or
            impossible.
    """
    content = _read_yaml(path, "study file")
    _check_keys(content, _KEYS, str(path))
    if smoke:
        content = _smoke(content, path)
    for key in ("config", "centers", "epochs", "arms"):
        if key not in content:
            raise ConfigurationError(f"{path}: {key!r} is missing; a study needs config, centers, epochs and arms")
    name = str(content.get("name", path.stem))
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{path}: name {name!r} becomes a folder: use letters, digits, '.', '_', '+', '-'")
    seeds = _seeds(content, path)
    arms = _variants(content["arms"], "arms", path, ARMS)
    return Study(
        name=name,
        title=str(content.get("title", name)),
        base=_read_yaml(path.parent / str(content["config"]), f"config of {path}"),
        centers=_whole(content, "centers", path),
        epochs=_whole(content, "epochs", path),
        ranks_per_center=_whole(content, "ranks_per_center", path, 1),
        threads=_whole(content, "threads", path) if content.get("threads") is not None else None,
        seeds=seeds,
        arms=arms,
        models=_variants(content.get("models") or {"": {}}, "models", path),
        data=_variants(content.get("data") or {"": {}}, "data", path),
        metric=str(content.get("metric", "val_acc")),
        settings={**_mapping(content.get("set"), "set", path), **content.get("smoke_set", {})},
        seed_keys=tuple(content.get("seed_keys", Study.seed_keys)),
        prepare=str(content.get("prepare", "")),
        smoke=smoke,
        tune=_tune(content, arms, seeds, path),
        link=_link(content, path),
    )


def _smoke(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tiny form: a study file's content with its ``smoke:`` part laid over it."""
    tiny = _mapping(content.get("smoke"), "smoke", path)
    _check_keys(tiny, _SMOKE_KEYS, f"{path}: smoke")
    chosen = {key: _chosen(content.get(key), tiny[key], key, path) for key in ("arms", "models") if key in tiny}
    small = {"epochs": 2, "trials": 1, "smoke_set": _mapping(tiny.get("set"), "smoke: set", path)}
    small |= {key: value for key, value in tiny.items() if key in ("epochs", "trials", "seeds")}
    if content.get("tune"):
        tune = _mapping(content["tune"], "tune", path)
        grids = _mapping(tune.get("arms"), "tune: arms", path)
        grids = {arm: grid for arm, grid in grids.items() if arm in chosen.get("arms", grids)}
        few = {"trials": 2, "seeds": list(_tuning_seeds(tune, path))[:1], "epochs": small["epochs"], "arms": grids}
        small["tune"] = tune | few
    result = {key: value for key, value in content.items() if key != "seeds"} | small | chosen
    return result | {"name": f"{content.get('name', path.stem)}-smoke"}


def _chosen(all_of_them: Any, names: Any, axis: str, path: Path) -> Any:
    """Those of an axis that the smoke form takes, as they are defined in the whole study."""
    known = list(all_of_them or [])
    if not isinstance(names, list) or not names or any(name not in known for name in names):
        raise ConfigurationError(f"{path}: smoke: {axis} must list some of {', '.join(map(str, known))}; found {names}")
    return {name: all_of_them[name] if isinstance(all_of_them, dict) else None for name in names}


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{what} {path}: cannot be read ({error.strerror}); correct the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ConfigurationError(f"{what} {path}: is no valid YAML: {where}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{what} {path}: must hold `key: value` lines, found {type(content).__name__}")
    return content


def _check_keys(content: Mapping[Any, Any], known: Any, where: str) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigurationError(f"{where}: unknown key {key!r}; {hint}")


def _whole(content: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = content.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{path}: {key} must be a whole number, at least 1; found {value!r}")
    return value


def _seeds(content: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    if "seeds" not in content:
        return tuple(range(_whole(content, "trials", path, 5)))
    seeds = content["seeds"]
    whole = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not whole or not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigurationError(f"{path}: seeds must be a list of different whole numbers, found {seeds!r}")
    return tuple(seeds)


def _tuning_seeds(tune: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    return _seeds({"seeds": tune.get("seeds", [1000])}, path)


def _tune(content: Mapping[str, Any], arms: tuple[Variant, ...], seeds: tuple[int, ...], path: Path) -> Tune | None:
    if content.get("tune") is None:
        return None
    given, where = _mapping(content["tune"], "tune", path), f"{path}: tune"
    _check_keys(given, {"arms", "epochs", "grid", "seeds", "set", "trials"}, where)
    common, own = _mapping(given.get("grid"), "tune: grid", path), _mapping(given.get("arms"), "tune: arms", path)
    _check_keys(own, [arm.name for arm in arms], f"{where}: arms")
    grids = {arm.name: common | _mapping(own.get(arm.name), f"tune: arms: {arm.name}", path) for arm in arms}
    for arm, grid in grids.items():
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigurationError(f"{where}: {arm}: {key} must be a list of values to try, found {values!r}")
    sizes = {arm: math.prod(len(values) for values in grid.values()) for arm, grid in grids.items()}
    trials = _whole(given, "trials", path, min(sizes.values()))
    if few := [f"{arm} {size}" for arm, size in sizes.items() if size < trials]:
        raise ConfigurationError(
            f"{where}: every arm gets {trials} trials, and some have fewer settings to try: {', '.join(few)}; give "
            "them more values, or all fewer trials"
        )
    settings, tuning = _mapping(given.get("set"), "tune: set", path), _tuning_seeds(given, path)
    if not settings:
        raise ConfigurationError(f"{where}: set is missing: it names the validation data that trials are judged on")
    if both := sorted(set(tuning) & set(seeds)):
        raise ConfigurationError(f"{where}: seed {both[0]} is a reported one too; tune with seeds of its own")
    epochs = _whole(given, "epochs", path) if given.get("epochs") is not None else None
    return Tune(trials, grids, tuning, settings, epochs)


def _link(content: Mapping[str, Any], path: Path) -> Link:
    given = _mapping(content.get("link"), "link", path)
    _check_keys(given, {"megabits", "milliseconds"}, f"{path}: link")
    for key, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (value > 0 or (value == 0 and key == "milliseconds")):
            raise ConfigurationError(f"{path}: link: {key} must be a positive number, found {value!r}")
    return Link(**given)


def _mapping(value: Any, key: str, path: Path) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigurationError(f"{path}: {key} must hold `setting: value` lines, found {value!r}")
    return dict(value or {})


def _variants(
    given: Any, axis: str, path: Path, builtin: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Variant, ...]:
    """An axis: a list of built-in names, or a mapping of names to ``{like, set, ranks, paper_row, label}``."""
    builtin = builtin or {}
    if isinstance(given, list):
        given = dict.fromkeys(given)
    if not isinstance(given, dict) or not given:
        raise ConfigurationError(f"{path}: {axis} must be a list of names or a mapping, found {given!r}")
    variants = []
    for name, content in given.items():
        where = f"{path}: {axis}: {name}"
        content = _mapping(content, f"{axis}: {name}", path)
        _check_keys(content, {"like", "set", "ranks", "paper_row", "label"}, where)
        name, like = str(name), content.get("like", name)
        if name and not _NAME.fullmatch(name):
            raise ConfigurationError(f"{where}: a name becomes a folder: use letters, digits, '.', '_', '+', '-'")
        if builtin and like not in builtin and not (content.get("set") and "like" not in content):
            near = difflib.get_close_matches(str(like), builtin, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"built in are {', '.join(builtin)}"
            raise ConfigurationError(f"{where}: no arm {like!r} is built in, and it sets nothing; {hint}")
        ranks = content.get("ranks", "center")
        if ranks not in ("center", "all"):
            raise ConfigurationError(f"{where}: ranks must be center or all, found {ranks!r}")
        settings = {**builtin.get(like, {}), **_mapping(content.get("set"), f"{axis}: {name}: set", path)}
        variants.append(
            Variant(name, settings, ranks, str(content.get("paper_row", "")), str(content.get("label", "")))
        )
    return tuple(variants)
