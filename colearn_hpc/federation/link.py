"""A site's leader and its coordinator: questions that are asked again until they are answered.

The coordinator may be away for hours, and the link with it: that never ends a run. What it refuses does.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from colearn_hpc.errors import ConfigurationError, FederationError, LeftBehindError
from colearn_hpc.federation import transport, wire
from colearn_hpc.federation.agreement import Federation
from colearn_hpc.federation.checks import RefusedError, has_left
from colearn_hpc.federation.identity import Identity
from colearn_hpc.federation.reach import UnreachableError, coordinator_certificate
from colearn_hpc.federation.wire import Request, WireError, texts

log = logging.getLogger("colearn_hpc")

_STATUS = grpc.StatusCode
_REFUSALS = (
    _STATUS.PERMISSION_DENIED,
    _STATUS.UNAUTHENTICATED,
    _STATUS.INVALID_ARGUMENT,
    _STATUS.UNIMPLEMENTED,
    _STATUS.OUT_OF_RANGE,
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # s between two tries
_SAY_AWAY = 10.0  # s after which it is said that the coordinator does not answer


@dataclass(frozen=True)
class Membership:
    """That this process belongs to a site of a federation.

    Attributes:
        federation: what was agreed on.
        identity: the site's certificate and key.
        name: of the site.
    """

    federation: Federation
    identity: Identity
    name: str

    @classmethod
    def read(cls, federation: Path | str, site: str | None = None, identity: Path | str | None = None) -> Membership:
        """Read ``federation.yaml`` and the site's identity.

        Args:
            federation: the file.
            site: name of the site; None: as its certificate says.
            identity: folder of its certificate and key; None: a folder of the site's name beside the file.

        Raises:
            ConfigurationError: one of them cannot be read, or they do not belong together.
        """
        agreed = Federation.read(federation)
        if identity is None:
            if site is None:
                raise ConfigurationError("a federation needs the site's name (--site), or the folder of its identity")
            identity = Path(federation).parent / site
        mine = Identity.read(identity)
        name = site or mine.name
        member = agreed.site(name)
        if member.left:
            raise ConfigurationError(has_left(name, agreed.run))
        if mine.fingerprint != member.fingerprint:
            raise ConfigurationError(
                f"the certificate in {identity} is {mine.fingerprint[:23]}… of {mine.run}/{mine.name}, and "
                f"{federation} lists {member.fingerprint[:23]}… for {name}; use that site's own identity and the "
                "newest federation.yaml"
            )
        return cls(agreed, mine, name)

    @property
    def index(self) -> int:
        """The site's place in the order of the mean."""
        return self.federation.names.index(self.name)


def is_refusal(error: grpc.RpcError) -> bool:
    """Whether asking again would be refused again."""
    return error.code() in _REFUSALS


def refused(error: grpc.RpcError) -> Exception:
    """The error that a site ends with."""
    said = texts(error.details() or error.code().name, 1000)
    if error.code() is _STATUS.FAILED_PRECONDITION:
        return LeftBehindError(f"the coordinator says: {said}; start this site again, it goes on with the others")
    return FederationError(f"the coordinator refuses: {said}")


class Pause:
    """Longer and longer pauses between tries, and one line for people when it takes long.

    Args:
        who: that does not answer.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._length, self._since, self._said = _FIRST_PAUSE, 0.0, False

    def reset(self) -> None:
        """It has answered."""
        if self._said:
            log.warning("the coordinator %s answers again, after %.0f s", self._who, time.monotonic() - self._since)
        self._length, self._since, self._said = _FIRST_PAUSE, 0.0, False

    def next(self, why: str) -> float:
        """Seconds to wait before the next try."""
        now = time.monotonic()
        self._since = self._since or now
        if not self._said and now - self._since > _SAY_AWAY:
            self._said = True
            log.warning(
                "the coordinator %s does not answer since %.0f s (%s); this site tries on (if it stays so: "
                "`colearn-hpc doctor --federation`)",
                self._who,
                now - self._since,
                why,
            )
        length, self._length = self._length, min(2 * self._length, _LONGEST_PAUSE)
        return length * random.uniform(0.7, 1.3)


class Link:
    """The connection of one process.

    Args:
        membership: whose.
        session: of this process; empty: a person asks, who has no part in the run.

    Attributes:
        stop_asked: why this process is to stop.
        awaited: who is missing, and what was last heard of it.
        from_round: the first round that the roster holds for, as the coordinator says.
        somebody_joins: whether a site joins the run with that round.
        joined: the round with which this site joins, or has joined, a run that was under way; None: it began with it.
    """

    def __init__(self, membership: Membership, session: str | None = None) -> None:
        self.membership = membership
        federation = membership.federation
        self._run, self._digest = federation.run, federation.digest()
        self.session = uuid.uuid4().hex if session is None else session
        self.where = federation.coordinator
        self._lock = threading.Lock()
        self._open: grpc.Channel | None = None
        self.stop_asked = ""
        self.awaited: dict[str, str] = {}
        self.from_round, self.somebody_joins = 0, False
        self.joined: int | None = None

    def ask(self, say: list[Any]) -> Question:
        """Begin to ask; never blocks."""
        return Question(self, say)

    def ask_now(self, say: list[Any], patience: float) -> dict[str, Any] | None:
        """Ask, and wait for the answer; None where none came in time.

        Raises:
            FederationError: the coordinator refuses.
        """
        question, end = self.ask(say), time.monotonic() + patience
        while (answer := question.poll()) is None:
            if time.monotonic() > end:
                question.cancel()
                return None
            question.wait(0.05)
        return answer

    def call(self, say: list[Any], timeout: float) -> grpc.Future:
        """One try.

        Raises:
            UnreachableError: nobody answers.
            RefusedError: somebody else than the coordinator does.
        """
        request = Request(self._run, self._digest, self.session, say).to_bytes()
        return self._channel().unary_unary(transport.MEET).future(request, timeout=timeout)

    def mean(self, frames: Any) -> Any:
        """One try of a stream; ``frames`` is iterated in a thread of gRPC's."""
        metadata = (("run", self._run), ("digest", self._digest), ("session", self.session))
        return self._channel().stream_stream(transport.MEAN)(frames, metadata=metadata)

    def _channel(self) -> grpc.Channel:
        """The connection; before it is made, the coordinator's certificate is compared with its fingerprint."""
        with self._lock:
            if self._open is None:
                federation, identity = self.membership.federation, self.membership.identity
                trusted = coordinator_certificate(federation, identity)
                self._open = transport.channel_of(federation, identity, trusted)
            return self._open

    def heard(self, message: bytes) -> dict[str, Any]:
        """An answer of the coordinator, parsed; what it says besides is kept.

        Raises:
            FederationError: it is none.
        """
        try:
            answer = wire.unpack(message)
        except WireError as error:
            raise FederationError(f"the coordinator sent {error}") from None
        if not isinstance(answer, dict):
            raise FederationError("the coordinator sent what is no answer")
        if isinstance(stop := answer.get("stop"), str) and stop:
            self.stop_asked = self.stop_asked or texts(stop)
        if isinstance(awaited := answer.get("awaited"), dict):
            self.awaited = {texts(k, 64): texts(v) for k, v in awaited.items()}
        match answer:
            case {"from_round": int(first), "joins": bool(joins), "joined": int(joined)} if first >= 0:
                self.from_round, self.somebody_joins = first, joins
                self.joined = None if joined < 0 else joined
        return answer

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


class Question:
    """Something that is asked until it is answered; to be polled."""

    def __init__(self, link: Link, say: list[Any]) -> None:
        self._link, self._say = link, say
        self._pause = Pause(link.where)
        self._due: float | None = 0.0
        self._future: grpc.Future | None = None
        self._here = threading.Event()
        self.poll()

    def poll(self) -> dict[str, Any] | None:
        """The answer, if it has come; asks again where that is due. Never blocks.

        Raises:
            FederationError: the coordinator refuses.
            LeftBehindError: this process cannot go on.
        """
        if self._due is not None:
            if time.monotonic() < self._due:
                return None
            self._here.clear()
            try:
                self._future = self._link.call(self._say, transport.POLL + 20)
            except (UnreachableError, OSError) as error:
                self._due = time.monotonic() + self._pause.next(texts(str(error)))
                return None
            except RefusedError as error:
                raise FederationError(f"{error}; `colearn-hpc doctor --federation` says more") from None
            self._due = None
            self._future.add_done_callback(lambda _: self._here.set())
        assert self._future is not None
        if not self._future.done():
            return None
        try:
            message = self._future.result()
        except grpc.FutureCancelledError:
            self._due = time.monotonic()
            return None
        except grpc.RpcError as error:
            if is_refusal(error) or error.code() is _STATUS.FAILED_PRECONDITION:
                raise refused(error) from None
            self._due = time.monotonic() + self._pause.next(texts(error.details() or error.code().name))
            return None
        self._pause.reset()
        return self._link.heard(message)

    def wait(self, seconds: float) -> None:
        """Sleep until something has come, or for so long."""
        if self._due is not None:
            time.sleep(max(0.0, min(seconds, self._due - time.monotonic())))
        else:
            self._here.wait(seconds)

    def again(self) -> None:
        """Ask once more: the answer was to wait on."""
        self._due = 0.0
        self.poll()

    def cancel(self) -> None:
        """The answer is not wanted any more."""
        if self._future is not None:
            self._future.cancel()
