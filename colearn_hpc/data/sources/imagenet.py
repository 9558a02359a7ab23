"""ImageNet (ILSVRC2012): the official archives, Kaggle's layout, or folders; the JPEGs stay as they are."""

from __future__ import annotations

import argparse
import csv
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colearn_hpc.data.images import verify_image
from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources.base import Contents, Item, Source, Unreadable, number_classes
from colearn_hpc.data.sources.imagefolder import ENDINGS
from colearn_hpc.data.sources.imagenet_devkit import read_ground_truth
from colearn_hpc.data.sources.text import combined_fingerprint
from colearn_hpc.data.sources.tree import (
    DAMAGE,
    Tree,
    file_fingerprint,
    open_inner_tar,
    open_tar,
    open_tree,
    safe_name,
    tar_members,
    too_large,
)
from colearn_hpc.errors import DataError

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
SOLUTION = "LOC_val_solution.csv"
# Mean and deviation that every published ImageNet network uses; ours would need all images decoded.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPARATION = "files kept as they are; turned upright as EXIF says when they are read"
_WNID = re.compile(r"n\d{8}")
_VAL_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


class ImageNet(Source):
    """1.3 million JPEGs of all sizes, kept as bytes and decoded by the data loader's workers; 1,000 classes.

    A class number is the rank of its wnid in sorted order, as in torchvision. What is found at ``path`` decides:

    - ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and the devkit (folder or ``.tar.gz``)
    - Kaggle: ``…/CLS-LOC/train/<wnid>/*.JPEG``, ``…/CLS-LOC/val/*.JPEG`` and ``LOC_val_solution.csv``
    - ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``

    The validation images become ``val.h5``; the official test images have no public labels.

    Args:
        path: folder, or an archive of the second or third layout.
    """

    name = "imagenet"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC."""
        parser.add_argument("src", metavar="SRC", help="folder with the official tars, or Kaggle's, or split/class/")

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> ImageNet:
        """From SRC."""
        return cls(options.src)

    def __init__(self, path: str) -> None:
        self._path = expanded(path, "SRC")
        self._official = (self._path / TRAIN_TAR).is_file()
        self._tree: Tree | None = None if self._official else open_tree(self._path)
        if self._official and not (self._path / VAL_TAR).is_file():
            raise DataError(f"{self._path}: has {TRAIN_TAR} but no {VAL_TAR}; put it there.")
        self._places: dict[str, tuple[str, int]] = {}

    def parameters(self) -> dict[str, Any]:
        """None."""
        return {}

    def fingerprint(self) -> str:
        """Of the archives, or of the tree."""
        if self._tree is not None:
            return self._tree.fingerprint()
        return combined_fingerprint([file_fingerprint(self._path / name) for name in (TRAIN_TAR, VAL_TAR)])

    def scan(self) -> Contents:
        """Classes and labels, from names, devkit or solution."""
        labelled = self._scan_official() if self._tree is None else self._scan_tree(self._tree)
        if not labelled.get("train"):
            raise DataError(
                f"{self._path}: has no training images in class folders; see `colearn-hpc data imagenet -h`."
            )
        names = {split: [name for name, _ in pairs] for split, pairs in labelled.items() if pairs}
        classes, labels = number_classes({s: [wnid for _, wnid in pairs] for s, pairs in labelled.items()}, self._path)
        for split, own in names.items():
            self._places.update((name, (split, index)) for index, name in enumerate(own))
        metadata = {"scale": 1 / 255, "mean": list(MEAN), "std": list(STD), "preparation": PREPARATION}
        return Contents("classification", "image", classes, labels, encoding="jpeg", metadata=metadata, names=names)

    def read(self) -> Iterator[Item]:
        """Every image's bytes."""
        contents = self._tree.read(self._places) if self._tree is not None else self._read_official()
        for name, content in contents:
            split, index = self._places[name]
            if not isinstance(content, Unreadable):
                try:
                    verify_image(content)
                except DataError as error:
                    content = Unreadable(name, str(error))
            yield Item(split, index, content)

    def _scan_official(self) -> dict[str, list[tuple[str, str]]]:
        train = [(name, name.split("/")[0]) for name, _ in self._train_members(with_content=False)]
        wnid_of = read_ground_truth(self._path)
        val = []
        for name, _ in self._val_members(with_content=False):
            match = _VAL_NUMBER.fullmatch(name.split("/")[-1])
            if match is None or int(match[1]) not in wnid_of:
                raise DataError(f"{self._path / VAL_TAR}: {name} has no line in the devkit's ground truth.")
            val.append((name, wnid_of[int(match[1])]))
        return {"train": sorted(train), "val": sorted(val)}

    def _read_official(self) -> Iterator[tuple[str, bytes | Unreadable]]:
        yield from self._train_members(with_content=True)
        yield from self._val_members(with_content=True)

    def _train_members(self, with_content: bool) -> Iterator[tuple[str, bytes | Unreadable]]:
        """(``wnid/name``, content) from the tar of tars."""
        path = self._path / TRAIN_TAR
        try:
            with open_tar(path) as outer:
                for member in tar_members(outer):
                    wnid = Path(safe_name(path, member.name)).stem
                    if member.isdir():
                        continue
                    if not member.isfile() or not _WNID.fullmatch(wnid) or not member.name.endswith(".tar"):
                        raise DataError(f"{path}: holds {member.name!r}, only <wnid>.tar was expected.")
                    content = outer.extractfile(member)
                    assert content is not None, "a regular file has content"
                    with open_inner_tar(content) as inner:
                        for name, image in _images(inner, path, with_content):
                            yield f"{wnid}/{name}", image
        except DAMAGE as error:
            raise DataError(f"{path}: is damaged: {error}. Copy or download it again.") from error

    def _val_members(self, with_content: bool) -> Iterator[tuple[str, bytes | Unreadable]]:
        path = self._path / VAL_TAR
        try:
            with open_tar(path) as archive:
                yield from _images(archive, path, with_content)
        except DAMAGE as error:
            raise DataError(f"{path}: is damaged: {error}. Copy or download it again.") from error

    def _scan_tree(self, tree: Tree) -> dict[str, list[tuple[str, str]]]:
        names = [name for name, _ in tree.files()]
        solution = next((name for name in names if name.split("/")[-1] == SOLUTION), None)
        wnid_of = self._solution(tree, solution) if solution else {}
        labelled: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
        for name in names:
            if not name.lower().endswith(ENDINGS):
                continue
            parts = name.split("/")
            if len(parts) >= 3 and parts[-3] in labelled:
                labelled[parts[-3]].append((name, parts[-2]))
            elif len(parts) >= 2 and parts[-2] == "val" and (wnid := wnid_of.get(Path(name).stem)):
                labelled["val"].append((name, wnid))
            elif parts[-2:-1] == ["val"]:
                raise DataError(
                    f"{self._path}: {name} is in no class folder, and no {SOLUTION} tells its class; add it."
                )
            elif parts[-2:-1] != ["test"]:
                raise DataError(f"{self._path}: {name} is not at train/<class>/ or val/; move it there.")
        return labelled

    def _solution(self, tree: Tree, name: str) -> dict[str, str]:
        (_, content) = next(iter(tree.read([name])))
        try:
            if isinstance(content, Unreadable):
                raise ValueError(content.reason)
            rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
            found = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        except (ValueError, KeyError, AttributeError, IndexError, csv.Error) as error:
            raise DataError(f"{self._path}: {name} has no columns ImageId, PredictionString: {error!r}.") from error
        return found


def _images(archive: tarfile.TarFile, path: Path, with_content: bool) -> Iterator[tuple[str, bytes | Unreadable]]:
    for member in tar_members(archive):
        name = safe_name(path, member.name)
        if member.isdir():
            continue
        if not member.isfile():
            raise DataError(f"{path}: {name} is a link or a device; this is not the official archive.")
        if not name.lower().endswith(ENDINGS):
            raise DataError(f"{path}: holds {name}, only images were expected.")
        if not with_content:
            yield name, b""
            continue
        if large := too_large(name, member.size):
            yield name, large
            continue
        stream = archive.extractfile(member)
        assert stream is not None, "a regular file has content"
        yield name, stream.read()
