"""A site joins a run that is under way: one that is in it hands the run on, before the first round that both train.

    words     where the run stands: the round, T, the epochs done, what a rule looks back at, the chain's last digest
    tensors   the last shared model, all that belongs to it, and all else that is not averaged: as w⁰ before round 0

What is each site's own is not handed on, and begins at nothing: the optimizer's state, what a codec's messages lacked,
SCAFFOLD's own variate, ``local_layers``, and the count of steps by which ``warmup_steps`` goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import colearn_hpc._lightning as pl
from colearn_hpc.errors import CheckpointError, ConfigurationError
from colearn_hpc.protocol.contract import is_digest
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.run import Run
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import Averager
from colearn_hpc.trainer.averaging import SharedModelAverager
from colearn_hpc.trainer.place import Place

_DTYPES = {
    str(one).removeprefix("torch."): one for one in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


@dataclass(frozen=True)
class Joining:
    """Who joins the run, as far as this data center has to do with it.

    Attributes:
        here: the first round that this one takes part in, where it joins, and has no resume point yet.
        others: the first round that others take part in, who join with the contract that holds now.
    """

    here: int | None = None
    others: int | None = None


@dataclass(frozen=True)
class Before:
    """What the others said of the run so far.

    Attributes:
        head: the chain's digest after the round before.
        members: who took part in it.
    """

    head: str
    members: tuple[str, ...]


def joining_of(place: Place, resumed: bool) -> Joining:
    """Who joins. Collective over the data center."""
    if not place.between.separate:
        return Joining()
    between = place.between
    first, joins, joined = place.site.bcast((between.from_round or 0, between.somebody_joins, between.joined))
    return Joining(None if resumed else joined, first if joins else None)


def check_can_join(trainer: pl.Trainer, settings: Settings, place: Place) -> None:
    """Refuse what cannot be handed on; the same in all data centers, which have compared their settings.

    Raises:
        ConfigurationError: on all ranks.
    """
    reasons = {
        "exchange: {overlap: true}, where a mean is under way between two rounds": settings.overlap,
        'optimizer_state="average", which is known at a round\'s end alone': settings.optimizer_state == "average",
        "combine other than the mean": settings.combine == "predictions",
        "a model in shards": place.means.sharded,
        "a learning rate scheduler of its own (schedule: none)": settings.schedule is None
        and bool(trainer.lr_scheduler_configs),
    }
    if found := [what for what, is_so in reasons.items() if is_so]:
        raise ConfigurationError(
            f"a site cannot join this run while it is under way: {found[0]} is set. Take the site off again "
            "(`colearn-hpc federation remove`); it can be in a new run"
        ).on_all_ranks()


def hand_on(
    round_index: int, place: Place, run: Run, module: pl.LightningModule, averager: Averager, said: list[Any]
) -> None:
    """Meet those who join, and let the first of those who are in the run hand it on. Collective over the world.

    Args:
        round_index: the first round of those who join.
        place, run, module, averager: of this data center, when the rounds before that one are done.
        said: the chain's digest after the round before, and who took part in it.
    """
    assert isinstance(averager, SharedModelAverager), "others are refused"
    tensors: list[Tensor] = []
    form = _form(averager.handed_on(), tensors)
    words = [run.handed_on(), *said, form]
    told = place.conversation.meet(_topic(round_index), words).contents
    first = min(k for k, content in told.items() if content is not None)
    if first != place.between.index or not place.center.is_leader:
        return
    model, last = averager.shared.sent_model_of(module), averager.shared.previous
    assert last is not None, "a leader holds the last shared model"
    mine = model.pack()
    model.unpack(last[: model.size])
    try:
        place.between.hand_on([*_travelling(module, averager), *tensors], round_index, first)
    finally:
        model.unpack(mine)


def take_over(round_index: int, place: Place, run: Run, module: pl.LightningModule, averager: Averager) -> Before:
    """Join: take over what another data center hands on. Collective over the world.

    Raises:
        CheckpointError: on all ranks, where nobody can hand it on.
    """
    assert isinstance(averager, SharedModelAverager), "others are refused"
    told = {k: said for k, said in place.conversation.meet(_topic(round_index)).contents.items() if said is not None}
    if not told:
        raise CheckpointError("no site of the run is left that could hand it on; begin a new run").on_all_ranks()
    first = min(told)
    match told[first]:
        case [where, str(head), [*members], form] if not head or is_digest(head):
            tensors: list[Tensor] = []
            state = _filled(form, tensors)
        case _:
            raise CheckpointError("what was handed on tells of no run; please report this").on_all_ranks()
    own = _travelling(module, averager)
    if place.center.is_leader:
        place.between.hand_on([*own, *tensors], round_index, first)
    place.site.copy_to_all([*own, *tensors])  # SCAFFOLD's common variate is every rank's
    averager.load_state_dict(state)
    run.join(where, round_index)
    return Before(head, tuple(map(str, members)))


def _topic(round_index: int) -> Topic:
    return Topic(TopicKind.JOINING, detail=f"round {round_index}")


@torch.no_grad()
def _travelling(module: pl.LightningModule, averager: SharedModelAverager) -> list[Tensor]:
    """All of a module that does not stay in its data center: frozen parameters and counters included."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [one.detach() for name, one in named if one.layout == torch.strided and not averager.shared.stays(name)]


def _form(value: Any, tensors: list[Tensor]) -> Any:
    """Plain data of ``value``, whose tensors are put into ``tensors`` and described."""
    if isinstance(value, Tensor):
        tensors.append(value.detach().cpu().contiguous())
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, dict):
        # Not as pairs: what is said at a meeting may not be nested deeply.
        return {"keys": list(value), "values": [_form(item, tensors) for item in value.values()]}
    if isinstance(value, list | tuple):
        return {"items": [_form(item, tensors) for item in value]}
    return value


def _filled(form: Any, tensors: list[Tensor]) -> Any:
    """What :func:`_form` described, with empty tensors, which are put into ``tensors``.

    Raises:
        CheckpointError: it is of another form.
    """
    match form:
        case {"tensor": str(dtype), "shape": [*shape]} if dtype in _DTYPES and all(type(n) is int for n in shape):
            tensors.append(torch.empty(shape, dtype=_DTYPES[dtype]))
            return tensors[-1]
        case {"keys": [*keys], "values": [*values]} if len(keys) == len(values) and all(type(k) is str for k in keys):
            return dict(zip(keys, (_filled(item, tensors) for item in values), strict=True))
        case {"items": [*items]}:
            return [_filled(item, tensors) for item in items]
        case None | bool() | int() | float() | str():
            return form
    raise CheckpointError(f"what was handed on has another form: {form!r:.100}")
