"""Files that come with the package and are made to be copied and edited: configurations and batch scripts."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from colearn_hpc.cli.parsing import Parser, nearest
from colearn_hpc.errors import ColearnError, ConfigurationError
from colearn_hpc.protocol.messages import describe_error

_PACKAGE = Path(__file__).parents[1]


def folder(name: str) -> Path:
    """Where ``configs`` or ``slurm`` are: in the package where it was built, beside it in a clone."""
    built = _PACKAGE / "shipped" / name
    return built if built.is_dir() else _PACKAGE.parent / name


def run(argv: Sequence[str], name: str, what: str) -> int:
    """``colearn-hpc NAME list`` and ``colearn-hpc NAME copy``; returns the exit code.

    Args:
        argv: after the command.
        name: the command's, and the folder's.
        what: one of its files, in words.
    """
    parser = Parser(prog=f"colearn-hpc {name}", description=f"List and copy each {what}.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help=f"name each {what}")
    copying = actions.add_parser("copy", help=f"copy each {what}, or those named, into ./{name}")
    copying.add_argument("names", nargs="*", metavar="NAME", help="as `list` shows it (default: all)")
    copying.add_argument("--out", type=Path, default=Path(name), help=f"folder to copy into (default: ./{name})")
    copying.add_argument("--overwrite", action="store_true", help="replace files that are there")
    arguments = parser.parse_args(argv)
    files = {str(path.relative_to(folder(name))): path for path in sorted(folder(name).rglob("*")) if path.is_file()}
    if arguments.action == "list":
        width = max(map(len, files))
        for short, path in files.items():
            print(f"{short:{width}}  {title(path)}")
        return 0
    try:
        for path in copy(files, arguments.names, arguments.out, arguments.overwrite):
            print(path)
    except ColearnError as error:
        print(f"colearn-hpc: error: {describe_error(error)}", file=sys.stderr)
        return 1
    return 0


def title(path: Path) -> str:
    """The first sentence of a file's first comment; of a page its heading, which is written alike."""
    lines = itertools.dropwhile(lambda line: not line.startswith("# "), path.read_text().splitlines())
    comment = itertools.takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line.removeprefix("# ") for line in comment).partition(". ")[0].rstrip(".")


def copy(files: dict[str, Path], names: Sequence[str], out: Path, overwrite: bool) -> list[Path]:
    """Copy files under their short names; a name may leave out the ending. Returns where they are.

    Args:
        files: short name -> file.
        names: those wanted; empty: all.
        out: the folder to copy into.
        overwrite: whether a file that is there is replaced.

    Raises:
        ConfigurationError: an unknown name, or a file that is there already; nothing was copied.
    """
    endings = {str(Path(short).with_suffix("")): short for short in files}
    chosen = [name if name in files else endings.get(name, name) for name in names] or list(files)
    if unknown := [name for name in chosen if name not in files]:
        hint = nearest(unknown[0], [*files, *endings]) or f"there are {', '.join(files)}"
        raise ConfigurationError(f"there is no {', '.join(unknown)}; {hint}")
    there = [str(out / short) for short in chosen if (out / short).exists()]
    if there and not overwrite:
        raise ConfigurationError(f"{', '.join(there)}: there already; choose another --out, or give --overwrite")
    for short in chosen:
        (out / short).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[short], out / short)
    return [out / short for short in chosen]
