"""Releases that a run should not be started with, by their versions alone: none of them is imported to find out."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from colearn_hpc._lightning import STOLEN
from colearn_hpc._torchvision import make_torchvision_importable

LIGHTNING = ("pytorch-lightning", "lightning")  # two names of one code
_SAFE = Version("2.6.6")


def installed(package: str) -> str:
    """Its version, or ``missing``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def hostile(find: Callable[[str], str] = installed) -> list[str]:
    """Releases that attack whoever imports them, for people.

    Args:
        find: package -> version.
    """
    return [
        f"{package} {found} is a release that thieves published; importing it sends passwords and keys away "
        "(GHSA-w37p-236h-pfx3, CVE-2026-44484): remove it, and change every secret that this account could read"
        for package in LIGHTNING
        if (found := find(package)) in STOLEN
    ]


def vulnerable(find: Callable[[str], str] = installed) -> list[str]:
    """Releases with a hole that matters here, for people.

    Args:
        find: package -> version.
    """
    return [
        f"{package} {found}: load_from_checkpoint runs code that a checkpoint names, weights_only or not "
        f"(CVE-2026-58659): install {_SAFE} or newer, and load no checkpoint of strangers before"
        for package in LIGHTNING
        if (found := find(package)) != "missing" and found not in STOLEN and _older(found, _SAFE)
    ]


def unloadable() -> list[str]:
    """A torchvision that was built for another torch, for people."""
    if not make_torchvision_importable():
        return []
    return [
        f"torchvision {installed('torchvision')} does not load beside torch {installed('torch')}, it was built for "
        "another one; colearn-hpc works around that, a script of yours that imports Lightning first ends with "
        "'operator torchvision::nms does not exist': install the torchvision of this torch, or none"
    ]


def _older(found: str, than: Version) -> bool:
    try:
        return Version(found) < than
    except InvalidVersion:
        return False
