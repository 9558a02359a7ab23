"""Between data centers that share an MPI world: meetings by messages with the first leader as chair, means over lanes.

Meetings take no collective: it would need everybody, and a data center may be restarting, silent, or left out.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from colearn_hpc.between import Offer
from colearn_hpc.errors import ConfigurationError, PeerError, RoundTimeoutError, TopologyError
from colearn_hpc.mpi.copies import copy_to_all
from colearn_hpc.mpi.lanes import deal, deal_shards, places_of
from colearn_hpc.mpi.mean import MeanUnderWay, begin_mean
from colearn_hpc.mpi.pipeline import LONG_LINK
from colearn_hpc.mpi.site import MpiSite, nothing
from colearn_hpc.mpi.tensor_wire import DeviceWay, TensorWire, choose_way, device_facts, wire_of
from colearn_hpc.mpi.topology import DataCenter
from colearn_hpc.mpi.wire import Mailbox, allgather_plain
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.meeting import FINISHED, Attendee, Chair, GaveUp, NewsBook
from colearn_hpc.protocol.messages import Arrival, Brought, LeftOut, News, Outcome, StopRequest, Topic

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("colearn_hpc")

_CHAIR = 0


class MpiBetween:
    """A :class:`~colearn_hpc.between.Between` over MPI. Collective over the world.

    Args:
        center: this process's data center.
        site: inside it.
        lanes: ranks of each data center that share the transfer of a mean; None: one per node. Equal on all ranks.
        sharded: every rank of a data center holds a shard of the model, and carries it. Equal on all ranks.
        failed: why this rank cannot take part, for all to hear.
        device: where this rank's model lies, and from where it is sent; None: models travel through host memory.

    Raises:
        PeerError: on all ranks, when some cannot take part.
        ConfigurationError: on all ranks, when the ranks disagree on ``lanes`` or ``sharded``, there cannot be so many,
            or models cannot be sent from their devices.
    """

    replays = False
    separate = False
    may_preside: frozenset[int] | None = None

    def __init__(
        self,
        center: DataCenter,
        site: MpiSite,
        lanes: int | None = 1,
        sharded: bool = False,
        failed: str = "",
        device: torch.device | None = None,
    ) -> None:
        self.index, self.names = center.index, tuple(c.name for c in center.topology.centers)
        self.agreed: Mapping[str, str] = {}  # there is no roster but the ranks that were started
        self.roster = tuple(range(len(self.names)))
        self.from_round: int | None = None
        self.somebody_joins, self.joined = False, None
        self.meanwhile: Callable[[], object] = nothing
        self.stop_asked = ""
        self._world, self._leaders = center.world, center.leaders
        self._lanes, ways = _agreed(center, site, lanes, sharded, failed, device)
        mine = [lane for lane, ranks in enumerate(self._lanes) if center.world_rank in ranks]
        self._way = ways[mine[0]] if mine else "mpi"
        self.carries = bool(mine)
        # Ranks inside this data center, by lane.
        site.carriers = [center.topology.centers[center.index].world_ranks.index(r[center.index]) for r in self._lanes]
        self._lane = _group(center.world, self._lanes[mine[0]]) if mine else None
        self._groups: dict[tuple[int, ...], MPI.Intracomm] = {}
        self._device, self._wires = device, dict[tuple[int, ...], TensorWire]()
        hosts = {host for one in center.topology.centers for host in one.hosts}
        self._ahead = LONG_LINK if len(hosts) > 1 else 0  # on one host it would only be more memory to go through
        if device is not None:
            self._connect_devices(center, site)
        if center.leaders is not None:
            now = time.monotonic()
            self._mailbox = Mailbox(center.leaders)
            self._chair, self._attendee = Chair(self.names), Attendee(self.index)
            self._news = NewsBook(self.index, self.names, now)
            self._told = 0.0

    # --- meetings ---------------------------------------------------------------------------------------

    def meet(self, topic: Topic, brought: Brought, patience: float | None, may_miss: bool) -> Outcome:
        self._tell_all(News("waiting", topic))
        now = time.monotonic()
        if self.index == _CHAIR:
            self._chair.receive(_CHAIR, Arrival(topic, brought))
            self._chair.open(topic, now, patience, may_miss)
        else:
            self._mailbox.send(_CHAIR, self._attendee.arrive(topic, brought, now, patience))
        waiting = pacing.Patience(patience)
        while True:
            self.listen()
            found = self._due(topic)
            self._send_outbox()
            if isinstance(found, Outcome):
                self._news.met(found, time.monotonic())
                return found
            if isinstance(found, GaveUp):
                missing = self._missing(topic)
                raise RoundTimeoutError(self._news.gave_up(topic, missing, patience or 0.0, time.monotonic()))
            self._pass_time(waiting, topic)

    def _due(self, topic: Topic) -> Outcome | GaveUp | None:
        now = time.monotonic()
        if self.index == _CHAIR:
            missing = self._chair.missing
            found = self._chair.due(now)
            if isinstance(found, Outcome) and (left_out := missing - set(found.present)):
                log.warning("%s: going on without %s", topic, self._news.text(left_out, now))
            for text in self._chair.messages:
                log.warning("%s", text)
            self._chair.messages.clear()
            return found
        return self._attendee.due(now, self._news.when(_CHAIR), self._news.waits_at(_CHAIR, topic))

    def finish(self, patience: float | None) -> list[str]:
        silent = self._chair.close()
        self._send_outbox()
        waiting = pacing.Patience(patience)
        while silent - self._chair.arrived(silent) and not waiting.over():
            self.listen()
            self._pass_time(waiting, FINISHED)
        return [self.names[k] for k in sorted(silent - self._chair.arrived(silent))]

    def _pass_time(self, waiting: pacing.Patience, topic: Topic) -> None:
        self.meanwhile()
        missing = self._missing(topic)
        if waiting.report_due() and self._news.speaks(missing):
            text = self._news.text(missing, time.monotonic())
            log.warning("%s: waiting for %s since %.0f s", topic, text, waiting.seconds)
        waiting.sleep()

    def _missing(self, topic: Topic) -> set[int]:
        return self._chair.missing if self.index == _CHAIR else self._news.not_at(topic)

    # --- messages ---------------------------------------------------------------------------------------

    def tell(self, text: Callable[[], str], now: bool = False) -> None:
        moment = time.monotonic()
        if now or moment - self._told >= pacing.NEWS_INTERVAL:
            self._told = moment
            self._tell_all(News(text()))

    def ask_to_stop(self, reason: str) -> None:
        self._tell_all(StopRequest(reason))

    def listen(self) -> None:
        for leader, message in self._mailbox.receive():
            if isinstance(message, News):
                if seen := self._news.receive(leader, message, time.monotonic()):
                    log.warning("%s", seen)
            elif isinstance(message, StopRequest):
                self.stop_asked = self.stop_asked or message.reason
            elif isinstance(message, Arrival):
                self._chair.receive(leader, message)
            elif isinstance(message, Outcome | LeftOut):
                self._attendee.receive(message)

    def _tell_all(self, message: News | StopRequest) -> None:
        for k in range(len(self.names)):
            if k != self.index:
                self._mailbox.send(k, message)

    def _send_outbox(self) -> None:
        for k, message in self._chair.outbox():
            if k != self.index:
                self._mailbox.send(k, message)

    # --- tensors ----------------------------------------------------------------------------------------

    def begin_mean(self, offer: Offer, present: tuple[int, ...]) -> MeanUnderWay:
        weights = [offer.weights[k] for k in present]
        return begin_mean(self._lane_of(present), offer, weights, self._wire_of(present), self._ahead)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        assert self._lane is not None, "only carriers are called"
        copy_to_all(self._lane, 0, tensors)

    def hand_on(self, tensors: Iterable[Tensor], round_index: int, giver: int) -> None:
        raise RuntimeError("nobody joins an MPI world that is under way; please report this")

    def _lane_of(self, present: tuple[int, ...]) -> MPI.Intracomm:
        """This lane's ranks of the data centers ``present``. Collective over them alone."""
        assert self._lane is not None, "only carriers are called"
        if len(present) == self._lane.Get_size():
            return self._lane
        if present not in self._groups:
            self._groups[present] = _group(self._lane, list(present))
        return self._groups[present]

    def _connect_devices(self, center: DataCenter, site: MpiSite) -> None:
        """Find out before training whether tensors get from device to device. Collective over the world."""
        said = ""
        try:
            if self._lane is not None:
                self._wire_of(self.roster)
        except RuntimeError as error:
            said = f"in {center.name}: {str(error).splitlines()[0]}"
        if texts := [text for of_center in _from_all(center, site, said) for text in of_center if text]:
            raise ConfigurationError(
                f"exchange: device=True: the leaders' devices cannot talk ({texts[0]}); NCCL_DEBUG=INFO says more. "
                "Leave device out, or mend that"
            ).on_all_ranks()

    def _wire_of(self, present: tuple[int, ...]) -> TensorWire:
        """What tensors go by between these ranks. Collective over them alone."""
        if present not in self._wires:
            self._wires[present] = wire_of(self._lane_of(present), self._device, self._way)
        return self._wires[present]

    def give_up(self, code: int) -> NoReturn:
        self._world.Abort(code)
        sys.exit(code)  # Abort does not return


def _agreed(
    center: DataCenter, site: MpiSite, lanes: int | None, sharded: bool, failed: str, device: torch.device | None
) -> tuple[list[list[int]], list[DeviceWay]]:
    """World ranks of each lane, and how its models travel where they do so from devices. Collective over the world."""
    by_center = _from_all(center, site, ["a model in shards" if sharded else lanes, failed, device_facts(device)])
    brought = [one for of_center in by_center for one in of_center]
    if failures := [text for _, text, _ in brought if text]:
        raise PeerError(failures[0])
    try:
        _check_alike("numbers of lanes", [said for said, _, _ in brought])
        _check_alike("settings of exchange: device", [facts is not None for _, _, facts in brought])
        dealt = deal_shards(center.topology) if sharded else deal(places_of(center.topology), lanes)
        if device is None:
            return dealt, ["mpi" for _ in dealt]
        facts = {
            world_rank: (one.name, of_rank[2])
            for one, of_center in zip(center.topology.centers, by_center, strict=True)
            for world_rank, of_rank in zip(one.world_ranks, of_center, strict=True)
        }
        return dealt, [choose_way([facts[rank] for rank in lane]) for lane in dealt]
    except ConfigurationError as error:
        raise error.on_all_ranks() from None


def _from_all(center: DataCenter, site: MpiSite, content: Any) -> list[list[Any]]:
    """What each rank brings, plain data, by data center and place in it. Collective over the world; waits politely
    inside a data center."""
    found = site.gather(content)
    everyone = None if center.leaders is None or found is None else allgather_plain(center.leaders, found)
    return site.bcast(everyone) or []


def _check_alike(what: str, said: Sequence[object]) -> None:
    if len(set(said)) > 1:
        found = ", ".join(sorted({str(one) for one in said}))
        raise TopologyError(f"the ranks were given different {what}: {found}; use one configuration")


def _group(comm: MPI.Intracomm, ranks: list[int]) -> MPI.Intracomm:
    """A communicator of some ranks. Collective over them alone."""
    return comm.Create_group(comm.Get_group().Incl(ranks))
