"""From a source to one shard per data center.

The folder that comes out: ``<center>.h5`` per data center (training examples only), ``test.h5`` and ``val.h5`` where
the source has them, and ``dataset.json``, which is written last: a folder that has it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.data.arrange import Arranged, Wishes, arrange
from colearn_hpc.data.partition import iid, partition
from colearn_hpc.data.paths import is_center_name
from colearn_hpc.data.shard_info import read_info
from colearn_hpc.data.shard_writer import ShardWriter, remove_leftovers, write_atomically
from colearn_hpc.data.sources.base import Contents, Item, Source, Unreadable
from colearn_hpc.data.tallies import ChannelMoments, Twins
from colearn_hpc.errors import DataError

MANIFEST = "dataset.json"
MANIFEST_FORMAT = "colearn-dataset"
RESERVED_NAMES = ("dataset", "test", "val")
_LISTED = 1000  # unreadable examples named in the manifest


@dataclass(frozen=True)
class Request:
    """How to share out a source.

    Attributes:
        out: folder for the shards.
        names: of the data centers.
        wishes: what is asked of classes and splits.
        rule: one of :data:`colearn_hpc.data.partition.PARTITIONS`.
        seed: of the partition.
        alpha: for ``dirichlet``.
        on_error: ``stop`` at an unreadable example, or ``skip`` it.
        overwrite: replace another data set in ``out``.
    """

    out: Path
    names: tuple[str, ...]
    wishes: Wishes = field(default_factory=Wishes)
    rule: str = "iid"
    seed: int = 0
    alpha: float | None = None
    on_error: str = "stop"
    overwrite: bool = False


@dataclass
class Packed:
    """What :func:`pack` did.

    Attributes:
        manifest: the content of ``dataset.json``.
        already_there: nothing was written, the folder held exactly this.
        skipped: the first unreadable examples.
        notes: the source's remarks.
    """

    manifest: dict[str, Any]
    already_there: bool = False
    skipped: list[Unreadable] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def pack(
    source: Source, request: Request, progress: Callable[[Iterable[Item], int], Iterable[Item]] | None = None
) -> Packed:
    """Write a source's shards, unless they are there already.

    The memory needed does not grow with the examples' size. Interrupted at any instruction, the folder holds no half
    shard, and the same call completes it.

    Args:
        source: what to read.
        request: how to share it out.
        progress: wraps the stream of examples, given their number; for a progress bar.

    Raises:
        DataError: the input is unreadable, the request impossible, or the folder holds something else.
    """
    check_names(request.names)
    identity = _identity(source, request)
    manifest = read_manifest(request.out)
    if manifest is not None and manifest.get("request") == identity and _is_complete(request.out, manifest):
        return Packed(manifest, already_there=True)
    _require_room(request, manifest, identity)
    arranged = arrange(source.scan(), request.wishes, source.test_fraction, source.name)
    labels = arranged.contents.labels
    if not _count(labels.get("train", 0)):
        raise DataError(f"{source.name}: has no training examples; there is nothing to share out.")
    parts = _parts(arranged.contents, request)
    request.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(request.out)
    attributes, notes = source.learn(lambda split, position: arranged.place(split, position)[0] == "train")
    packed = _write(source, request, arranged, attributes, parts, identity, progress)
    _remove_stale(request.out, manifest, packed.manifest)
    packed.notes += notes
    return packed


def check_names(names: tuple[str, ...]) -> None:
    """Names of data centers become file names and log names.

    Raises:
        DataError: a name repeats, is reserved, or has characters a file name should not have.
    """
    if not names:
        raise DataError("centers: none were given; at least one data center is needed.")
    for name in names:
        if not is_center_name(name) or name.lower() in RESERVED_NAMES:
            raise DataError(
                f"--names: {name[:80]!r} cannot name a data center; use letters, digits, '.', '_' and '-', at most "
                f"64, and none of {', '.join(RESERVED_NAMES)}."
            )
    if len({name.lower() for name in names}) < len(names):
        raise DataError(f"--names: {', '.join(names)} has a name twice (upper and lower case count as one).")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of ``dataset.json``; ``None`` where there is none.

    Raises:
        DataError: it is damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged: {error}. Delete it and pack the data again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT or manifest.get("version") != 1:
        raise DataError(f"{path}: is no manifest of this package's version; delete it and pack the data again.")
    try:
        names = [name for name, _ in manifest_files(manifest)] + [str(name) for name in manifest["sidecars"]]
        whole = all(Path(name).name == name for name in names) and len(manifest["source"]) and manifest["request"]
        whole = whole and {"rule", "seed"} <= set(manifest["partition"]) and isinstance(manifest["classes"], list)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{path}: is damaged: entries are missing or name files elsewhere. Delete it and pack again.")
    return manifest


def manifest_files(manifest: dict[str, Any]) -> list[tuple[str, int]]:
    """(file name, examples) of every shard in a manifest."""
    return [(str(entry["file"]), int(entry["examples"])) for entry in manifest["centers"] + manifest["evaluation"]]


def _write(
    source: Source,
    request: Request,
    arranged: Arranged,
    attributes: dict[str, Any],
    parts: list[NDArray[np.int64]],
    identity: str,
    progress: Callable[[Iterable[Item], int], Iterable[Item]] | None,
) -> Packed:
    contents = arranged.contents
    metadata = contents.metadata | attributes
    total = sum(_count(labels) for labels in contents.labels.values())
    owner = np.empty(_count(contents.labels["train"]), dtype=np.int32)
    for k, part in enumerate(parts):
        owner[part] = k
    skipped: list[Unreadable] = []
    twins = Twins()
    seen = 0
    moments = ChannelMoments() if contents.kind == "image" and contents.encoding == "array" else None
    with ExitStack() as stack:
        # Last of all, for a Ctrl-C that arrives between the making of a writer and its registration below.
        stack.callback(remove_leftovers, request.out, own=True)

        def writer(file: str, length: int, **extra: Any) -> ShardWriter:
            shard = ShardWriter(
                request.out / file,
                task=contents.task,
                classes=contents.classes,
                source=source.name,
                encoding=contents.encoding,
                kind=contents.kind,
                length=length,
                metadata=metadata | {"request": identity} | extra,
            )
            stack.callback(shard.abort)  # of no effect once closed
            return shard

        centers = [writer(f"{n}.h5", len(part), center=n) for n, part in zip(request.names, parts, strict=True)]
        others = {split: writer(f"{split}.h5", _count(y)) for split, y in contents.labels.items() if split != "train"}
        counts = {id(shard): np.zeros(len(contents.classes), dtype=np.int64) for shard in [*centers, *others.values()]}
        stream: Iterable[Item] = source.read()
        for item in progress(stream, total) if progress else stream:
            seen += 1
            if isinstance(item.value, Unreadable):
                _refuse_or_note(item.value, request, skipped)
                continue
            split, position = arranged.place(item.split, item.position)
            shard = centers[owner[position]] if split == "train" else others[split]
            label = arranged.label(item)
            shard.append(item.value, label)
            twins.add(split, item.value)
            if contents.task == "classification":
                counts[id(shard)][label] += 1
            else:
                counts[id(shard)] += label == 1
            if moments is not None and split == "train":
                moments.add(np.asarray(item.value))
        # Conservation: every example that was announced was packed or reported.
        if seen != total:
            raise DataError(f"{source.name}: {total} examples were found, {seen} were read; did the input change?")
        assert seen == len(skipped) + sum(shard.examples for shard in [*centers, *others.values()])
        sidecars = source.sidecars()
        for shard in [*centers, *others.values()]:
            if moments is not None:
                scale, offset = metadata.get("scale", 1.0), metadata.get("offset", 0.0)
                shard.metadata |= moments.result(scale, offset)
        # A manifest of other data must not stand beside the new shards, not even for a moment.
        (request.out / MANIFEST).unlink(missing_ok=True)
        for shard in [*centers, *others.values()]:
            shard.close()
    for name, write in sidecars.items():
        write_atomically(request.out / name, write)

    def entry(shard: ShardWriter, **extra: Any) -> dict[str, Any]:
        return extra | {
            "file": shard.path.name,
            "examples": shard.examples,
            "class_counts": counts[id(shard)].tolist(),
        }

    own: list[dict[str, Any]] = [{"name": name} for name in request.names]
    if request.rule == "by-group":  # how many, not which: a group may be a patient
        groups = np.asarray(contents.groups["train"])
        own = [held | {"groups": len(np.unique(groups[part]))} for held, part in zip(own, parts, strict=True)]

    manifest = {
        "format": MANIFEST_FORMAT,
        "version": 1,
        "request": identity,
        "source": source.name,
        "parameters": source.parameters(),
        "fingerprint": source.fingerprint(),
        "split": {
            "test_fraction": request.wishes.test_fraction,
            "val_fraction": request.wishes.val_fraction,
            "listed": len(request.wishes.split_list) if request.wishes.split_list is not None else None,
        },
        "partition": {"rule": request.rule, "alpha": request.alpha, "seed": request.seed},
        "task": contents.task,
        "kind": contents.kind,
        "encoding": contents.encoding,
        "classes": list(contents.classes),
        "centers": [entry(shard, **held) for held, shard in zip(own, centers, strict=True)],
        "evaluation": [entry(shard, split=split) for split, shard in others.items()],
        "sidecars": sorted(sidecars),
        "skipped": {"count": len(skipped), "items": [list(item) for item in skipped[:_LISTED]]},
    }
    # A file name that is no UTF-8 comes as lone surrogates.
    text = json.dumps(manifest, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def write_manifest(file: BinaryIO) -> None:
        file.write(text)

    write_atomically(request.out / MANIFEST, write_manifest)
    return Packed(manifest, skipped=skipped, notes=(*contents.notes, *twins.notes()))


def _count(labels: NDArray[Any] | int) -> int:
    return labels if isinstance(labels, int) else len(labels)


def _parts(contents: Contents, request: Request) -> list[NDArray[np.int64]]:
    labels, groups = contents.labels["train"], contents.groups.get("train")
    if isinstance(labels, int):
        if request.rule != "iid":
            raise DataError(
                f"--partition: {request.rule} needs one class per example, which this source has not; use iid."
            )
        return iid(labels, len(request.names), request.seed)
    if request.rule == "by-group" and groups is not None and "" in groups:
        name = contents.names["train"][groups.index("")]
        raise DataError(f"--group-list: {name} is for training and has no group; add a line for it.")
    return partition(request.rule, labels, request.names, request.seed, request.alpha, groups)


def _refuse_or_note(item: Unreadable, request: Request, skipped: list[Unreadable]) -> None:
    if request.on_error != "skip":
        raise DataError(f"{item.name}: {item.reason}. Repair or remove it, or leave such out with --on-error skip.")
    skipped.append(item)


def _identity(source: Source, request: Request) -> str:
    what = {
        "source": source.name,
        "parameters": source.parameters(),
        "fingerprint": source.fingerprint(),
        "names": request.names,
        "rule": request.rule,
        "alpha": request.alpha if request.rule == "dirichlet" else None,
        "seed": request.seed,
        "on_error": request.on_error,
        "classes": request.wishes.classes,
        "test_fraction": request.wishes.test_fraction,
        "split_list": request.wishes.split_list,
    }
    if request.wishes.val_fraction is not None:  # otherwise folders of earlier versions are still this data set
        what["val_fraction"] = request.wishes.val_fraction
    if request.wishes.group_list is not None:
        what["group_list"] = request.wishes.group_list
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _is_complete(folder: Path, manifest: dict[str, Any]) -> bool:
    try:
        whole = all(read_info(folder / file).examples == examples for file, examples in manifest_files(manifest))
    except DataError:
        return False
    return whole and all((folder / name).is_file() for name in manifest["sidecars"])


def _require_room(request: Request, manifest: dict[str, Any] | None, identity: str) -> None:
    if request.out.exists() and not request.out.is_dir():
        raise DataError(f"{request.out}: is a file; choose a folder for --out.")
    if request.overwrite or not request.out.is_dir():
        return
    if manifest is not None:
        if manifest["request"] == identity:
            return  # ours, but a shard is missing or damaged: write all again
        raise DataError(
            f"{request.out}: holds another data set ({manifest['source']}, {len(manifest['centers'])} centers, "
            f"{manifest['partition']['rule']}, seed {manifest['partition']['seed']}, or from other input); choose "
            "another --out, or replace it with --overwrite."
        )
    # Without a manifest: shards of this very request are what an interrupted run left; anything else is the user's.
    foreign = [path.name for path in request.out.iterdir() if not _is_ours(path, identity)]
    if foreign:
        raise DataError(
            f"{request.out}: is not empty ({', '.join(sorted(foreign)[:3])}, …); choose an empty folder, or write "
            "there all the same with --overwrite."
        )


def _is_ours(path: Path, identity: str) -> bool:
    if path.name.startswith("."):
        return True
    try:
        return path.suffix == ".h5" and read_info(path).metadata.get("request") == identity
    except DataError:
        return False


def _remove_stale(folder: Path, old: dict[str, Any] | None, new: dict[str, Any]) -> None:
    """Remove shards that the replaced data set had and the new one has not: a dc7.h5 of other data misleads."""
    if old is None:
        return
    current = {file for file, _ in manifest_files(new)} | set(new["sidecars"])
    for name in {file for file, _ in manifest_files(old)} | set(old["sidecars"]):
        if name not in current:
            (folder / name).unlink(missing_ok=True)
