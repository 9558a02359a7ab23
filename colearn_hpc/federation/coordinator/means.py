"""A mean under way, and means that are kept.

Every site that gives has one stream each way. A chunk is summed when its last row has come, in the order of the sites,
written to the disk, and sent back. A site is at most WINDOW chunks ahead of the mean it was given, so the coordinator
holds at most WINDOW rows a site and WINDOW means, however slowly anyone reads and however large the model is.

A mean whose givers are not all there to its end comes to nothing: nobody has its last chunk, which goes out only when
the mean is whole on the disk. All begin again from chunk 0, with the same rows, so with the same bits. Whoever comes
later is given what was kept.

Where a giver stays away, a mean of weights is taken without it. A sum of whole numbers is not: under masks the
difference of two sums over two rosters is the lost site's vector, so there is never a second roster. The round is void
for all who take part in it, with masks or without: both have the same bits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import numpy as np

from colearn_hpc.federation import wire
from colearn_hpc.federation.codecs import CODECS
from colearn_hpc.federation.coordinator.spool import KEPT, Spool
from colearn_hpc.federation.coordinator.store import Store
from colearn_hpc.federation.coordinator.sums import ChunkSums, Row, total
from colearn_hpc.federation.wire import JOINED, LAST_MODEL, MEAN, ROW, WELCOME, WINDOW, Hello, WireError
from colearn_hpc.protocol.messages import Topic, TopicKind

_SYNC_EVERY = 64  # chunks, after which the disk is told to begin
_LOOK = 0.5  # s between two looks at whether a mean stands still


class MeanLostError(Exception):
    """The mean that was under way came to nothing; the site is to bring its rows again."""


class SiteLeftError(Exception):
    """This site's process cannot have the mean; a new one can go on from another round."""


class Means:
    """The means of one run.

    Args:
        names: of the sites, in order.
        store: where means are kept.
        patience: seconds for which a mean may stand still; None: for ever.
        leave_out: told which site the others go on without, and the round's topic; None: they do not go on, and all
            processes end.
        say: told what is of interest to people: an event's kind, a text, facts.
    """

    def __init__(
        self,
        names: Sequence[str],
        store: Store,
        patience: float | None,
        leave_out: Callable[[int, Topic], None] | None,
        say: Callable[..., None],
    ) -> None:
        self._names, self._store, self._patience = list(names), store, patience
        standing = store.standing
        self._left = set() if standing is None else set(range(len(names))) - standing.active  # for good
        self._leave_out, self._say = leave_out, say
        self._under_way: dict[tuple[int, int], _Taking] = {}  # by number and part
        self._kept = asyncio.Condition()
        self._sums = ChunkSums()
        self.bytes_in = self.bytes_out = 0

    def awaited(self) -> set[int]:
        """Whose rows are missing in means that are under way."""
        return {k for taking in self._under_way.values() for k in taking.awaited()}

    async def serve(self, site: int, hello: Hello, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """One site's stream: takes its rows, and gives the mean's chunks.

        Raises:
            MeanLostError: somebody left.
            SiteLeftError: this site was left out of this mean, or it is not kept any more.
            WireError: what came is not what was to come, or the site offers another mean than the others.
            OSError: the disk refuses.
        """
        if hello.part == JOINED and hello.weights[site] and self._was_handed_on(hello):
            yield _welcome(hello, rows=False, void="it was handed on before")
            return
        self._check(site, hello)
        kept = self._store.read_mean(hello)
        if kept is None:
            self._lose_who_left(hello)
        if kept is None and site in self._givers(hello) and not self._void(hello):
            async for content in self._take(site, hello, frames):
                yield content
            return
        while kept is None and not self._void(hello):
            async with self._kept:
                if (kept := self._store.read_mean(hello)) is None and not self._void(hello):
                    await self._kept.wait()
        if kept is None:
            yield _welcome(hello, rows=False, void=self._void(hello))
            return
        with contextlib.closing(kept):
            yield _welcome(hello, rows=False)
            for chunk in range(hello.chunks):
                yield self._sent(wire.frame(MEAN, hello.number, chunk, kept.chunk(chunk)))

    async def _take(self, site: int, hello: Hello, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        taking = self._join(site, hello)
        receiving: asyncio.Task[None] | None = None
        try:
            await taking.all_here()
            yield _welcome(hello, rows=True)
            receiving = asyncio.create_task(self._receive(site, taking, frames))
            for chunk in range(hello.chunks):
                content = await taking.mean(chunk, receiving)
                taking.took(site, chunk)  # before the yield, in which others run
                yield self._sent(content)
            await receiving
        finally:
            if receiving is not None:
                receiving.cancel()
            if taking.leave(site) and self._under_way.get(hello.key) is taking:
                del self._under_way[hello.key]

    async def _receive(self, site: int, taking: _Taking, frames: AsyncIterator[bytes]) -> None:
        hello = taking.hello
        for chunk in range(hello.chunks):
            message = await anext(frames, None)
            if message is None:
                raise MeanLostError(f"{self._names[site]} left in chunk {chunk} of {hello.chunks}")
            content = wire.expect(message, ROW, hello.number, chunk, hello.length(chunk))
            self.bytes_in += len(content)
            taking.receive(site, chunk, np.frombuffer(content, "|u1" if hello.is_coded(chunk) else hello.dtype))
            while (rows := taking.next_rows()) is not None:
                await self._sum(taking, rows)

    async def _sum(self, taking: _Taking, rows: Sequence[Row]) -> None:
        hello, chunk = taking.hello, taking.summed
        taking.summed += 1  # here, as others run while the disk is waited for
        content = self._combined(taking, chunk, rows)
        last = chunk == hello.chunks - 1
        try:
            taking.spool.write(content)
            if last or chunk % _SYNC_EVERY == _SYNC_EVERY - 1:
                async with taking.disk:
                    await asyncio.to_thread(taking.spool.keep if last else taking.spool.sync)
        except OSError:
            taking.check()  # whether its file is gone because somebody left
            raise
        if last:
            taking.kept = True
            seconds = time.monotonic() - taking.since
            what = f"what round {hello.number} begins with" if hello.part == JOINED else f"mean {hello.number}"
            text = f"{what}, of {hello.nbytes} bytes, from {wire.indices(self._names, taking.givers)}"
            self._say("mean", f"{text} in {seconds:.1f} s", number=hello.number, bytes=hello.nbytes, seconds=seconds)
            async with self._kept:
                self._kept.notify_all()
        taking.publish(chunk, wire.frame(MEAN, hello.number, chunk, content))

    def _combined(self, taking: _Taking, chunk: int, rows: Sequence[Row]) -> bytes | memoryview:
        hello = taking.hello
        if hello.is_coded(chunk):
            return self._coded(taking, chunk, rows)
        if hello.whole_numbers:
            row = total(rows)
        else:
            row = rows[0] if hello.dtype == "|u1" else self._sums.mean(rows, taking.weights)
        return np.ascontiguousarray(row).data.cast("B")

    def _coded(self, taking: _Taking, chunk: int, rows: Sequence[Row]) -> bytes:
        """The mean step of what the rows say, and what the mean before it lacked; coded again."""
        codec, (start, stop) = CODECS[taking.hello.codec], taking.hello.place(chunk)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite comes out so, and sites refuse it
            steps = [codec.decode(row.data, stop - start) for row in rows]
            mean = self._sums.mean(steps, taking.weights)
            if not codec.feedback:
                return codec.encode(mean)
            mean += taking.spool.lacked(stop - start)
            message = codec.encode(mean)
            taking.spool.lacks(mean - codec.decode(message, stop - start))
            return message

    # --- who takes part ---------------------------------------------------------------------------------

    def _check(self, site: int, hello: Hello) -> None:
        if site not in hello.present:
            raise WireError("a mean in which it does not take part")
        if hello.weights[site] and site in self._without(hello.number):
            raise SiteLeftError(f"{self._names[site]} was left out of mean {hello.number} while it did not come")
        newest = max(self._store.means(), default=-1)
        if hello.number < newest and hello.number not in self._store.means():
            raise SiteLeftError(
                f"mean {hello.number} is not kept any more (the last {KEPT} are, up to {newest}); bring back a later "
                "resume point"
            )
        if hello.part == JOINED or not hello.number:
            return
        present = self._store.round_present(site, hello.number - 1)
        if present != hello.present:
            raise WireError(f"a mean among {list(hello.present)}, where the round's end had {present}")

    def _givers(self, hello: Hello) -> tuple[int, ...]:
        without = self._without(hello.number)
        return tuple(k for k in hello.givers if k not in without)

    def _without(self, number: int) -> list[int]:
        return list(self._store.fact(f"without {number}", []))

    def _void(self, hello: Hello) -> str:
        """Why nobody has the mean, nor will have it; empty where that is not so."""
        return str(self._store.fact(f"void {hello.number}", ""))

    def _join(self, site: int, hello: Hello) -> _Taking:
        taking = self._under_way.get(hello.key)
        if taking is not None and site in taking.here:  # its old stream is dead, and we do not know it yet
            taking.lose(f"{self._names[site]} came again")
        if taking is None or taking.lost:
            taking = self._under_way[hello.key] = _Taking(hello, self._givers(hello), self._store.spool(hello))
            if self._patience is not None and hello.part != JOINED:
                taking.watch = asyncio.create_task(self._watch(taking, self._patience))
        elif taking.hello != hello:
            raise WireError(f"{hello.to_plain()}, where the others offer {taking.hello.to_plain()}")
        taking.join(site)
        return taking

    async def _watch(self, taking: _Taking, patience: float) -> None:
        """Give a mean up that stands still."""
        while not (taking.kept or taking.lost):
            await asyncio.sleep(min(_LOOK, patience / 4))
            awaited = taking.awaited()
            if not awaited or time.monotonic() - taking.moved < patience:
                continue
            hello, number = taking.hello, taking.hello.number
            others = hello.present if hello.part == LAST_MODEL else taking.givers
            missing = wire.indices(self._names, sorted(awaited))
            why = f"mean {number}: {missing} gave nothing for {patience:g} s"
            if self._leave_out is not None and number and awaited < set(others):
                self._note_without(hello, awaited)
                for k in sorted(awaited):
                    self._leave_out(k, Topic(TopicKind.ROUND, number - 1))
                taking.lose(why)
                async with self._kept:
                    self._kept.notify_all()
            else:
                taking.lose(f"{why} (round_timeout)", SiteLeftError)

    def _was_handed_on(self, hello: Hello) -> bool:
        """Whether those who join have what they need, or are not waited for any more."""
        return self._store.mean_path(*hello.key).exists() or hello.number < max(self._store.means(), default=-1)

    def _lose_who_left(self, hello: Hello) -> None:
        """Who has left the run for good while this mean was to be taken does not come to it any more."""
        if gone := (set(hello.givers) & self._left) - set(self._without(hello.number)):
            if gone == set(hello.givers):
                raise WireError(f"mean {hello.number}, to which only sites give that have left the run")
            self._note_without(hello, gone)

    def _note_without(self, hello: Hello, gone: set[int]) -> None:
        number, names = hello.number, wire.indices(self._names, sorted(gone))
        without = {f"without {number}": sorted({*self._without(number), *gone})}
        if hello.all_or_nothing:  # in one transaction, before anybody hears it: there is no second roster
            self._store.note(**without, **{f"void {number}": f"{names} left while its sum was taken"})
            self._say("void", f"round {number - 1}: {names} left while its sum was taken", number=number)
        else:
            self._store.note(**without)

    def _sent(self, content: bytes) -> bytes:
        self.bytes_out += len(content)
        return content


class _Taking:
    """A mean under way; comes to nothing as soon as one of its givers leaves.

    Args:
        hello: what all have said.
        givers: whose rows are summed, in order.
        spool: where the mean is written.
    """

    def __init__(self, hello: Hello, givers: tuple[int, ...], spool: Spool) -> None:
        self.hello, self.givers, self.spool = hello, givers, spool
        self.weights = [hello.weights[k] for k in givers]
        self.here: set[int] = set()
        self.summed = 0  # chunks
        self.kept = False
        self.since = self.moved = time.monotonic()
        self.watch: asyncio.Task[None] | None = None
        self.disk = asyncio.Lock()
        self._rows: dict[int, list[Row]] = {k: [] for k in givers}  # from chunk ``summed`` on
        self._taken = dict.fromkeys(givers, 0)  # chunks of the mean, by site
        self._means: dict[int, bytes] = {}
        self._lost: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether it came to nothing."""
        return self._lost is not None

    def awaited(self) -> set[int]:
        """Who is not here; if all are, whose row of the next chunk is missing."""
        if self.kept or self.lost or self.summed == self.hello.chunks:
            return set()
        # Rows are asked for when all are here: until then nobody who is here is late.
        return set(self.givers) - self.here or {k for k in self.givers if not self._rows[k]}

    def join(self, site: int) -> None:
        """A giver is here."""
        self.here.add(site)
        self.moved = time.monotonic()
        if len(self.here) == len(self.givers):
            self.since = self.moved
        self._notify()

    def leave(self, site: int) -> bool:
        """Its stream has ended; whether it was the last one's."""
        self.here.discard(site)
        self._taken.pop(site, None)
        self._drop_taken()
        if not self.kept:
            self.lose("a site's stream has ended")
        if self.here:
            return False
        if self.watch is not None:
            self.watch.cancel()
        return True

    def lose(self, why: str, kind: type[Exception] = MeanLostError) -> None:
        """It comes to nothing."""
        if not (self.kept or self.lost):
            self._lost = kind(why)
            self.spool.drop()
            self._means.clear()
            self._notify()

    async def all_here(self) -> None:
        """Wait for all givers."""
        while len(self.here) < len(self.givers):
            await self._change()
        self.check()

    def receive(self, site: int, chunk: int, row: Row) -> None:
        """A giver's row of ``chunk``."""
        self.check()
        if chunk >= self._taken[site] + WINDOW:
            raise WireError(f"chunk {chunk} before chunk {self._taken[site]} of the mean was taken")
        self._rows[site].append(row)

    def next_rows(self) -> list[Row] | None:
        """All rows of the next chunk, taken out; None: one is missing."""
        self.check()
        if self.summed == self.hello.chunks or not all(self._rows[k] for k in self.givers):
            return None
        self.moved = time.monotonic()
        return [self._rows[k].pop(0) for k in self.givers]

    def publish(self, chunk: int, content: bytes) -> None:
        """A chunk of the mean may go out."""
        if not self.lost:
            self._means[chunk] = content
            self._notify()

    async def mean(self, chunk: int, receiving: asyncio.Task[None]) -> bytes:
        """A chunk of the mean, as soon as it is there."""
        while chunk not in self._means:
            self.check()
            if receiving.done() and receiving.exception() is not None:
                receiving.result()
            # This event and not a later one: others may publish before the task that waits for it first runs.
            changed = asyncio.create_task(self._changed.wait())
            try:
                waits = {changed} if receiving.done() else {changed, receiving}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
        return self._means[chunk]

    def took(self, site: int, chunk: int) -> None:
        """A giver has been given this chunk of the mean."""
        self._taken[site] = chunk + 1
        self._drop_taken()

    def _drop_taken(self) -> None:
        least = min(self._taken.values(), default=self.hello.chunks)
        for chunk in [c for c in self._means if c < least]:
            del self._means[chunk]

    def check(self) -> None:
        """Raise what it came to nothing by."""
        if self._lost is not None:
            raise type(self._lost)(*self._lost.args)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        self.check()
        await self._changed.wait()
        self.check()


def _welcome(hello: Hello, rows: bool, void: str = "") -> bytes:
    return wire.frame(WELCOME, hello.number, 0, wire.pack({"rows": rows, "void": void}))
