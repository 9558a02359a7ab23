"""The coordinator's two methods, over gRPC: ``Meet`` (one question, one answer) and ``Mean`` (a stream each way).

Who calls is known by the fingerprint of its certificate, looked up in the roster at every call: a site that has left
is refused from then on, whatever its certificate says. What a site sends is parsed within limits.

Where ``federation.yaml`` is replaced by another, the coordinator begins anew with it, as if it had been killed and
started again; sites' processes with the old one are asked to stop, and may only say that they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import grpc

from colearn_hpc.errors import ConfigurationError, FederationError
from colearn_hpc.federation import transport, wire
from colearn_hpc.federation.agreement import Federation
from colearn_hpc.federation.checks import has_left
from colearn_hpc.federation.coordinator.means import MeanLostError, Means, SiteLeftError
from colearn_hpc.federation.coordinator.meetings import Answer, BeginAgain, Meetings, Refused
from colearn_hpc.federation.coordinator.roster import Roster
from colearn_hpc.federation.coordinator.store import Store
from colearn_hpc.federation.identity import Identity
from colearn_hpc.federation.wire import Hello, Request, WireError, texts
from colearn_hpc.protocol.messages import Arrival, Outcome, Topic, from_plain, to_plain
from colearn_hpc.protocol.plain import PlainError

_LOOK = 0.25  # s between two looks at whether a meeting's patience is over
_HELLO_PATIENCE = 30.0  # s for the first frame of a stream
_TELL = 2.0  # s between two writings of STATE/status.json
_SCRAPE = 10.0  # s for which Prometheus waits for its figures
_GRACE = 1.0  # s for calls under way, when the coordinator is asked to end
_OLD_PAUSE = 1.0  # s before a process with an old federation.yaml is told to wait on: it is to stop
_CHANGED = "the roster has changed: put the newest federation.yaml in the place of this site's, and start it again"
_STATUS = grpc.StatusCode


class Coordinator:
    """One run's coordinator. To be made inside a running event loop.

    Args:
        federation: what was agreed on.
        path: of ``federation.yaml``: who is taken off it there is refused from the next call on.
        store: what survives.
        say: told what happens: an event's kind, a text for people, facts for programs.

    Attributes:
        over: every site has finished.
        changed, following: there is another ``federation.yaml``, to begin anew with.
    """

    def __init__(self, federation: Federation, path: Path, store: Store, say: Any) -> None:
        self._federation, self._store, self._say = federation, store, say
        self._path = path
        self._written: tuple[int, int] | None = None  # it is read at the first look: it may have changed meanwhile
        self._removed: frozenset[str] = frozenset()  # fingerprints
        self._left = frozenset(site.fingerprint for site in federation.sites if site.left)
        self._names, self._digest = federation.names, federation.digest()
        self._before = frozenset(store.fact("digests", ()))  # of every federation.yaml that the run had before
        self._standing = store.standing
        may_miss = federation.on_failure == "continue_without"
        self._meetings = Meetings(self._names, store, federation.round_timeout, may_miss)
        leave_out = self._leave_out if may_miss else None
        self.means = Means(self._names, store, federation.round_timeout, leave_out, say)
        self.roster = Roster(self._names, store)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._disk_ok = True
        self.over, self.changed = asyncio.Event(), asyncio.Event()
        self.following: Federation | None = None
        if self.roster.all_finished:
            self.over.set()

    # --- Meet -------------------------------------------------------------------------------------------

    async def meet(self, message: bytes, context: Any) -> bytes:
        """One question of a site."""
        site = await self._admit(context)
        try:
            request = Request.from_bytes(message)
        except WireError as error:
            await self._refuse(context, _STATUS.INVALID_ARGUMENT, site, str(error))
        old = await self._check_run(site, request.run, request.digest, request.session, context)
        if old and request.say[0] not in ("away", "finished"):
            await asyncio.sleep(_OLD_PAUSE)
            return wire.pack({"wait": True, "left_out": False, "stop": _CHANGED, "awaited": {}})
        try:
            answer = await self._answer(site, request)
        except (WireError, PlainError) as error:
            await self._refuse(context, _STATUS.INVALID_ARGUMENT, site, str(error))
        except FederationError as error:
            await self._refuse(context, _STATUS.PERMISSION_DENIED, site, str(error))
        except (sqlite3.Error, OSError) as error:
            await self._disk_refuses(context, error)
        answer["stop"] = self.roster.stop_for(site, request.session)
        if (now := self._standing) is not None:
            joins = any(first == now.from_round for k, first in now.joined.items() if k in now.active)
            answer["from_round"], answer["joins"], answer["joined"] = now.from_round, joins, now.joined.get(site, -1)
        awaited = self._meetings.awaited | self.means.awaited()
        answer["awaited"] = {self._names[k]: self.roster.text(k, time.time()) for k in sorted(awaited - {site})}
        return wire.pack(answer)

    async def _answer(self, site: int, request: Request) -> dict[str, Any]:
        if not request.session and request.say[0] not in ("stop", "status"):
            raise WireError("a process of a run says which it is")
        match request.say:
            case ["arrival", *_]:
                arrival = from_plain(request.say)
                assert isinstance(arrival, Arrival), "that is an arrival's name"
                return await self._arrive(site, arrival, request.session)
            case ["news", str(news), *_]:
                self.roster.heard(site, texts(news))
                return {}
            case ["away", str(reason), str(text)]:
                self._meetings.withdraw(site, request.session)
                self._tell_waiting()
                self._note_away(site, texts(reason, 20), texts(text))
                return {}
            case ["finished"]:
                self._finish(site)
                return {}
            case ["stop", str(reason)]:
                if "stop_all" not in self._federation.sites[site].may:
                    raise FederationError(
                        f"{self._names[site]} may not stop all sites; its roster entry lacks stop_all"
                    )
                self.roster.stop_all(f"{texts(reason)} (asked by {self._names[site]})")
                self._say("stop", f"{self._names[site]} asks all sites to stop: {texts(reason)}")
                return {}
            case ["status"]:
                return {"status": self.status()}
        raise WireError(f"nothing that a site may say: {texts(request.say[0], 40)}")

    async def _arrive(self, site: int, arrival: Arrival, session: str) -> dict[str, Any]:
        now = time.monotonic()
        if self.roster.arrives(site, str(arrival.topic)):
            self._say("arrived", f"{self._names[site]} at {arrival.topic}", site=self._names[site])
        answer = self._meetings.ask(site, arrival, session, now)
        if answer is None:
            answer = await self._wait(site, arrival.topic, session)
        match answer:
            case None:
                return {"wait": True, "left_out": self._meetings.is_left_out(site)}
            case Outcome():
                return {"outcome": to_plain(answer)}
            case BeginAgain(why):
                return {"begin_again": why}
            case Refused(why):
                return {"refused": why}

    async def _wait(self, site: int, topic: Topic, session: str) -> Answer | None:
        """What a site is told that has come to ``topic``; None: it is to ask again."""
        if (old := self._waiting.get(site)) is not None:
            old.cancel()  # its question came again; the first one has nobody who listens
        mine = self._waiting[site] = asyncio.get_running_loop().create_future()
        try:
            self._look()  # it may have been the last one
            return await asyncio.wait_for(mine, transport.POLL)
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if self._waiting.get(site) is mine:  # its link is cut: the others must not count on it
                self._meetings.withdraw(site, session)
            raise
        finally:
            if self._waiting.get(site) is mine:
                del self._waiting[site]

    def _look(self) -> None:
        """Tell those who wait what there is to be told."""
        for site, (topic, answer) in self._meetings.due(time.monotonic()).items():
            future = self._waiting.get(site)
            if future is None or future.done():
                self._meetings.hold(site, topic, answer)
            else:
                future.set_result(answer)
        for outcome in self._meetings.concluded:
            here = wire.indices(self._names, outcome.present)
            self._say("meeting", f"{outcome.topic}: {here}", topic=str(outcome.topic), present=list(outcome.present))
        self._meetings.concluded.clear()
        for text in self._meetings.messages:
            self._say("note", text)
        self._meetings.messages.clear()
        if not self._disk_ok:
            self._disk_ok = True
            self._say("disk", "the disk takes again what is written")

    def _tell_waiting(self) -> None:
        with contextlib.suppress(sqlite3.Error, OSError):
            self._look()

    async def watch(self) -> None:
        """Look at the clock: somebody's patience may be over. And let people on this machine see how the run stands."""
        told = -_TELL
        while True:
            await asyncio.sleep(_LOOK)
            self._read_roster()
            try:
                self._look()
            except (sqlite3.Error, OSError) as error:
                self._note_disk(error)
            if (now := time.monotonic()) - told >= _TELL:
                told = now
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._store.write_status(self.status())

    def _leave_out(self, site: int, topic: Topic) -> None:
        self._meetings.leave_out(site, topic)
        self._look()

    def _note_away(self, site: int, reason: str, text: str) -> None:
        self.roster.away(site, reason)
        self._say("away", f"{self._names[site]}: {reason}{f' ({text})' if text else ''}", site=self._names[site])

    def _finish(self, site: int) -> None:
        self.roster.finished(site)
        self._meetings.finish()
        self._tell_waiting()
        self._say("finished", self._names[site], site=self._names[site])
        if self.roster.all_finished:
            self.over.set()

    # --- Mean -------------------------------------------------------------------------------------------

    async def mean(self, frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One site's stream of one mean."""
        site = await self._admit(context)
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        run, digest, session = (metadata.get(key, "") for key in ("run", "digest", "session"))
        if await self._check_run(site, run, digest, session, context):
            await context.abort(_STATUS.FAILED_PRECONDITION, _CHANGED)
        try:
            first = await asyncio.wait_for(anext(frames), _HELLO_PATIENCE)
            found, content = wire.parse_frame(first)
            if found.kind != wire.HELLO:
                raise WireError("a stream begins with HELLO")
            hello = Hello.from_plain(wire.unpack(content), len(self._names))
            may = self._federation.sites[site].may
            if "see_mean" not in may or (hello.weights[site] and "give" not in may):
                raise WireError("its roster entry lacks give or see_mean")
            async with contextlib.aclosing(self.means.serve(site, hello, frames)) as mean:
                async for chunk in mean:
                    yield chunk
        except (TimeoutError, StopAsyncIteration):
            await self._refuse(context, _STATUS.INVALID_ARGUMENT, site, "a stream without a first frame")
        except WireError as error:
            await self._refuse(context, _STATUS.INVALID_ARGUMENT, site, str(error))
        except MeanLostError as error:
            await context.abort(_STATUS.ABORTED, str(error))
        except SiteLeftError as error:
            await context.abort(_STATUS.FAILED_PRECONDITION, str(error))
        except (sqlite3.Error, OSError) as error:
            await self._disk_refuses(context, error)

    # --- who calls --------------------------------------------------------------------------------------

    async def _admit(self, context: Any) -> int:
        """The index of the site whose certificate this is."""
        pem = (context.auth_context() or {}).get("x509_pem_cert", [b""])[0]
        try:
            der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
        except ValueError:
            await context.abort(_STATUS.UNAUTHENTICATED, "no certificate that can be read")
        fingerprint = "sha256:" + hashlib.sha256(der).hexdigest()
        self._read_roster()
        for index, member in enumerate(self._federation.sites):
            if member.fingerprint == fingerprint and fingerprint in self._left:
                await self._refuse(
                    context, _STATUS.PERMISSION_DENIED, index, has_left(member.name, self._federation.run)
                )
            if member.fingerprint == fingerprint and "join" in member.may and fingerprint not in self._removed:
                return index
        self._say("refused", f"{texts(context.peer(), 60)}: certificate {fingerprint[:23]}… is not on the roster")
        await context.abort(
            _STATUS.PERMISSION_DENIED,
            f"certificate {fingerprint} is not on the roster of run {self._federation.run}, or may not join",
        )
        raise AssertionError("abort raises")

    def _read_roster(self) -> None:
        """Look whether there is another one. Who is not in it is refused at once, also where it cannot be adopted."""
        if (written := _written(self._path)) == self._written:
            return
        self._written = written
        try:
            now = Federation.read(self._path)
        except ConfigurationError as error:
            self._say("note", f"{error}; the roster stays as it was")
            return
        kept = {site.fingerprint for site in now.sites if "join" in site.may}
        self._removed = frozenset(site.fingerprint for site in self._federation.sites) - kept
        self._left |= {site.fingerprint for site in now.sites if site.left}
        gone = [site.name for site in self._federation.sites if site.fingerprint in self._removed]
        if gone:
            self._say("note", f"the roster was read again; taken off: {', '.join(gone)}")
        if now.digest() == self._digest:
            return
        mine = ("run", "ca", "coordinator_fingerprint")
        if any(getattr(now, key) != getattr(self._federation, key) for key in mine):
            self._say("note", "the coordinator's own identity is another one in it; start the coordinator again")
            return
        try:
            self._store.after(now)
        except FederationError as error:
            self._say("note", f"{error}; the roster stays as it was")
            return
        self.following = now
        self.changed.set()

    async def _check_run(self, site: int, run: str, digest: str, session: str, context: Any) -> bool:
        """Whether this process began with a federation.yaml that the run has no more; it is to stop."""
        if run != self._federation.run:
            text = f"this is the coordinator of run {self._federation.run}, not of {texts(run, 64)}"
            await self._refuse(context, _STATUS.PERMISSION_DENIED, site, text)
        if digest in self._before:
            if session and self.roster.has_spoken(site, session):
                return True
            await self._refuse(context, _STATUS.PERMISSION_DENIED, site, _CHANGED)
        if digest != self._digest:
            text = (
                f"this site's federation.yaml says other things than the coordinator's ({texts(digest, 19)}…, here "
                f"{self._digest[:19]}…); give all the same file"
            )
            await self._refuse(context, _STATUS.PERMISSION_DENIED, site, text)
        if not session:  # a person at the site asks; no part in the run
            return False
        try:
            welcome = self.roster.begins(site, session)
        except (sqlite3.Error, OSError) as error:
            await self._disk_refuses(context, error)
        if welcome is None:
            text = f"another process of {self._names[site]} has taken its place since; this one is to end"
            await self._refuse(context, _STATUS.PERMISSION_DENIED, site, text)
        if welcome:
            self._say("here", self._names[site], site=self._names[site])
        return False

    async def _refuse(self, context: Any, status: Any, site: int, text: str) -> NoReturn:
        self._say("refused", f"{self._names[site]}: {text}", site=self._names[site])
        await context.abort(status, texts(text, 1000))
        raise AssertionError("abort raises")

    async def _disk_refuses(self, context: Any, error: Exception) -> NoReturn:
        self._note_disk(error)
        await context.abort(_STATUS.RESOURCE_EXHAUSTED, "the coordinator's disk refuses to be written to")
        raise AssertionError("abort raises")

    def _note_disk(self, error: Exception) -> None:
        if self._disk_ok:
            self._disk_ok = False
            self._say("disk", f"{self._store.folder} cannot be written to ({error}); sites wait until it can")

    # --- for people -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """How the run stands: plain data."""
        topic, now = self._meetings.open_topic, time.time()
        sites = []
        for k, name in enumerate(self._names):
            waits = self._meetings.waits(k)
            left_out = self._meetings.is_left_out(k) and not self._federation.sites[k].left
            sites.append({"name": name, "left_out": left_out, **self.roster.status(k, waits, now)})
        return {
            "run": self._federation.run,
            "run_id": self._meetings.run_id,
            "meeting": "" if topic is None else str(topic),
            "sites": sites,
            "means_kept": self._store.means(),
            "bytes_in": self.means.bytes_in,
            "bytes_out": self.means.bytes_out,
        }


def _written(path: Path) -> tuple[int, int] | None:
    """When a file was written, and which it is; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


class _Handler(grpc.GenericRpcHandler):
    """Raw bytes in, raw bytes out: the messages are ours."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._methods = {
            transport.MEET: grpc.unary_unary_rpc_method_handler(coordinator.meet),
            transport.MEAN: grpc.stream_stream_rpc_method_handler(coordinator.mean),
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


async def serve(
    federation: Federation,
    path: Path,
    identity: Identity,
    state: Path,
    listen: str,
    say: Any,
    metrics_port: int | None = None,
) -> None:
    """Serve one run until all its sites have finished, or SIGTERM or SIGINT comes.

    Args:
        federation: what was agreed on.
        path: of its file.
        identity: the coordinator's.
        state: folder of what survives.
        listen: address and port.
        say: see :class:`Coordinator`.
        metrics_port: of a Prometheus endpoint; None: there is none.

    Raises:
        FederationError: the port or the state folder cannot be used.
    """
    ending, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    serving: list[Coordinator] = []
    if metrics_port is not None:
        from colearn_hpc.federation.coordinator.metrics import serve_metrics

        async def status() -> dict[str, Any]:
            return serving[-1].status()

        # Here and not in the endpoint's thread: the store belongs to this one.
        serve_metrics(lambda: asyncio.run_coroutine_threadsafe(status(), loop).result(_SCRAPE), metrics_port)
    following: Federation | None = federation
    while following is not None:
        following = await _serve_one(following, path, identity, state, listen, say, ending, serving)


async def _serve_one(
    federation: Federation,
    path: Path,
    identity: Identity,
    state: Path,
    listen: str,
    say: Any,
    ending: asyncio.Event,
    serving: list[Coordinator],
) -> Federation | None:
    """Serve with one ``federation.yaml``; returns the one that is to follow, if there is one."""
    store = Store(state, federation.run, federation.digest())
    try:
        changed = store.adopt(federation)
    except FederationError:
        store.close()
        raise
    coordinator = Coordinator(federation, path, store, say)
    serving[:] = [coordinator]
    server = grpc.aio.server(options=transport.SERVER_OPTIONS, maximum_concurrent_rpcs=32 * len(federation.sites) + 64)
    server.add_generic_rpc_handlers((_Handler(coordinator),))
    try:
        port = server.add_secure_port(listen, transport.server_credentials(identity))
    except RuntimeError:
        port = 0
    if not port:
        store.close()
        raise FederationError(f"{listen} cannot be listened on; is another program there? Choose another --listen")
    await server.start()
    if changed:
        say("roster", changed)
    names = ", ".join(federation.names[k] for k in federation.active)
    say("serving", f"run {federation.run} on {listen}, for {names}; state in {state}", port=port)
    watching = asyncio.create_task(coordinator.watch())
    waits = [asyncio.create_task(event.wait()) for event in (ending, coordinator.over, coordinator.changed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    following = None if ending.is_set() or coordinator.over.is_set() else coordinator.following
    if following is None:
        say("ending", "every site has finished" if coordinator.over.is_set() else "asked to; start it again to go on")
    for task in (*waits, watching):
        task.cancel()
    await server.stop(_GRACE if following is None else 0)
    store.close()
    return following
