"""The arms of a comparison, by name: what each changes in a configuration.

===========  ================================================================================================
clr+ile      co-learning (Mi et al. 2020): cyclical rate, increasing local epochs
clr+fle      ablation: cyclical rate, fixed local epochs
elr+ile      ablation: one exponential decay, increasing local epochs
elr+fle      ablation: one exponential decay, fixed local epochs; plain model averaging
vanilla      one data center holds all data
ensemble     data centers train alone, their predicted probabilities are averaged
single       one data center's data only
fedavg       constant rate, fixed local epochs (McMahan et al. 2017, arXiv 1602.05629)
qsr          local epochs ∝ 1/η² under ELR (Gu et al. 2024, arXiv 2310.14423)
diloco       outer Nesterov on the pseudo-gradient, inner state kept, ELR and FLE (Douillard et al. 2023, arXiv
             2311.08105; the inner optimizer is the configuration's, not their AdamW)
===========  ================================================================================================
"""

from __future__ import annotations

import math
from typing import Any

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.settings import lookup


def _averaging(schedule: str, rule: str, **more: Any) -> dict[str, Any]:
    rules = {"schedule": schedule, "local_epochs_rule": rule}
    return {"method": "colearning", **{f"colearning.{key}": value for key, value in (rules | more).items()}}


ARMS: dict[str, dict[str, Any]] = {
    "clr+ile": _averaging("clr", "ile"),
    "clr+fle": _averaging("clr", "fle"),
    "elr+ile": _averaging("elr", "ile"),
    "elr+fle": _averaging("elr", "fle"),
    "vanilla": {"method": "vanilla"},
    "ensemble": {"method": "ensemble"},
    "single": {"method": "single"},
    "fedavg": _averaging("constant", "fle"),
    "qsr": _averaging("elr", "qsr"),
    "diloco": _averaging("elr", "fle", outer_optimizer={"class_path": "colearn_hpc.OuterSGD"}, optimizer_state="keep"),
}

LABELS = {
    "clr+ile": "co-learning (CLR+ILE)",
    "clr+fle": "CLR+FLE",
    "elr+ile": "ELR+ILE",
    "elr+fle": "ELR+FLE",
    "vanilla": "vanilla",
    "ensemble": "ensemble",
    "single": "single data center",
    "fedavg": "FedAvg (constant rate, FLE)",
    "qsr": "QSR",
    "diloco": "outer Nesterov (DiLoCo)",
}


def label(arm: str) -> str:
    """An arm's name for people."""
    return LABELS.get(arm, arm)


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the rule ``qsr`` spelled out, in place: α depends on the rate and on T_0.

    α = η·√T_0 makes T grow from T_0 as soon as the rate falls below its start: T = T_0·(η_start/η)².

    Raises:
        ConfigurationError: no starting rate in the settings.
    """
    if lookup(settings, "colearning.local_epochs_rule") != "qsr":
        return settings
    rate = lookup(settings, "colearning.learning_rate") or lookup(settings, "model.init_args.learning_rate")
    initial = lookup(settings, "colearning.local_epochs", 5)
    if not isinstance(rate, int | float):
        raise ConfigurationError(
            "arm qsr derives its α from the starting rate, and neither colearning.learning_rate nor "
            "model.init_args.learning_rate is set; set one, or give the rule itself: "
            "local_epochs_rule: {class_path: colearn_hpc.QuadraticEpochs, init_args: {initial: …, alpha: …}}"
        )
    settings["colearning"]["local_epochs_rule"] = {
        "class_path": "colearn_hpc.QuadraticEpochs",
        "init_args": {"initial": initial, "alpha": rate * math.sqrt(initial)},
    }
    return settings
