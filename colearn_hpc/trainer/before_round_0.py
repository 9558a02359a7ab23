"""What all data centers agree on before round 0: that they run the same thing, in the same run, from the same w⁰."""

from __future__ import annotations

import torch

import colearn_hpc._lightning as pl
from colearn_hpc.algorithm.shared_model import shard_of
from colearn_hpc.errors import CheckpointError
from colearn_hpc.protocol.contract import Contract, texts_of
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.run import Run
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.fingerprint import check_unchanged, fingerprint, meaning, terms
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.sharded import layout


def agree(trainer: pl.Trainer, module: pl.LightningModule, settings: Settings, place: Place, run: Run) -> Contract:
    """Compare all that must be the same everywhere, and note it in the run. Collective over the world.

    Returns:
        What all have confirmed.

    Raises:
        FingerprintError: on all ranks, naming the first difference and the data center that has it.
        CheckpointError: a resumed run began with something else.
    """
    found = fingerprint(trainer, module, settings.fingerprint())
    if place.means.sharded:
        found["shards in a data center"] = layout(trainer)
    place.conversation.compare(Topic(TopicKind.START), found)
    agreed = {f"data: {key}": value for key, value in meaning(trainer).items()}
    agreed |= {f"federation: {key}": value for key, value in place.between.agreed.items()}
    place.conversation.compare(Topic(TopicKind.START, detail="data"), agreed)
    said = place.conversation.meet(Topic(TopicKind.START, detail="terms"), terms(trainer)).contents
    check_unchanged(dict(run.state.settings), found)
    run.note(settings=found)
    # The coordinator knows it, for between sites no two have to be equally far.
    first = place.site.bcast(place.between.from_round) if place.between.separate else None
    first = run.state.lines if first is None else first
    return Contract(found | agreed, {place.between.names[k]: texts_of(said[k]) for k in said}, first)


def check_same_run(place: Place, run_id: str) -> str:
    """A site goes on in the run that its coordinator holds, or joins it. Collective over the site.

    Args:
        place: this process's.
        run_id: of its resume point; empty: it joins.

    Returns:
        The run's.

    Raises:
        CheckpointError: on all ranks, when its resume point is of another one.
    """
    told = place.conversation.meet(Topic(TopicKind.RUN_ID), run_id).contents
    held = next((one for one in told.values() if one), "")  # who joins says none
    if run_id and held != run_id:
        raise CheckpointError(
            f"this site's resume point is of run {run_id[:8]}, and the coordinator holds run {str(held)[:8]}; begin "
            "anew (`--overwrite`), or give the coordinator the --state folder of that run"
        ).on_all_ranks()
    return str(held)


def share_first_model(module: pl.LightningModule, place: Place) -> None:
    """w⁰ of Algorithm 1: the first data center's model in all, frozen parameters and counters included.

    Collective over the world.
    """
    tensors = [one for one in [*module.parameters(), *module.buffers()] if one.layout == torch.strided]
    if place.center.is_leader or place.means.sharded:
        place.between.broadcast(map(shard_of, tensors))
    place.site.copy_to_all(tensor for tensor in tensors if not hasattr(tensor, "to_local"))
