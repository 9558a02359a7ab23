"""A folder, a zip or a tar as one thing: names in, bytes out.

Archives come from anywhere, so nothing is ever extracted to the disk, and a member that would leave the archive
(absolute, ``..``, a link, a device) condemns the whole archive: such a file is an attack or an accident.
In a folder, which is the user's own, links to files and folders are followed.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources.base import Unreadable
from colearn_hpc.errors import DataError

_WHOLE_HASH_BYTES = 2**30
_END_BYTES = 2**20
MOST_MEMBER_BYTES = 2**30  # of one file; a few kilobytes of a zip can unpack to any size
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_FOLDER_DEPTH = 8
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    UnicodeError,  # names that are not of the encoding they announce
)


class Tree(ABC):
    """Files by relative name, ``/`` between the parts.

    Args:
        path: of the folder or archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def files(self) -> list[tuple[str, int]]:
        """(name, bytes) of every regular file, sorted by name; hidden ones and macOS droppings left out.

        Raises:
            DataError: the archive is damaged, or a member's name leads out of it.
        """

    @abstractmethod
    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | Unreadable]]:
        """The content of each named file, in the order that is cheap.

        Raises:
            DataError: the archive breaks off.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when a file is added, removed or changes its size (archives: its bytes)."""


def open_tree(path: str | Path) -> Tree:
    """The tree at ``path``, by what it is and not by its ending.

    Raises:
        DataError: nothing there, or neither folder nor zip nor tar.
    """
    path = expanded(str(path), "SRC")
    if path.is_dir():
        return FolderTree(path)
    if not path.exists():
        raise DataError(f"{path}: does not exist; name a folder, a .zip or a .tar(.gz|.bz2|.xz).")
    try:
        if zipfile.is_zipfile(path):
            return ZipTree(path)
        if tarfile.is_tarfile(path):
            return TarTree(path)
    except DAMAGE as error:
        raise DataError(f"{path}: cannot be read: {error}. Copy or download it again.") from error
    raise DataError(
        f"{path}: is neither a folder nor a zip nor a tar archive ({path.stat().st_size} bytes), or it is damaged. "
        "Copy or download it again."
    )


class FolderTree(Tree):
    """A folder on the disk."""

    def files(self) -> list[tuple[str, int]]:
        """See :meth:`Tree.files`."""
        return sorted(self._walk(self.path, "", _FOLDER_DEPTH))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | Unreadable]]:
        """See :meth:`Tree.read`; the order is that of ``names``."""
        for name in names:
            try:
                path = self.path / name
                yield name, too_large(name, path.stat().st_size) or path.read_bytes()
            except OSError as error:
                yield name, Unreadable(name, f"cannot be read: {error.strerror or error}")

    def fingerprint(self) -> str:
        """SHA-256 of names and sizes."""
        return hashlib.sha256(repr(self.files()).encode("utf-8", "surrogateescape")).hexdigest()

    def _walk(self, folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        continue
                    if entry.is_dir():
                        # Limited depth: links may form a circle.
                        if depth:
                            yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/", depth - 1)
                    elif entry.is_file():
                        yield f"{prefix}{entry.name}", entry.stat().st_size
                    elif entry.is_symlink():
                        # A dangling link is a missing example: hand it on, reading it will say so.
                        yield f"{prefix}{entry.name}", 0
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be listed: {error.strerror or error}; correct its permissions."
            ) from error


class ZipTree(Tree):
    """A zip archive."""

    def files(self) -> list[tuple[str, int]]:
        """See :meth:`Tree.files`."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                found: dict[str, int] = {}
                for member in archive.infolist():
                    name = safe_name(self.path, member.filename)
                    if stat.S_ISLNK(member.external_attr >> 16):
                        raise DataError(_link_message(self.path, name))
                    if member.is_dir() or _is_hidden(name):
                        continue
                    require_readable(member, f"{self.path}: {name}")
                    _add_once(found, name, member.file_size, self.path)
                return sorted(found.items())
        except DAMAGE as error:
            raise DataError(f"{self.path}: is damaged: {error}. Copy or download it again.") from error

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | Unreadable]]:
        """See :meth:`Tree.read`; the order is that of ``names``."""
        with zipfile.ZipFile(self.path) as archive:
            stored = {safe_name(self.path, member.filename): member for member in archive.infolist()}
            for name in names:
                if large := too_large(name, stored[name].file_size):
                    yield name, large
                    continue
                try:
                    yield name, archive.read(stored[name])
                except DAMAGE as error:
                    yield name, Unreadable(name, f"is damaged: {error}")

    def fingerprint(self) -> str:
        """See :func:`file_fingerprint`."""
        return file_fingerprint(self.path)


class TarTree(Tree):
    """A tar archive, compressed or not; always read from front to back."""

    def files(self) -> list[tuple[str, int]]:
        """See :meth:`Tree.files`."""
        found: dict[str, int] = {}
        for member, _ in self._members():
            name = safe_name(self.path, member.name)
            if not _is_hidden(name):
                _add_once(found, name, member.size, self.path)
        return sorted(found.items())

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | Unreadable]]:
        """See :meth:`Tree.read`; the order is that of the archive."""
        wanted = set(names)
        for member, archive in self._members():
            name = safe_name(self.path, member.name)
            if name in wanted:
                if large := too_large(name, member.size):
                    yield name, large
                    continue
                try:
                    stream = archive.extractfile(member)
                    assert stream is not None, "a regular file has content"
                    content = stream.read()
                except DAMAGE as error:
                    raise DataError(
                        f"{self.path}: breaks off in {name}: {error}. Copy or download it again."
                    ) from error
                yield name, content

    def fingerprint(self) -> str:
        """See :func:`file_fingerprint`."""
        return file_fingerprint(self.path)

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        try:
            with open_tar(self.path) as archive:
                for member in tar_members(archive):
                    if member.issym() or member.islnk():
                        raise DataError(_link_message(self.path, member.name))
                    if member.isdir():
                        safe_name(self.path, member.name)
                        continue
                    if not member.isfile():
                        raise DataError(f"{self.path}: {member.name} is a device or a pipe; this is no data archive.")
                    yield member, archive
        except DAMAGE as error:
            raise DataError(f"{self.path}: is damaged: {error}. Copy or download it again.") from error


class _StrictTarInfo(tarfile.TarInfo):
    """Only the end mark ends an archive: tarfile takes a damaged header, or a missing one, for a peaceful end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, where a member or the end mark was expected") from error


def require_readable(member: zipfile.ZipInfo, where: str) -> None:
    """Raise a DataError that says why, unless Python can unpack a zip's member.

    Args:
        member: of the archive.
        where: archive and member, for the message.
    """
    if member.flag_bits & 1:
        raise DataError(f"{where} is encrypted; unpack the archive with its password first.")
    if member.compress_type not in _ZIP_METHODS:
        name = "Deflate64" if member.compress_type == 9 else f"method {member.compress_type}"
        raise DataError(
            f"{where} is packed by {name}, which Python cannot unpack (Windows uses Deflate64 for large files); unpack "
            "the archive and name the folder, or pack it as plain zip."
        )


def open_tar(path: Path) -> tarfile.TarFile:
    """A tar that can skip content by seeking, or, if compressed, one that is read as a stream."""
    try:
        return tarfile.open(path, "r:", tarinfo=_StrictTarInfo)
    except tarfile.ReadError:
        return tarfile.open(path, "r|*", bufsize=2**20, tarinfo=_StrictTarInfo)


def open_inner_tar(content: IO[bytes]) -> tarfile.TarFile:
    """A tar inside a tar."""
    return tarfile.open(fileobj=content, mode="r:", tarinfo=_StrictTarInfo)


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member, from front to back, remembering none: tarfile keeps a gigabyte for ImageNet's million."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file; above 1 GiB of its size and its first and last MiB, since hashing 140 GB takes minutes."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_HASH_BYTES:
            while block := file.read(_END_BYTES):
                digest.update(block)
        else:
            digest.update(f"{size}".encode() + file.read(_END_BYTES))
            file.seek(-_END_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def safe_name(archive: Path, name: str) -> str:
    """A member's name, with ``/`` between its parts, if it stays inside the archive.

    Raises:
        DataError: absolute, with ``..``, with a NUL byte, or empty.
    """
    if not name:
        raise DataError(f"{archive}: has a member without a name; it is damaged. Copy or download it again.")
    plain = name.replace("\\", "/")
    parts = plain.split("/")
    if plain.startswith("/") or ".." in parts or "\0" in plain or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise DataError(f"{archive}: member {name!r} leads out of the archive; do not trust this file.")
    return PurePosixPath(plain).as_posix()


def too_large(name: str, size: int) -> Unreadable | None:
    """Why a file of ``size`` bytes is not read; ``None`` where it is."""
    if size <= MOST_MEMBER_BYTES:
        return None
    return Unreadable(name, f"has {size} bytes unpacked, more than the {MOST_MEMBER_BYTES} that are read of one file")


def _link_message(archive: Path, name: str) -> str:
    return f"{archive}: member {name!r} is a link, which is not followed; pack the files themselves."


def _add_once(found: dict[str, int], name: str, size: int, archive: Path) -> None:
    if name in found:
        raise DataError(f"{archive}: holds {name} twice; which one is meant? Pack it again.")
    found[name] = size


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/") if part != ".")
