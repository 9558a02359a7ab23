"""Which metrics speak of the local model, and which of the shared one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

import colearn_hpc._lightning as pl
from colearn_hpc.errors import DataError


class MetricsSplit:
    """Sorts a Trainer's metrics for the round's line.

    A metric belongs to the shared model if the validation after averaging wrote it: Lightning puts a new
    tensor under its name. Everything else is the data center's own.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._shared: dict[str, float] = {}
        self._stale: set[str] = set()  # names of the shared models' metrics in earlier rounds

    def before_validation(self, trainer: pl.Trainer) -> None:
        self._before = dict(trainer.callback_metrics)

    def after_validation(self, trainer: pl.Trainer, shared: bool) -> None:
        if shared and not trainer.sanity_checking:
            now = trainer.callback_metrics
            self._shared = {k: float(v) for k, v in now.items() if v is not self._before.get(k)}

    def split(self, trainer: pl.Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """(local, shared). To be called on all ranks: metrics may synchronise inside the data center."""
        past = self._stale | self._shared.keys()
        local = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in past}
        return local, self._shared

    def end_round(self, by_rounds: bool) -> None:
        """The round's line is written. What validation said of the shared model is no local metric afterwards, where
        the local one is not validated under that name."""
        if by_rounds:
            self._stale |= self._shared.keys()
        self._shared = {}


def batch_size(batch: Any) -> int:
    """Examples in a batch; 0 if it cannot be told.

    What the batch says of itself comes first: ``batch_size``, ``num_graphs`` (graphs). Then the leading length that
    most of its tensors have, at any depth; of several equally frequent ones the first. Class weights, temperatures and
    the like are therefore not counted. A list with a tensor per example counts as long as it is, where a tensor beside
    it has that length.
    """
    if isinstance(batch, (list, tuple)):
        # Nearly always: a list of tensors of one length. This is for every batch, so it looks no further, and loops.
        common = None
        for part in batch:
            length = part.shape[0] if isinstance(part, Tensor) and part.ndim else 0
            if common not in (None, length):
                break
            common = length
        else:
            if common:
                return int(common)
    said = _said(batch)
    return said if said is not None else next(iter(_most_frequent(batch)), 0)


def check_weight(batch: Any, examples: int) -> None:
    """Examples weigh a data center's model (``weighting="examples"``): a guess would go into the mean in silence.

    Of a batch that is made of batches (several loaders) the first one counts.

    Args:
        batch: that was trained.
        examples: as :func:`batch_size` counts them.

    Raises:
        DataError: they cannot be told, or different leading lengths are equally frequent.
    """
    if not examples:
        found = "no tensor of a batch has a leading length"
    elif _said(batch) is not None or len(lengths := _most_frequent(batch)) == 1 or _of_batches(batch):
        return
    else:
        found = f"a batch's tensors have the leading lengths {', '.join(map(str, lengths))}"
    raise DataError(
        f'weighting="examples": {found}, so its examples cannot be counted; give the batch an attribute `batch_size`, '
        'or use weighting="uniform"'
    )


def _of_batches(batch: Any) -> bool:
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return any(isinstance(part, Mapping | list | tuple) for part in parts)


def _most_frequent(batch: Any) -> list[int]:
    """The leading lengths that most of a batch's tensors have."""
    if isinstance(batch, Tensor) and not batch.ndim:
        return [1]
    lengths, per_example = _lengths(batch, nested=False)
    lengths += [own if own in lengths else leading for own, leading in per_example]
    counted = Counter(length for length in lengths if length)
    most = max(counted.values(), default=0)
    return [length for length, number in counted.items() if number == most]


def _said(batch: Any) -> int | None:
    """What a batch says of itself."""
    for name in ("batch_size", "num_graphs"):
        said = getattr(batch, name, None)
        if isinstance(said, int) and not isinstance(said, bool):
            return said
    plain = isinstance(batch, Tensor | Mapping | list | tuple | str | bytes)
    return len(batch) if not plain and hasattr(batch, "__len__") else None


def _lengths(part: Any, nested: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Leading lengths of the tensors in a part of a batch; and, of lists of equal tensors within it, (length of the
    list, leading length of its tensors)."""
    if isinstance(part, Tensor):
        return ([int(part.shape[0])] if part.ndim else []), []
    listed = isinstance(part, list | tuple) and nested and len(part) > 1
    if listed and all(isinstance(item, Tensor) and item.ndim and item.shape == part[0].shape for item in part):
        return [], [(len(part), int(part[0].shape[0]))]
    parts = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    found = [_lengths(item, nested=True) for item in parts]
    return [one for lengths, _ in found for one in lengths], [one for _, lists in found for one in lists]
