"""The arms of a comparison, by name: what each changes in a configuration.

==================  =========================================================================================
clr+ile             co-learning (Mi et al. 2020): cyclical rate, increasing local epochs
clr+fle             ablation: cyclical rate, fixed local epochs
elr+ile             ablation: one exponential decay, increasing local epochs
elr+fle             ablation: one exponential decay, fixed local epochs; plain model averaging
clr+auto            co-learning without an ε: T doubles when the shared model's change has stopped falling (ours)
clr+ile-int4        co-learning with 4 bits a value and error feedback on the wire
clr+ile-topk        co-learning with 1 value of 32 and error feedback on the wire
vanilla             one data center holds all data
ensemble            data centers train alone, their predicted probabilities are averaged
single              one data center's data only
fedavg              constant rate, fixed local epochs (McMahan et al. 2017, arXiv 1602.05629)
fedprox             fedavg, with μ (w_k − w̄) in every gradient (Li et al. 2020, arXiv 1812.06127)
scaffold            fedavg, with control variates in every gradient (Karimireddy et al. 2020, arXiv 1910.06378)
fedbn               fedavg, BatchNorm stays in its data center (Li et al. 2021, arXiv 2102.07623)
lawa                fedavg, the mean of the last 5 shared models is the result (Kaddour 2022, arXiv 2209.14981)
fedswa              the rate falls linearly in every round; moving average of shared models (Liu et al. 2025, arXiv
                    2507.20016)
fedswa-mean         fedswa without the moving average
qsr                 local epochs ∝ 1/η² under ELR (Gu et al. 2024, arXiv 2310.14423)
post-local          T = 1 for half of the budget, then T_0, under ELR (Lin et al. 2020, arXiv 1808.07217)
decaying            local epochs fall as ∛(1/(i + 1)), constant rate (Mills et al. 2023, arXiv 2305.09628)
adacomm             local epochs fall with √loss, constant rate (Wang and Joshi 2019, arXiv 1810.08313)
diloco              outer Nesterov on the pseudo-gradient, inner state kept, ELR and FLE (Douillard et al. 2023, arXiv
                    2311.08105; the inner optimizer is the configuration's, not their AdamW)
streaming-diloco    diloco, of which a round averages one of 4 fragments (Douillard et al. 2025, arXiv 2501.18512); its
                    4 bits a value and its overlap are `exchange: {fragments: 4, overlap: true, codec: int4}`
muloco              diloco with Muon as the inner optimizer (Thérien et al. 2025, arXiv 2505.23725); its rate is
                    `optimizer.init_args.lr`, not the model's
delayed-nesterov    diloco with momentum that is renewed every 2 rounds (Liu et al. 2024, arXiv 2401.09135)
fedavgm             fedavg with server momentum (Hsu et al. 2019, arXiv 1909.06335)
fedadam, fedyogi    fedavg with Adam or Yogi on the pseudo-gradient (Reddi et al. 2021, arXiv 2003.00295)
NAME-k1             the control of an arm with an outer optimizer: one data center holds all data, and the outer
                    optimizer steps all the same (arXiv 2510.15830): what it gains there is not averaging's
==================  =========================================================================================
"""

from __future__ import annotations

import math
from typing import Any

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.settings import lookup


def _averaging(schedule: Any, rule: str, **more: Any) -> dict[str, Any]:
    rules = {"schedule": schedule, "local_epochs_rule": rule}
    return {"method": "colearning", **{f"colearning.{key}": value for key, value in (rules | more).items()}}


def _made(name: str, **arguments: Any) -> dict[str, Any]:
    """An object of the package, as a configuration names it."""
    return {"class_path": f"colearn_hpc.{name}"} | ({"init_args": arguments} if arguments else {})


_DILOCO = _averaging("elr", "fle", outer_optimizer=_made("OuterSGD"), optimizer_state="keep")

_OUTER = {
    "diloco": _DILOCO,
    "streaming-diloco": _DILOCO | {"colearning.exchange": {"fragments": 4}},
    "muloco": _DILOCO | {"optimizer": _made("models.Muon", lr=0.001)},
    "delayed-nesterov": _averaging("elr", "fle", outer_optimizer=_made("DelayedNesterov"), optimizer_state="keep"),
    "fedavgm": _averaging(
        "constant", "fle", outer_optimizer=_made("OuterSGD", learning_rate=1.0, momentum=0.9, nesterov=False)
    ),
    "fedadam": _averaging("constant", "fle", outer_optimizer=_made("FedAdam")),
    "fedyogi": _averaging("constant", "fle", outer_optimizer=_made("FedYogi")),
}

ARMS: dict[str, dict[str, Any]] = {
    "clr+ile": _averaging("clr", "ile"),
    "clr+fle": _averaging("clr", "fle"),
    "elr+ile": _averaging("elr", "ile"),
    "elr+fle": _averaging("elr", "fle"),
    "clr+auto": _averaging("clr", "ile", epsilon="auto"),
    "clr+ile-int4": _averaging("clr", "ile", exchange={"codec": "int4"}),
    "clr+ile-topk": _averaging("clr", "ile", exchange={"codec": "topk"}),
    "vanilla": {"method": "vanilla"},
    "ensemble": {"method": "ensemble"},
    "single": {"method": "single"},
    "fedavg": _averaging("constant", "fle"),
    "fedprox": _averaging("constant", "fle", local_correction=_made("FedProx")),
    "scaffold": _averaging("constant", "fle", local_correction=_made("Scaffold")),
    "fedbn": _averaging("constant", "fle", local_layers="batch_norm"),
    "lawa": _averaging("constant", "fle", kept_model=_made("LatestMean")),
    "fedswa": _averaging(
        _made("LinearLR"),
        "fle",
        outer_optimizer=_made("OuterSGD", learning_rate=0.9, momentum=0.0, nesterov=False),
    ),
    "fedswa-mean": _averaging(_made("LinearLR"), "fle"),
    "qsr": _averaging("elr", "qsr"),
    "post-local": _averaging("elr", "post-local"),
    "decaying": _averaging("constant", "decaying"),
    "adacomm": _averaging("constant", "adacomm"),
    **_OUTER,
    **{f"{arm}-k1": settings | {"method": "vanilla"} for arm, settings in _OUTER.items()},
}

LABELS = {
    "clr+ile": "co-learning (CLR+ILE)",
    "clr+fle": "CLR+FLE",
    "elr+ile": "ELR+ILE",
    "elr+fle": "ELR+FLE",
    "clr+auto": "co-learning, ε = auto",
    "clr+ile-int4": "co-learning, 4 bits",
    "clr+ile-topk": "co-learning, 1 value of 32",
    "vanilla": "vanilla",
    "ensemble": "ensemble",
    "single": "single data center",
    "fedavg": "FedAvg (constant rate, FLE)",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fedbn": "FedBN",
    "lawa": "LAWA",
    "fedswa": "FedSWA",
    "fedswa-mean": "FedSWA without its average",
    "qsr": "QSR",
    "post-local": "post-local SGD",
    "decaying": "decaying local epochs",
    "adacomm": "AdaComm",
    "diloco": "outer Nesterov (DiLoCo)",
    "streaming-diloco": "Streaming DiLoCo",
    "muloco": "DiLoCo with Muon inside (MuLoCo)",
    "delayed-nesterov": "delayed Nesterov",
    "fedavgm": "FedAvgM",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
}


def label(arm: str) -> str:
    """An arm's name for people."""
    plain = arm.removesuffix("-k1")
    name = LABELS.get(plain, plain)
    return name if plain == arm else f"{name}, K = 1"


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with a rule's name spelled out, in place, where its numbers depend on other settings.

    * ``qsr``: α = η·√T_0 makes T grow from T_0 as soon as the rate falls below its start: T = T_0·(η_start/η)².
    * ``post-local``: it switches after half of the budget of local epochs.
    * ``decaying``, ``adacomm``: T_0 is their largest T.

    Raises:
        ConfigurationError: no starting rate, or no budget in local epochs, in the settings.
    """
    rule = lookup(settings, "colearning.local_epochs_rule")
    initial = lookup(settings, "colearning.local_epochs", 5)
    if rule == "qsr":
        made = _made("QuadraticEpochs", initial=initial, alpha=_rate(settings) * math.sqrt(initial))
    elif rule == "post-local":
        epochs = lookup(settings, "trainer.max_epochs")
        if not isinstance(epochs, int) or epochs < 1:
            raise ConfigurationError(
                f"arm post-local switches after half of the budget, and trainer.max_epochs is {epochs!r}; set it, or "
                "give the rule itself: local_epochs_rule: {class_path: colearn_hpc.PostLocalEpochs, init_args: …}"
            )
        made = _made("PostLocalEpochs", switch=max(1, epochs // 2), after=initial)
    elif rule == "decaying":
        made = _made("DecayingEpochs", initial=initial)
    elif rule == "adacomm":
        made = _made("AdaptiveEpochs", initial=initial)
    else:
        return settings
    settings["colearning"]["local_epochs_rule"] = made
    return settings


def _rate(settings: dict[str, Any]) -> float:
    rate = lookup(settings, "colearning.learning_rate") or lookup(settings, "model.init_args.learning_rate")
    if not isinstance(rate, int | float):
        raise ConfigurationError(
            "arm qsr derives its α from the starting rate, and neither colearning.learning_rate nor "
            "model.init_args.learning_rate is set; set one, or give the rule itself: "
            "local_epochs_rule: {class_path: colearn_hpc.QuadraticEpochs, init_args: {initial: …, alpha: …}}"
        )
    return float(rate)
