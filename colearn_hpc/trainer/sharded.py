"""A model in shards: every rank of a data center holds a part of it (FSDP2, tensor parallelism; ``DTensor``).

Each rank then exchanges its own shard with the ranks of equal place in the other data centers, so no rank ever holds
the whole model: a leader's memory falls by the number of ranks. Equation 2 is elementwise and does not notice; the sums
of eq. 4 are taken over all shards, each counted once.

Checkpoints are folders then, with a part per rank (``torch.distributed.checkpoint``); what a rank must remember of the
rounds goes into them as one more tensor.

Source: Zhao et al. 2023 (FSDP, arXiv 2304.11277).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import colearn_hpc._lightning as pl
from colearn_hpc.algorithm.shared_model import float_buffers, shard_of
from colearn_hpc.between import TensorSite
from colearn_hpc.errors import CheckpointError, ConfigurationError, ParticipantError
from colearn_hpc.protocol.settings import Settings

_KEY = "colearn_hpc.rank{rank}"  # in a checkpoint's state_dict


def check_settings(trainer: pl.Trainer, settings: Settings) -> None:
    """What cannot be had with a model in shards.

    Raises:
        ConfigurationError: there is some of it.
    """
    strategy = type(trainer.strategy).__name__
    for found, wanted in (
        (settings.combine == "predictions" and 'combine="predictions"', 'combine="weights"'),
        (settings.overlap and 'exchange={"overlap": True}', "a mean at the round's end"),
        (settings.optimizer_state == "average" and 'optimizer_state="average"', '"reset" or "keep"'),
        (settings.on_failure == "continue_without" and 'on_failure="continue_without"', 'on_failure="stop"'),
        (settings.whole_numbers and f'exchange={{"sums": "{settings.sums}"}}', '"float64"'),
        (settings.local_correction is not None and "local_correction", "none"),
        (settings.kept_model is not None and "kept_model", "none"),
        (settings.local_layers is not None and "local_layers", "none"),
        (settings.fragments is not None and f'exchange={{"fragments": {settings.fragments}}}', "none"),
        (settings.federated and "a federation", "one MPI world"),
        (settings.lanes not in (None, 1) and f'exchange={{"lanes": {settings.lanes}}}', "no lanes: shards are lanes"),
        (
            not getattr(trainer.strategy, "_save_distributed_checkpoint", True) and "save_distributed_checkpoint=False",
            "its default: resume points hold a part per rank; `colearn-hpc export` makes one file of them",
        ),
    ):
        if found:
            raise ConfigurationError(f"{found} cannot be combined with {strategy}; use {wanted}")


class Shards:
    """Which shard of each parameter this rank holds, and whether another one holds the same. Collective over the data
    center, as its methods are.

    Args:
        module: in shards.
        site: this data center.

    Attributes:
        counted_elsewhere: parameters of which a lower rank holds the same shard. So each shard enters the norms once,
            whatever was left whole or is repeated along a dimension of the mesh.
        copied: parameters of which several ranks hold the same shard; equal on all ranks.
    """

    def __init__(self, module: torch.nn.Module, site: TensorSite) -> None:
        self._site = site
        self._places = {name: _place_of(parameter) for name, parameter in module.named_parameters()}
        by_rank, found = site.gather(self._places), []
        seen: set[tuple[str, str]] = set()
        for places in by_rank or ():
            found.append([name for name, place in places.items() if (name, place) in seen])
            seen |= set(places.items())
        found = site.bcast(found)
        self.counted_elsewhere = frozenset(found[site.rank])
        self.copied = list(dict.fromkeys(name for of_rank in found for name in of_rank))

    def check_codec(self, name: str) -> None:
        """Copies of one shard would be rounded differently: how a number is coded depends on what lies beside it.

        Raises:
            ConfigurationError: on all ranks of the data center, where there are copies.
        """
        if self.copied:
            raise ConfigurationError(
                f"parameter {self.copied[0]} is held by several ranks, and the codec {name} would round its copies "
                'differently; shard it (`fully_shard` of the module that holds it), or set exchange={"codec": "fp32"}'
            )

    def check_copies(self, module: torch.nn.Module) -> None:
        """FSDP2 leaves the gradients of what it does not shard to each rank, and says nothing.

        Raises:
            ParticipantError: on all ranks of the data center, if copies of one shard differ.
        """
        if not self.copied:
            return
        parameters = dict(module.named_parameters())
        mine = {name: (self._places[name], _digest(parameters[name])) for name in self.copied if name in parameters}
        wrong = ""
        seen: dict[tuple[str, str], str] = {}
        for of_rank in self._site.gather(mine) or ():
            for name, (place, digest) in of_rank.items():
                if seen.setdefault((name, place), digest) != digest:
                    wrong = wrong or name
        if wrong := self._site.bcast(wrong):
            raise ParticipantError(
                f"the ranks of data center {self._site.name} hold different values of {wrong}: it is not sharded, so "
                "its gradient is each rank's own. Shard the module that holds it with `fully_shard`, or average its "
                "gradient"
            )


def _digest(tensor: Tensor) -> str:
    content = shard_of(tensor).cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


def _place_of(parameter: Tensor) -> str:
    """Which shard of a parameter this rank holds; empty if it is all of it."""
    placements, mesh = getattr(parameter, "placements", ()), getattr(parameter, "device_mesh", None)
    if mesh is None:
        return ""
    names = mesh.mesh_dim_names or [str(dim) for dim in range(mesh.ndim)]
    cut = [dim for dim, placement in enumerate(placements) if not placement.is_replicate() and mesh.size(dim) > 1]
    return " ".join(f"{names[dim]}={mesh.get_local_rank(dim)}" for dim in cut)


def layout(trainer: pl.Trainer) -> str:
    """How the model is dealt to the ranks, the same in all data centers."""
    mesh = trainer.strategy.device_mesh  # type: ignore[attr-defined]
    names = mesh.mesh_dim_names or [str(dim) for dim in range(mesh.ndim)]
    return ", ".join(f"{name} {size}" for name, size in zip(names, mesh.shape, strict=True))


@torch.no_grad()
def fresh_state(optimizers: Sequence[Optimizer]) -> None:
    """Optimizer state as if nothing had been trained, but there: all zeros.

    torch makes a missing state by a step with rate 0 when a checkpoint is written, unless gradients are there, and when
    it is read: then counters begin at 1, or keys are missing. For SGD without dampening, Adam and their relatives zeros
    are what the first step begins with.
    """
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.state.clear()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()


def put_rank_state(checkpoint: dict[str, Any], rank: int, state: dict[str, Any], module: torch.nn.Module) -> None:
    """Add to a checkpoint what this rank alone must remember; and its buffers, which differ from the other ranks' (of
    what is not sharded, torch keeps one rank's)."""
    buffers = {name: buffer.detach().cpu() for name, buffer in float_buffers(module)}
    buffer = io.BytesIO()
    torch.save({"averaging": state, "buffers": buffers}, buffer)
    checkpoint["state_dict"][_KEY.format(rank=rank)] = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


@torch.no_grad()
def rank_state(path: Path, rank: int, module: torch.nn.Module) -> dict[str, Any]:
    """What :func:`put_rank_state` has put into a checkpoint; buffers are put into the module.

    Raises:
        CheckpointError: it holds nothing of this rank.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    reader, key = FileSystemReader(path), f"state_dict.{_KEY.format(rank=rank)}"
    found: Any = reader.read_metadata().state_dict_metadata.get(key)
    if found is None:
        raise CheckpointError(f"{path} holds nothing of rank {rank}; resume with as many ranks as wrote it")
    content = {key: torch.empty(found.size, dtype=torch.uint8)}
    load(content, storage_reader=reader, no_dist=True)
    state: dict[str, Any] = torch.load(io.BytesIO(content[key].numpy().tobytes()), weights_only=True)
    for name, buffer in float_buffers(module):
        if name in state["buffers"]:
            buffer.copy_(state["buffers"][name])
    averaging: dict[str, Any] = state["averaging"]
    return averaging


def whole_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that ranks have written in parts, as one: weights whole, without optimizer state.

    Raises:
        OSError, KeyError, RuntimeError: it is none, or damaged.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    reader, prefix = FileSystemReader(path), "state_dict."
    known: Any = reader.read_metadata().state_dict_metadata
    ours = prefix + _KEY.partition("{")[0]
    names = [key for key in known if key.startswith(prefix) and not key.startswith(ours)]
    content = {key: torch.empty(known[key].size, dtype=known[key].properties.dtype) for key in names}
    load(content, storage_reader=reader, no_dist=True)
    rest: dict[str, Any] = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
    return rest | {"state_dict": {key.removeprefix(prefix): content[key] for key in names}}
