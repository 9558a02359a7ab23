"""``colearn-hpc data``: make the shards of every data center, look at them, and check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from colearn_hpc.cli.interrupts import terminated_like_interrupted
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.data.paths import expanded
from colearn_hpc.data.sources import SOURCES, source_class
from colearn_hpc.errors import ColearnError, DataError
from colearn_hpc.protocol.messages import describe_error

if TYPE_CHECKING:
    from colearn_hpc.data.pack import Packed, Request
    from colearn_hpc.data.shard_info import ShardInfo

EXIT_INTERRUPTED = 130
_ALPHA = 0.5
# What only one rule of --partition reads.
_ONLY_FOR = {"alpha": "dirichlet", "group_by": "by-group", "group_list": "by-group"}


def main(argv: list[str]) -> int:
    """Run ``colearn-hpc data``.

    Args:
        argv: what follows ``data``.

    Returns:
        The exit code: 0, 1 for an error of input (one line on stderr), 130 when interrupted.
    """
    options = _parser(argv).parse_args(argv)
    try:
        with terminated_like_interrupted():
            if options.command in _READERS:
                return _READERS[options.command](expanded(options.folder, "DIR"))
            return _make(options)
    except ColearnError as error:
        _say(f"colearn-hpc data: {describe_error(error)}", sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or getattr(options, "out", options.command)
        _say(f"colearn-hpc data: {where}: {error.strerror or error}; correct the path, or make room", sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("colearn-hpc data: interrupted; no half shard was left. Run it again to start over.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser(argv: list[str]) -> Parser:
    parser = Parser(
        prog="colearn-hpc data",
        description="Make one HDF5 shard per data center out of a data set, or look at the shards in a folder.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="SOURCE")
    for name, (_, _, summary) in SOURCES.items():
        command = commands.add_parser(name, help=summary, description=summary)
        # Only the source that is asked for is imported: --help must not wait for all of them.
        if name in argv:
            source_class(name).add_arguments(command)
            _add_common(command)
    check = commands.add_parser("check", help="read the shards of a folder from end to end and list them")
    info = commands.add_parser("info", help="say what the shards of a folder hold and what their numbers mean")
    for command in (check, info):
        command.add_argument("folder", metavar="DIR", help="folder with shards, or one shard")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    from colearn_hpc.data.partition import PARTITIONS

    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument("--centers", type=int, metavar="K", help="number of data centers (default: 5, or as --names)")
    parser.add_argument("--names", metavar="A,B,…", help="names of the data centers (default: dc0,dc1,…)")
    parser.add_argument("--partition", choices=PARTITIONS, default="iid", help="who gets what (default: %(default)s)")
    parser.add_argument("--alpha", type=float, help=f"of --partition dirichlet (default: {_ALPHA})")
    parser.add_argument("--seed", type=int, default=0, help="of the partition (default: %(default)s)")
    parser.add_argument("--classes", metavar="A,B,…|FILE", help="classes in the order of their numbers, one a line")
    parser.add_argument(
        "--test-fraction", type=float, metavar="F", help="share of each class for test, where the data tell no split"
    )
    parser.add_argument(
        "--val-fraction", type=float, metavar="F", help="share of each class of the rest for validation (val.h5)"
    )
    parser.add_argument("--split-list", metavar="FILE", help="lines NAME train|val|test; all others are for training")
    parser.add_argument("--group-list", metavar="FILE", help="lines NAME GROUP, for --partition by-group")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at an unreadable example")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set in DIR")


def _make(options: argparse.Namespace) -> int:
    from colearn_hpc.data.pack import pack

    request = _request(options)
    packed = pack(source_class(options.command).from_arguments(options), request, _progress)
    _report(packed, options.out)
    return 0


def _request(options: argparse.Namespace) -> Request:
    from colearn_hpc.data.arrange import Wishes, read_classes, read_group_list, read_split_list
    from colearn_hpc.data.pack import Request

    _refuse_unread(options)
    names = tuple(name.strip() for name in options.names.split(",")) if options.names else None
    centers = options.centers if options.centers is not None else len(names) if names else 5
    if names is not None and len(names) != centers:
        raise DataError(f"--names: has {len(names)} names for {centers} centers; give one for each.")
    if centers < 1:
        raise DataError(f"--centers: {centers} was set; at least one data center is needed.")
    return Request(
        out=expanded(options.out, "--out"),
        names=names or tuple(f"dc{k}" for k in range(centers)),
        wishes=Wishes(
            classes=read_classes(options.classes) if options.classes is not None else None,
            test_fraction=options.test_fraction,
            val_fraction=options.val_fraction,
            split_list=read_split_list(options.split_list) if options.split_list is not None else None,
            group_list=read_group_list(options.group_list) if options.group_list is not None else None,
        ),
        rule=options.partition,
        seed=options.seed,
        alpha=(_ALPHA if options.alpha is None else options.alpha) if options.partition == "dirichlet" else None,
        on_error=options.on_error,
        overwrite=options.overwrite,
    )


def _refuse_unread(options: argparse.Namespace) -> None:
    """An option that changes nothing is a mistake: the shards would not be what was asked for."""
    given = [name for name in _ONLY_FOR if getattr(options, name, None) is not None]
    for name in given:
        if options.partition != (rule := _ONLY_FOR[name]):
            option = f"--{name.replace('_', '-')}"
            raise DataError(
                f"{option}: was set, and --partition {options.partition} does not read it; set --partition {rule}, or "
                f"leave {option} out."
            )
    if {"group_by", "group_list"} <= set(given):
        raise DataError("--group-by and --group-list both say who an example comes from; give one of them.")


def _report(packed: Packed, out: str) -> None:
    manifest = packed.manifest
    if packed.already_there:
        print(f"{out}: already holds exactly this data set; nothing to do.")
    for note in packed.notes:
        _say(f"note: {note}")
    if packed.skipped:
        print(f"{len(packed.skipped)} unreadable examples were left out:")
        for item in packed.skipped[:10]:
            _say(f"  {item.name}: {item.reason}")
        if len(packed.skipped) > 10:
            print(f"  … and {len(packed.skipped) - 10} more, listed in dataset.json")
    entries = manifest["centers"] + manifest["evaluation"]
    rows: list[tuple[str, ...]] = [("file", "examples", "groups", "per class")]
    for entry in entries:
        counts = _counts(entry["class_counts"])
        rows.append((entry["file"], str(entry["examples"]), str(entry.get("groups", "")), counts))
    grouped = any("groups" in entry for entry in entries)
    _table(rows if grouped else [(file, examples, per_class) for file, examples, _, per_class in rows])
    rule = manifest["partition"]["rule"]
    print(f"{len(manifest['classes'])} classes, {manifest['task']}, partition {rule}, in {out}")


def _check(folder: Path) -> int:
    from colearn_hpc.data.pack import manifest_files, read_manifest
    from colearn_hpc.data.shard_info import check_shard, difference

    problems: list[str] = []
    announced: dict[str, int] = {}
    files = _shards(folder)
    if folder.is_dir():
        try:
            manifest = read_manifest(folder)
            announced = dict(manifest_files(manifest)) if manifest is not None else {}
            if manifest is None:
                problems.append(f"{folder / 'dataset.json'}: is missing; the packing was interrupted, run it again.")
        except DataError as error:
            problems.append(str(error))
    if not files:
        problems.append(f"{folder}: holds no shards (*.h5); make some with `colearn-hpc data`.")
    rows: list[tuple[str, ...]] = [("file", "examples", "shape", "type", "classes", "per class")]
    first: ShardInfo | None = None
    for file in _progress(files, len(files)):
        try:
            report = check_shard(file)
        except DataError as error:
            problems.append(str(error))
            continue
        info = report.info
        shape = "x".join(str(length) for length in info.shape) or info.encoding
        row = (info.path.name, str(info.examples), shape, str(info.dtype), str(len(info.classes)))
        rows.append((*row, _counts(report.class_counts.tolist())))
        first = first or info
        if found := difference(first.meaning, info.meaning):
            name, ours, theirs = found
            problems.append(
                f"{file}: {name} is {theirs}, in {first.path.name} {ours}: the two differ in what their numbers mean, "
                "they are no one data set."
            )
        if announced.get(info.path.name, info.examples) != info.examples:
            problems.append(f"{file}: has {info.examples} examples, dataset.json says {announced[info.path.name]}.")
    problems.extend(
        f"{folder / name}: is missing, dataset.json lists it; pack the data again."
        for name in announced
        if not (folder / name).exists()
    )
    _table(rows)
    for problem in problems:
        _say(f"colearn-hpc data check: {problem}", sys.stderr)
    return 1 if problems else 0


def _info(folder: Path) -> int:
    from colearn_hpc.data.shard_info import read_info

    files = _shards(folder)
    if not files:
        raise DataError(f"{folder}: holds no shards (*.h5); make some with `colearn-hpc data`.")
    for file in files:
        info = read_info(file)
        lines = {"examples": f"{info.examples} of {info.source or 'an unknown source'}", "stored as": str(info.dtype)}
        # `classes` and `shape` say in one line what `class 0`, `class 1`, … say in many.
        lines |= {name: value for name, value in info.meaning.items() if not name.startswith("class ")}
        lines |= {name: str(value) for name, value in info.metadata.items() if name not in (*lines, "request")}
        print(info.path.name)
        width = max(len(name) for name in lines)
        for name, value in lines.items():
            _say(f"  {name.ljust(width)}  {value}")
    return 0


_READERS: dict[str, Callable[[Path], int]] = {"check": _check, "info": _info}


def _shards(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"{folder}: does not exist; name a folder made by `colearn-hpc data`.")
    return sorted(folder.glob("*.h5")) if folder.is_dir() else [folder]


def _say(text: str, file: TextIO | None = None) -> None:
    """Print a line that may quote names from a file or an archive: what is no letter cannot command a terminal."""
    print("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), file=file)


def _counts(counts: list[int]) -> str:
    if len(counts) <= 12:
        return " ".join(str(count) for count in counts)
    return f"{min(counts)} … {max(counts)}"


def _table(rows: list[tuple[str, ...]]) -> None:
    if len(rows) == 1:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    # Into a log file a line every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(items, total=total, unit=" examples", mininterval=interval, maxinterval=interval, file=sys.stderr)
