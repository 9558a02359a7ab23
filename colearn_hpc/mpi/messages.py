"""What a meeting says to people when it ends badly."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from itertools import zip_longest

from colearn_hpc.errors import ColearnError
from colearn_hpc.mpi.status import Status


def describe(error: BaseException) -> str:
    """One text for people: our own errors as they are, anything unforeseen with its traceback."""
    if isinstance(error, ColearnError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()


def joined_errors(statuses: Sequence[Status], number_of_centers: int) -> str:
    """Every distinct error once, with the data centers that have it."""
    centers: dict[str, list[str]] = {}
    for status in statuses:
        if status.error and status.center not in centers.setdefault(status.error, []):
            centers[status.error].append(status.center)
    return "\n".join(
        error if len(names) == number_of_centers else f"data center{'s'[: len(names) != 1]} {', '.join(names)}: {error}"
        for error, names in centers.items()
    )


def different_points(statuses: Sequence[Status]) -> str:
    """The data centers have lost each other: a mistake of ours."""
    purposes = {status.purpose: status.center for status in statuses if not status.absent}
    found = ", ".join(f"{center}: {purpose}" for purpose, center in purposes.items())
    return f"the data centers are at different points of the run ({found}); please report this"


def difference(name: str, mine: Sequence[str], other_name: str, others: Sequence[str]) -> str:
    """The first line in which two fingerprints differ."""
    here, there = next((a, b) for a, b in zip_longest(mine, others, fillvalue="(nothing)") if a != b)
    return (
        f"the data centers do not run the same thing: {name} has `{here}`, {other_name} has `{there}`; "
        "use the same code, configuration and package versions everywhere"
    )
