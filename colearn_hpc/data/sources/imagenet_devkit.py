"""ImageNet's development kit: which class each validation image has."""

from __future__ import annotations

import io
import re
from pathlib import Path

from colearn_hpc.data.sources.base import Unreadable
from colearn_hpc.data.sources.tree import open_tree
from colearn_hpc.errors import DataError

META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
DEVKITS = ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t3.tar.gz", "data")


def read_ground_truth(folder: Path) -> dict[int, str]:
    """The wnid of validation image 1, 2, ….

    ``ILSVRC2012_validation_ground_truth.txt`` holds ILSVRC2012_IDs, which are not class numbers; ``meta.mat`` tells
    the wnid of each.

    Args:
        folder: holds the devkit as a folder or ``.tar.gz``, or the two files themselves.

    Raises:
        DataError: the devkit or a file in it is missing or damaged.
    """
    place = next((folder / name for name in DEVKITS if (folder / name).exists()), folder)
    tree = open_tree(place)
    by_base: dict[str, str] = {}
    for name, _ in tree.files():
        if name.split("/")[-1] in (META, TRUTH):
            by_base[name.split("/")[-1]] = name
    if missing := [name for name in (META, TRUTH) if name not in by_base]:
        raise DataError(f"{place}: has no {' and no '.join(missing)}; put ILSVRC2012_devkit_t12.tar.gz into {folder}.")
    contents = dict(tree.read(list(by_base.values())))
    wnids = _wnids(contents[by_base[META]], f"{place}: {META}")
    truth = contents[by_base[TRUTH]]
    if isinstance(truth, Unreadable):
        raise DataError(f"{place}: {TRUTH} {truth.reason}; download it again.")
    found = {}
    for number, line in enumerate(truth.split(), start=1):
        if not line.isdigit() or int(line) not in wnids:
            raise DataError(f"{place}: line {number} of {TRUTH} is {line[:20]!r}, no id that {META} knows.")
        found[number] = wnids[int(line)]
    return found


def _wnids(content: bytes | Unreadable, where: str) -> dict[int, str]:
    from scipy.io import loadmat

    if isinstance(content, Unreadable):
        raise DataError(f"{where} {content.reason}; download it again.")
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        # Only leaves have images; the inner nodes of the tree of meanings follow them.
        leaves = synsets[synsets["num_children"] == 0]
        wnids = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in leaves.reshape(-1)}
    # SciPy raises whatever its reader meets in a damaged file.
    except Exception as error:
        raise DataError(f"{where} is no MATLAB file with synsets: {error!r}; download it again.") from error
    if not wnids or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids.values()):
        raise DataError(f"{where} has no wnids; download it again.")
    return wnids
