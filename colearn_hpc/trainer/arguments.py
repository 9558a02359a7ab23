"""The arguments of ``CoLearning(...)``, as users write them, made the frozen :class:`Settings` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.combine import combiner_of
from colearn_hpc.algorithm.learning_rate import LearningRateSchedule, WarmUp
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.join import read_membership
from colearn_hpc.protocol.settings import OnFailure, Settings


def membership_of(federation: Any, site: str | None, identity: str | Path | None) -> Any:
    """Which site of which federation; None: all data centers share this MPI world.

    Raises:
        ConfigurationError: a site is named, and no federation.
    """
    if isinstance(federation, str | Path):
        return read_membership(federation, site, identity)
    if federation is None and (site is not None or identity is not None):
        raise ConfigurationError(f"site={site!r} is of a federation, and federation is None; give its federation.yaml")
    return federation


def settings_of(
    membership: Any,
    *,
    schedule: LearningRateSchedule | None,
    combine: Any,
    local_layers: Any,
    exchange: Any,
    privacy: Any,
    round_timeout: float | None,
    on_failure: OnFailure,
    validation: Any,
    warmup_epochs: int,
    **others: Any,
) -> Settings:
    """The settings that the arguments of ``CoLearning`` say.

    Args:
        membership: of a federation; None: there is none.
        others: fields of :class:`Settings` as they are. The rest: see ``CoLearning``.

    Raises:
        ConfigurationError: an argument is impossible, or contradicts another.
    """
    if membership is not None:
        round_timeout, on_failure = _agreed(membership, round_timeout, on_failure)
    if schedule is not None and isinstance(warmup_epochs, int) and warmup_epochs > 0:  # others Settings refuses
        schedule = WarmUp(schedule, warmup_epochs)
    return Settings(
        schedule=schedule,
        combine="predictions" if combine == "predictions" else "weights",
        combiner=combiner_of(combine),
        local_layers=tuple(local_layers) if isinstance(local_layers, list) else local_layers,
        round_timeout=round_timeout,
        on_failure=on_failure,
        federated=membership is not None,
        validation="lightning" if combine == "predictions" else validation,
        warmup_epochs=warmup_epochs,
        **_exchange_settings(exchange, privacy),
        **others,
    )


def _agreed(membership: Any, timeout: float | None, on_failure: OnFailure) -> tuple[float | None, OnFailure]:
    """``round_timeout`` and ``on_failure`` of the federation.

    Raises:
        ConfigurationError: others were set here.
    """
    agreed = membership.federation
    for name, mine, theirs, default in (
        ("round_timeout", timeout, agreed.round_timeout, None),
        ("on_failure", on_failure, agreed.on_failure, "stop"),
    ):
        if mine not in (default, theirs):
            raise ConfigurationError(
                f"{name}={mine!r} is set here, and federation.yaml says {theirs!r}, which holds for all sites; "
                "leave it out here"
            )
    return agreed.round_timeout, agreed.on_failure


def _exchange_settings(exchange: Any, privacy: Any) -> dict[str, Any]:
    """``exchange={"codec": name, …}`` and ``privacy={"secure": bool, …}`` as arguments of :class:`Settings`.

    Raises:
        ConfigurationError: one is no such mapping.
    """
    groups = {
        "exchange": (exchange, ("codec", "overlap", "mixing", "lanes", "sums", "fragments", "device")),
        "privacy": (privacy, ("secure", "share_metrics", "public_validation")),
    }
    for name, (given, keys) in groups.items():
        if given is not None and (not isinstance(given, dict) or set(given) - set(keys)):
            known = ", ".join(f'"{key}"' for key in keys)
            raise ConfigurationError(f"{name} must be a mapping with the keys {known}, or None; found {given!r}")
    found = dict(exchange or {}) | dict(privacy or {})
    if found.get("secure") is True:
        found.setdefault("sums", "fixed32")
    try:
        found["codec"] = codec_of(found.get("codec", "fp32"))
    except ValueError as error:
        raise ConfigurationError(f"exchange: {error}") from error
    return found
