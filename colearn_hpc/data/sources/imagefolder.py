"""Any tree of ``split/class/*.jpg|png`` or ``class/*.jpg|png``: a folder, a zip or a tar."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from colearn_hpc.data.images import SCALES, decode_image
from colearn_hpc.data.sources.base import SPLITS, Contents, Item, Source, Unreadable, left_out, number_classes
from colearn_hpc.data.sources.tree import open_tree
from colearn_hpc.errors import DataError

ENDINGS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class ImageFolder(Source):
    """Images in folders named by split and class, or by class alone, decoded to (3, H, W).

    A common top folder is skipped. Classes are the folders, sorted by name. All images must have one size, or be
    resized.

    Args:
        path: folder, zip or tar.
        size: resize to size × size (bilinear); ``None`` leaves the images as they are.
    """

    name = "imagefolder"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC and --size."""
        parser.add_argument("src", metavar="SRC", help="folder, .zip or .tar(.gz) of (split/)class/*.jpg|png")
        parser.add_argument("--size", type=int, metavar="PIXELS", help="resize every image to PIXELS x PIXELS")

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> ImageFolder:
        """From SRC and --size."""
        return cls(options.src, options.size)

    def __init__(self, path: str, size: int | None = None) -> None:
        if size is not None and not 1 <= size <= 4096:
            raise DataError(f"--size: {size} was set; choose 1 to 4096 pixels.")
        self._tree = open_tree(path)
        self._size = size
        self._places: dict[str, tuple[str, int]] = {}
        self._first: tuple[str, tuple[int, ...], str] | None = None  # name, shape and type of the first image

    def parameters(self) -> dict[str, Any]:
        """The size."""
        return {"size": self._size}

    def fingerprint(self) -> str:
        """That of the tree."""
        return self._tree.fingerprint()

    def scan(self) -> Contents:
        """Splits, classes and labels, from the names alone."""
        files = [name for name, _ in self._tree.files()]
        images = [name for name in files if name.lower().endswith(ENDINGS)]
        notes = left_out(files, images, "are no images")
        if not images:
            raise DataError(f"{self._tree.path}: holds no images ({', '.join(ENDINGS)}) among {len(files)} files.")
        members, unsplit = self._members(images)
        names = {split: [name for name, _ in pairs] for split, pairs in members.items() if pairs}
        classes, labels = number_classes({s: [c for _, c in pairs] for s, pairs in members.items()}, self._tree.path)
        for split, own in names.items():
            self._places.update((name, (split, index)) for index, name in enumerate(own))
        return Contents(
            "classification",
            "image",
            classes,
            labels,
            notes=notes,
            names=names,
            unsplit=unsplit,
        )

    def _members(self, images: list[str]) -> tuple[dict[str, list[tuple[str, str]]], bool]:
        """Split → (name, class) of its images, and whether the folders tell no split."""
        placed = _without_common_top(images)
        members: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        if all(len(parts) >= 2 and parts[0].lower() not in SPLIT_NAMES for _, parts in placed):
            members["train"] = [(name, parts[0]) for name, parts in placed]
            return members, True
        for name, parts in placed:
            split = SPLIT_NAMES.get(parts[0].lower())
            if split is None or len(parts) < 3:
                raise DataError(
                    f"{self._tree.path}: {name} is not at split/class/image; expected folders train/ and test/ or val/ "
                    "with a folder per class in each, or folders of classes alone. Move the images there."
                )
            members[split].append((name, parts[1]))
        if not members["train"]:
            raise DataError(f"{self._tree.path}: has no folder train/ with images; name the training folder train.")
        return members, False

    def learn(self, is_training: Callable[[str, int], bool]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The type of the first image that can be read tells the scale of all."""
        kind = "uint8"
        for name, content in self._tree.read(self._places):
            decoded = content if isinstance(content, Unreadable) else self._decode(name, content)
            if not isinstance(decoded, Unreadable):
                kind = str(decoded.dtype)
                break
        white = {"uint8": ", 255 is white", "uint16": ", 65535 is white", "float32": " as in the files"}[kind]
        resized = f", resized to {self._size} x {self._size} (bilinear)" if self._size else ""
        done = f"decoded to 3 planes of {kind}{white}; turned upright as EXIF says{resized}"
        notes = () if kind == "uint8" else (f"grey images of more than 8 bits are kept as {kind}{white}",)
        return {"scale": SCALES[kind], "preparation": done}, notes

    def read(self) -> Iterator[Item]:
        """Every image, decoded."""
        for name, content in self._tree.read(self._places):
            split, index = self._places[name]
            yield Item(split, index, content if isinstance(content, Unreadable) else self._decode(name, content))

    def _decode(self, name: str, content: bytes) -> Any:
        try:
            image = decode_image(content, self._size)
        except DataError as error:
            return Unreadable(name, str(error))
        self._first = self._first or (name, image.shape, str(image.dtype))
        other, (_, rows, columns), kind = self._first
        if image.shape[1:] != (rows, columns):
            height, width = image.shape[1:]
            raise DataError(
                f"{self._tree.path}: {name} has {width} x {height} pixels, those before it {columns} x {rows}; set "
                "--size PIXELS to bring all to one size."
            )
        if image.dtype != kind:
            raise DataError(
                f"{self._tree.path}: {name} is {image.dtype}, {other} is {kind}; bring all images to one depth, since "
                "what is white in one is dark in the other."
            )
        return image


def _without_common_top(names: list[str]) -> list[tuple[str, list[str]]]:
    split = [(name, name.split("/")) for name in names]
    while True:
        tops = {parts[0] for _, parts in split}
        if len(tops) > 1 or min(len(parts) for _, parts in split) < 3 or tops.pop().lower() in SPLIT_NAMES:
            return split
        split = [(name, parts[1:]) for name, parts in split]
