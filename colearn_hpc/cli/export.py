"""``colearn-hpc export RUN --to FILE``: the shared model of a run as an ordinary file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colearn_hpc.cli import describe
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import CheckpointError, ColearnError, ConfigurationError
from colearn_hpc.protocol.messages import describe_error

FORMATS = (".ckpt", ".pt", ".safetensors")


def main(argv: Sequence[str]) -> int:
    """Run ``export``; returns 0, or 2 where it cannot be done."""
    parser = Parser(prog="colearn-hpc export", description=describe("export"))
    parser.add_argument("run", type=Path, help="a run folder, e.g. runs/quickstart")
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="FILE",
        help="NAME.ckpt: a Lightning checkpoint, for load_from_checkpoint; NAME.pt: a state_dict, for torch.load; "
        "NAME.safetensors: the same tensors in that format",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="only the tensors whose names begin with this, without it: --prefix network. makes the names those of the "
        "module's `network` (.pt and .safetensors)",
    )
    arguments = parser.parse_args(argv)
    try:
        print(export(arguments.run, arguments.to, arguments.prefix))
    except ColearnError as error:
        print(f"colearn-hpc: error: {describe_error(error)}", file=sys.stderr)
        return 2
    return 0


def export(run: Path, to: Path, prefix: str = "") -> str:
    """Write the shared model of a run folder.

    Args:
        run: the folder.
        to: ends in one of :data:`FORMATS`.
        prefix: see the command's help.

    Returns:
        What was written, for people.

    Raises:
        CheckpointError: there is no shared model, or it cannot be read.
        ConfigurationError: another ending, a prefix that no name has, or the disk refuses.
    """
    if to.suffix not in FORMATS:
        raise ConfigurationError(f"--to {to}: a model is written as {', '.join(FORMATS)}")
    if prefix and to.suffix == ".ckpt":
        raise ConfigurationError(
            "--prefix goes with .pt and .safetensors: a Lightning checkpoint holds the whole module"
        )
    checkpoint = read(run)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    if prefix:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if not state:
            first = ", ".join(list(checkpoint["state_dict"])[:3])
            raise ConfigurationError(f"--prefix {prefix}: no tensor's name begins with it; there are {first}, ...")
    temporary = to.with_name(f".{to.name}.tmp")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".safetensors":
            _write_safetensors(state, temporary)
        else:
            torch.save(checkpoint if to.suffix == ".ckpt" else state, temporary)
        temporary.replace(to)
    except OSError as error:
        raise ConfigurationError(f"--to {to}: it cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    numbers = sum(tensor.numel() for tensor in state.values())
    return f"{to}: {len(state)} tensors, {numbers:,} numbers, {to.stat().st_size / 1e6:.2f} MB"


def read(run: Path) -> dict[str, Any]:
    """The checkpoint of a run's shared model.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = run / "shared.ckpt"
    if not path.exists():
        what = "no round of it has ended yet" if (run / "config.yaml").exists() else "it is no run folder"
        raise CheckpointError(f"{run} holds no shared.ckpt: {what}")
    try:
        if path.is_dir():
            from colearn_hpc.trainer.sharded import whole_checkpoint

            checkpoint = whole_checkpoint(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"].values()
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    return dict(checkpoint)


def _write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ConfigurationError("--to NAME.safetensors needs the package: pip install safetensors") from error
    # A copy each: the format has no two names for one tensor, as tied weights have.
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path, {"format": "pt"})
