"""Small data sets in the true on-disk format of the large ones, for tests of sources, configs and studies.

Every builder takes the folder to build in, makes real files (real JPEGs, real archives) and returns the path
that a user would name on the command line.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CLASSES = ("bird", "cat", "frog")


def images(n: int, seed: int = 0, size: int = 8) -> np.ndarray:
    """(n, size, size, 3) uint8; smooth, so that JPEG keeps them distinct."""
    rng = np.random.RandomState(seed)
    corners = rng.randint(0, 256, (n, 2, 2, 3)).astype(np.float64)
    weights = np.linspace(0, 1, size)
    rows = corners[:, :1] * (1 - weights[:, None, None]) + corners[:, 1:] * weights[:, None, None]
    smooth = rows[:, :, :1] * (1 - weights[:, None]) + rows[:, :, 1:] * weights[:, None]
    return smooth.astype(np.uint8)


def image_bytes(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An image file's content."""
    from PIL import Image

    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def image_files(per_class: int = 6, per_class_test: int = 2, kind: str = "PNG", size: int = 8) -> dict[str, bytes]:
    """``split/class/0001.png`` → content, three classes."""
    files = {}
    for split, count, seed in (("train", per_class, 0), ("test", per_class_test, 1)):
        pixels = images(count * len(CLASSES), seed, size)
        for i in range(len(pixels)):
            name = f"{split}/{CLASSES[i % len(CLASSES)]}/{i:04d}.{'jpg' if kind == 'JPEG' else kind.lower()}"
            files[name] = image_bytes(pixels[i], kind)
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Files below ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes], extra: Iterable[tuple[zipfile.ZipInfo, bytes]] = ()) -> Path:
    """Files in a zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in extra:
            archive.writestr(info, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> Path:
    """Files in a tar, compressed if the name says so; ``extra`` members have no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path
