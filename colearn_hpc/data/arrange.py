"""What the user asks of groups, splits and classes, applied to the contents of any source.

Sources say what the data say (:class:`colearn_hpc.data.sources.base.Contents`). Here ``--group-list``,
``--split-list``, ``--test-fraction``, ``--val-fraction`` and ``--classes`` change that, in this order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.partition import held_out
from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources.base import SPLITS, Contents, Item, check_class
from colearn_hpc.errors import DataError

_LISTED = 5  # names in a message
_LINE = re.compile(r"(.*[^\s,;])[\t ,;]+([^\t ,;]+)", re.DOTALL)


@dataclass(frozen=True)
class Wishes:
    """What the user asks of classes, splits and groups; ``None`` leaves what the data say.

    Attributes:
        classes: in the order of their numbers. The data may lack some of them, and may hold no others.
        test_fraction: share of each class that becomes the test set.
        split_list: name of an example → ``train``, ``val`` or ``test``; all others are for training.
        val_fraction: share of each class that becomes the validation set, of what is left for training.
        group_list: name of an example → its group; every training example needs one.
    """

    classes: tuple[str, ...] | None = None
    test_fraction: float | None = None
    split_list: Mapping[str, str] | None = None
    val_fraction: float | None = None
    group_list: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Arranged:
    """Contents as the user wants them.

    Attributes:
        contents: classes, labels and splits after all wishes.
    """

    contents: Contents
    # Split of the source -> for each of its examples the new split (a position in SPLITS) and the position there.
    _moved: Mapping[str, tuple[NDArray[np.int8], NDArray[np.int64]]] | None
    # Number of a class -> its place in the source's labels, −1 where the source does not know the class.
    _columns: NDArray[np.int64] | None

    def place(self, split: str, position: int) -> tuple[str, int]:
        """(split, position) of the example that the source has at ``position`` of ``split``."""
        if self._moved is None:
            return split, position
        splits, positions = self._moved[split]
        return SPLITS[splits[position]], int(positions[position])

    def label(self, item: Item) -> Any:
        """Its label: a number, or (classes,) int8."""
        split, position = self.place(item.split, item.position)
        known = self.contents.labels[split]
        if not isinstance(known, int):
            return known[position]
        if item.label is None or self._columns is None:
            return item.label
        return _reordered(np.asarray(item.label)[np.newaxis], self._columns)[0]


def arrange(contents: Contents, wishes: Wishes, test_fraction: float, where: object) -> Arranged:
    """Apply the user's wishes.

    Args:
        contents: what the source holds.
        wishes: what the user asks.
        test_fraction: of data that tell no split, where the user asks for no share.
        where: the source, for messages.

    Raises:
        DataError: a wish contradicts the data; the message names the class or the example.
    """
    if wishes.group_list is not None:
        names = _names(contents, wishes.group_list, "--group-list", where)
        # Only examples for training need a group, and which are for training is not known yet: "" is none.
        groups = {split: [wishes.group_list.get(name, "") for name in own] for split, own in names.items()}
        contents = replace(contents, names=names, groups=groups)
    contents, moved = _split(contents, wishes, test_fraction, where)
    columns = None
    if wishes.classes is not None:
        contents, columns = _with_classes(contents, wishes.classes, where)
    elif contents.task == "classification":
        _require_trained(contents, where)
    notes = [*contents.notes, *_look_alike(contents.classes)]
    if not {"test", "val"} & set(contents.labels):
        notes.append("there are no test examples, so no test.h5 is written; --test-fraction sets some apart")
    return Arranged(replace(contents, notes=tuple(notes)), moved, columns)


def read_classes(text: str) -> tuple[str, ...]:
    """The classes of ``--classes``: names between commas, or else a file with one name a line.

    Raises:
        DataError: neither, or a name that is empty or there twice.
    """
    if "," in text:
        names = [name.strip() for name in text.split(",")]
    else:
        path = expanded(text, "--classes")
        if not path.is_file():
            raise DataError(f"--classes: there is no file {text}; name one with a class a line, or write cat,dog,….")
        names = [line.strip() for line in _lines(path, "--classes")]
    names = [unicodedata.normalize("NFC", name) for name in names]
    for name in names:
        check_class(name, "--classes")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"--classes: {twice[0]!r} is there twice; each class has one number.")
    return tuple(names)


def read_split_list(text: str) -> dict[str, str]:
    """The splits of ``--split-list``: a line ``NAME SPLIT`` for an example, a tab, a comma or a space between them.

    Raises:
        DataError: the file is missing, or a line has another form or contradicts one before it.
    """
    return _pairs(text, "--split-list", "one of train, val, test", SPLITS)


def read_group_list(text: str) -> dict[str, str]:
    """The groups of ``--group-list``: a line ``NAME GROUP`` for an example, parted like those of a list of splits.

    Raises:
        DataError: the file is missing, or a line has another form or contradicts one before it.
    """
    return _pairs(text, "--group-list", "a group")


def _pairs(text: str, option: str, what: str, allowed: Sequence[str] | None = None) -> dict[str, str]:
    path = expanded(text, option)
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(path, option), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None or (allowed is not None and match[2] not in allowed):
            raise DataError(f"{option}: line {number} of {path} is {line[:60]!r}; NAME and {what} expected.")
        if found.setdefault(match[1], match[2]) != match[2]:
            raise DataError(f"{option}: {path} gives {match[1]} to {found[match[1]]} and to {match[2]}.")
    if not found:
        raise DataError(f"{option}: {path} is empty; a line with NAME and {what} for each example is expected.")
    return found


def _lines(path: Path, option: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option}: {path} cannot be read as UTF-8 text: {error}; correct it.") from error
    return [line for line in lines if line.strip()]


def _split(
    contents: Contents, wishes: Wishes, default: float, where: object
) -> tuple[Contents, dict[str, tuple[NDArray[np.int8], NDArray[np.int64]]] | None]:
    if wishes.val_fraction is not None:
        _check_val_fraction(contents, wishes, where)
    if wishes.split_list is not None:
        if wishes.test_fraction is not None:
            raise DataError("--split-list and --test-fraction both say what is for test; give one of them.")
        return _moved(contents, _listed(contents, wishes.split_list, where))
    fraction = wishes.test_fraction
    if fraction is None:
        fraction = default if contents.unsplit else 0.0
    elif not 0 <= fraction < 1:
        raise DataError(f"--test-fraction: {fraction} was set; choose 0 or more, less than 1.")
    elif fraction and "test" in contents.labels:
        raise DataError(
            f"--test-fraction: {where} has {_count(contents.labels['test'])} test examples of its own; leave the "
            "option out."
        )
    if not fraction and not wishes.val_fraction:
        return contents, None
    labels = contents.labels["train"]
    assert not isinstance(labels, int), "a source with labels of its own has a test set, and no share is taken of it"
    targets = {split: np.full(_count(y), SPLITS.index(split), np.int8) for split, y in contents.labels.items()}
    targets["train"][held_out(labels, fraction)] = SPLITS.index("test")
    if wishes.val_fraction:
        left = np.flatnonzero(targets["train"] == SPLITS.index("train"))
        chosen = held_out(np.asarray(labels)[left], wishes.val_fraction)
        targets["train"][left[chosen]] = SPLITS.index("val")
    return _moved(contents, targets)


def _check_val_fraction(contents: Contents, wishes: Wishes, where: object) -> None:
    fraction = wishes.val_fraction
    if fraction is None or not 0 <= fraction < 1:
        raise DataError(f"--val-fraction: {fraction} was set; choose 0 or more, less than 1.")
    if wishes.split_list is not None:
        raise DataError("--split-list and --val-fraction both say what is for validation; give one of them.")
    if "val" in contents.labels:
        raise DataError(
            f"--val-fraction: {where} has {_count(contents.labels['val'])} validation examples of its own; leave the "
            "option out."
        )
    if isinstance(contents.labels["train"], int):
        raise DataError(f"--val-fraction: {where} has more labels than fit into memory; it keeps its own split.")


def _names(contents: Contents, listed: Mapping[str, str], option: str, where: object) -> Mapping[str, Sequence[str]]:
    """Per split the names of all examples; a list may hold no others."""
    if any(isinstance(labels, int) for labels in contents.labels.values()):
        raise DataError(f"{option}: {where} has more labels than fit into memory; leave the option out.")
    names = contents.names or {
        split: [f"{split}/{number}" for number in range(_count(labels))] for split, labels in contents.labels.items()
    }
    unknown = set(listed).difference(*names.values())
    if unknown:
        example = names["train"][0]
        raise DataError(f"{option}: {where} has no example {_some(unknown)}; examples are named as in {example!r}.")
    return names


def _listed(contents: Contents, split_of: Mapping[str, str], where: object) -> dict[str, NDArray[np.int8]]:
    names = _names(contents, split_of, "--split-list", where)
    return {
        split: np.array([SPLITS.index(split_of.get(name, "train")) for name in own], dtype=np.int8)
        for split, own in names.items()
    }


def _moved(
    contents: Contents, targets: Mapping[str, NDArray[np.int8]]
) -> tuple[Contents, dict[str, tuple[NDArray[np.int8], NDArray[np.int64]]]]:
    labels: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    groups: dict[str, list[str]] = {}
    positions = {split: np.empty(len(target), dtype=np.int64) for split, target in targets.items()}
    for code, split in enumerate(SPLITS):
        chosen = {old: target == code for old, target in targets.items()}
        first = 0
        for old, mask in chosen.items():
            positions[old][mask] = np.arange(first, first + mask.sum())
            first += int(mask.sum())
        if first:
            labels[split] = np.concatenate([np.asarray(contents.labels[old])[mask] for old, mask in chosen.items()])
            names[split] = [n for old, mask in chosen.items() for n in compress(contents.names.get(old, ()), mask)]
            groups[split] = [g for old, mask in chosen.items() for g in compress(contents.groups.get(old, ()), mask)]
    moved = {split: (target, positions[split]) for split, target in targets.items()}
    named, grouped = names if contents.names else {}, groups if contents.groups else {}
    return replace(contents, labels=labels, names=named, groups=grouped), moved


def _with_classes(contents: Contents, wanted: tuple[str, ...], where: object) -> tuple[Contents, NDArray[np.int64]]:
    known = {name: place for place, name in enumerate(contents.classes)}
    columns = np.array([known.get(name, -1) for name in wanted], dtype=np.int64)
    others = [name for name in contents.classes if name not in set(wanted)]
    if contents.task == "classification":
        used = {int(y) for labels in contents.labels.values() for y in np.unique(labels)}
        others = [name for name in others if known[name] in used]
    if others:
        raise DataError(
            f"--classes: {where} has examples of {_some(others)}{_first(contents, known[min(others)])}, which the list "
            "has not; add it, or leave those examples out of the input."
        )
    labels = dict(contents.labels)
    for split, values in labels.items():
        if not isinstance(values, int):
            labels[split] = (
                _renumbered(values, known, wanted) if contents.task == "classification" else _reordered(values, columns)
            )
    missing = [name for name in wanted if name not in known]
    notes = (f"there are no examples of {_some(missing)}",) if missing else ()
    return replace(contents, classes=wanted, labels=labels, notes=(*contents.notes, *notes)), columns


def _first(contents: Contents, number: int) -> str:
    """The name of the first example of a class, where examples have names."""
    for split, names in contents.names.items():
        if (found := np.flatnonzero(np.asarray(contents.labels[split]) == number)).size:
            return f" ({names[found[0]]} is one)"
    return ""


def _renumbered(values: NDArray[Any], known: Mapping[str, int], wanted: tuple[str, ...]) -> NDArray[np.int64]:
    number = np.full(len(known), -1, dtype=np.int64)
    for new, name in enumerate(wanted):
        if name in known:
            number[known[name]] = new
    return number[values]


def _reordered(values: NDArray[Any], columns: NDArray[np.int64]) -> NDArray[np.int8]:
    # A label that this data set does not have is one that nobody knows here: −1, masked in loss and metrics.
    return np.where(columns >= 0, values[:, columns], -1).astype(np.int8)


def _require_trained(contents: Contents, where: object) -> None:
    trained = set(np.unique(contents.labels.get("train", [])).tolist())
    for split, labels in contents.labels.items():
        if isinstance(labels, int):
            continue
        if unknown := [contents.classes[int(y)] for y in np.unique(labels) if int(y) not in trained]:
            raise DataError(
                f"{where}: {split} has classes that the training examples have not: {_some(unknown)}; correct the "
                "data, or list all classes with --classes if this is meant."
            )


def _look_alike(classes: Sequence[str]) -> Iterable[str]:
    """Notes on names that a reader would take for one class."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            yield f"{other!r} and {name!r} are two classes, though they differ only in case or spaces"


def _count(labels: NDArray[Any] | int) -> int:
    return labels if isinstance(labels, int) else len(labels)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(repr(name) for name in listed[:_LISTED]) + more
