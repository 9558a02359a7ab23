"""What ``method`` means: who is in which data center, on whose data, under which rules.

* ``colearning``: as configured.
* ``vanilla``: one data center holds all shards; all ranks form one DDP world. Nothing is averaged.
* ``ensemble``: data centers never exchange weights; their predicted probabilities are averaged.
* ``single``: one data center trains alone on its own shard: what a lone hospital gets.

The last three are not co-learning, so the names of its rules do not apply to them: ``clr`` becomes ``elr`` and
``ile`` becomes ``fle``. Whoever wants another schedule there gives an object (``class_path``), which is left alone.
Everything else is equal: net, optimizer, budget in local epochs, batch per rank. A vanilla run on the ranks of one data
center therefore has that data center's global batch; on all ranks it has as many times more.
"""

from __future__ import annotations

from typing import Any

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.mpi.pooling import declare, declared_names
from colearn_hpc.mpi.topology import CentersSpec
from colearn_hpc.protocol.messages import plural

POOLED = "pooled"  # the name of vanilla's one data center
_NEEDS_SHARED = {
    "local_correction": "pull towards",
    "local_layers": "keep layers out of",
    "kept_model": "average",
}
_INSTEAD = {"schedule": {"clr": "elr"}, "local_epochs_rule": {"ile": "fle"}}


def arrange(settings: Any) -> tuple[CentersSpec, str]:
    """Turn ``fit``'s settings into those of its method, in place. Collective over the world.

    Args:
        settings: the parsed configuration of ``fit``, before anything is built from it.

    Returns:
        What ``centers`` means now, and a line for people (empty for co-learning).

    Raises:
        ConfigurationError: on all ranks, when the method cannot be had with these settings.
    """
    method, centers = settings["method"], settings["centers"]
    if method == "colearning":
        return centers, ""
    # What ensemble-learning excludes, Settings says; the other two have one data center.
    if method != "ensemble":
        for key, does in _NEEDS_SHARED.items():
            if settings["colearning"].get(key) is not None:
                raise ConfigurationError(
                    f"method {method} has no shared model for colearning.{key} to {does}; drop one of the two"
                ).on_all_ranks()
    replaced = _replace_rules(settings["colearning"])
    if method == "ensemble":
        return centers, f"method ensemble: data centers train alone, predictions are averaged{replaced}"
    names, here = declared_names(centers)
    if method == "vanilla":
        pooled = _pool(settings["data"], names)
        declare(POOLED)
        return None, f"method vanilla: one data center, {pooled}{replaced}"
    mine = _single(names, here)
    declare(mine)
    return None, f"method single: only {mine}'s data{replaced}"


def _replace_rules(colearning: Any) -> str:
    changed = ""
    for key, instead in _INSTEAD.items():
        name = colearning[key]
        if isinstance(name, str) and name in instead:
            colearning[key] = instead[name]
            changed += f"; {key} {instead[name]}"
    return changed


def _pool(data: Any, names: list[str]) -> str:
    arguments = data.get("init_args") or {}
    train = arguments.get("train")
    templates = [train] if isinstance(train, str) else train
    if not isinstance(templates, list) or not all(isinstance(item, str) for item in templates):
        raise ConfigurationError(
            f"method vanilla pools the shards of {', '.join(names)}, but {data.get('class_path')} has no `train` "
            "path; give the data class a `train` that takes a list of paths, or pool the data yourself and use "
            "method colearning with one data center"
        ).on_all_ranks()
    if not any("{center}" in item for item in templates):
        return f"data.train as given ({plural(len(templates), 'path')})"
    arguments["train"] = [item.replace("{center}", name) for item in templates for name in names]
    return f"all shards of {', '.join(names)}"


def _single(names: list[str], here: list[str]) -> str:
    if len(here) > 1:
        raise ConfigurationError(
            f"method single trains on one data center's data, but ranks of several are running ({', '.join(here)}); "
            "start only that data center's ranks"
        ).on_all_ranks()
    return here[0] if here else names[0]
