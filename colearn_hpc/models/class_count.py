"""How many classes a network has, against how many the data have."""

from __future__ import annotations

from typing import Any

from colearn_hpc._lightning import rank_zero_warn
from colearn_hpc.errors import ConfigurationError


def class_count(given: int | None, datamodule: Any, exact: bool) -> int:
    """The number of classes to train with.

    Args:
        given: the task's ``num_classes``; ``None`` takes the number that the data have.
        datamodule: the Trainer's data module, or ``None``. Its attribute ``num_classes`` is the number that the data
            have, and ``classes`` has their names. :class:`colearn_hpc.data.ShardDataModule` has both.
        exact: a ``given`` that is larger than the data's number is an error; otherwise it is a warning.

    Returns:
        ``given``, or the number that the data have.

    Raises:
        ConfigurationError: neither number is known, or the data have more classes than the network.
    """
    found = getattr(datamodule, "num_classes", None)
    if found is None:
        if given is None:
            raise ConfigurationError(
                "num_classes is not set, and the data do not tell it; set model.num_classes, or give the data module "
                "an attribute num_classes"
            )
        return given
    if given is None or given == found:
        return int(found)
    names = ", ".join(str(name) for name in getattr(datamodule, "classes", ()))
    both = f"num_classes={given}, but the data have {found} classes ({names[:100]}{'…' if len(names) > 100 else ''})"
    if given < found or exact:
        raise ConfigurationError(f"{both}; set num_classes={found}, or leave it out")
    rank_zero_warn(f"{both}: {given - found} of the outputs are never right; if that is not meant, leave it out")
    return given
