"""A site's part in a mean: its rows go to the coordinator, chunk by chunk, and the mean's chunks come back.

Threads move the bytes, so a mean goes on while the site trains. Where a stream breaks it is begun again from chunk 0,
with the same rows: the offer stays untouched until the mean is there.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import torch

from colearn_hpc import faults
from colearn_hpc.algorithm.coded_steps import Coded
from colearn_hpc.algorithm.encoding import Ground
from colearn_hpc.algorithm.slices import chunks, measure
from colearn_hpc.between import Idle, MeanFacts, Offer
from colearn_hpc.federation import wire
from colearn_hpc.federation.link import Link, Pause, is_refusal, refused
from colearn_hpc.federation.reach import UnreachableError
from colearn_hpc.federation.wire import HELLO, LAST_MODEL, MEAN, ROUND_MEAN, ROW, WELCOME, WINDOW, Hello, WireError
from colearn_hpc.protocol import pacing

log = logging.getLogger("colearn_hpc")

_DTYPES = {torch.float32: "<f4", torch.float64: "<f8", torch.int32: "<i4", torch.int64: "<i8", torch.uint8: "|u1"}


class Stream:
    """One vector on its way, and the mean on its way back; a thread's work.

    Args:
        link: to the coordinator.
        hello: which mean.
        row: gives bytes of a chunk of this site's vector; None: it gives nothing.
        put: takes bytes of a chunk of the mean.
        again: the same rows are asked for once more, from the first on.
    """

    def __init__(
        self,
        link: Link,
        hello: Hello,
        row: Callable[[int], memoryview] | None,
        put: Callable[[int, memoryview], None],
        again: Callable[[], object] = lambda: None,
    ) -> None:
        self._link, self._hello, self._row, self._put, self._again = link, hello, row, put, again
        self._reads = threading.Lock()  # gRPC may still be asking for a row of the try before
        self.sent = 0  # payload bytes of the try that succeeded
        self.wanted = False  # whether rows were, in the try that succeeded
        self.void = ""  # why there is no mean, nor will be
        self.moved = time.monotonic()  # when something came
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._cancelled = False
        self._answers: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="colearn-mean", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Forget it. Needs nobody else."""
        self._cancelled = True
        if self._answers is not None:
            self._answers.cancel()
        self._thread.join(10)

    def _run(self) -> None:
        pause = Pause(self._link.where)
        try:
            while not self._cancelled:
                try:
                    self._try(pause)
                    return
                except (UnreachableError, OSError) as error:
                    time.sleep(pause.next(wire.texts(str(error))))
                except grpc.RpcError as error:
                    if self._cancelled:
                        return
                    if is_refusal(error) or error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                        raise refused(error) from None
                    time.sleep(pause.next(wire.texts(error.details() or error.code().name)))
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def _try(self, pause: Pause) -> None:
        hello, credit, ends = self._hello, threading.Semaphore(WINDOW), threading.Event()
        wanted = threading.Event()
        asked: list[BaseException] = []
        with self._reads:
            self.sent = 0
            self._again()

        def frames() -> Iterator[bytes]:
            yield wire.frame(HELLO, hello.number, 0, wire.pack(hello.to_plain()))
            wanted.wait()
            try:
                for chunk in range(hello.chunks):
                    credit.acquire()
                    with self._reads:
                        if ends.is_set():
                            return
                        assert self._row is not None, "only who gives is asked for rows"
                        message = wire.frame(ROW, hello.number, chunk, self._row(chunk))
                        self.sent += hello.length(chunk)
                    if chunk == 1:
                        faults.reached("exchange")
                    yield message
            except Exception as error:  # and not that gRPC has no more use for it
                asked.append(error)
                raise

        answers = self._answers = self._link.mean(frames())
        try:
            welcome = wire.unpack(wire.expect(_next(answers, asked), WELCOME, hello.number, 0))
            pause.reset()
            match welcome:
                case {"rows": bool(rows), "void": str(void)}:
                    self.wanted, self.void = rows, wire.texts(void)
                case _:
                    raise WireError("no welcome")
            if self.void:
                return
            if not self.wanted:
                ends.set()
                credit.release()
            wanted.set()
            for chunk in range(hello.chunks):
                message = _next(answers, asked)
                self._put(chunk, wire.expect(message, MEAN, hello.number, chunk, hello.length(chunk)))
                self.moved = time.monotonic()
                credit.release()
        finally:
            ends.set()
            wanted.set()
            credit.release(hello.chunks + 1)
            answers.cancel()


def _next(answers: Iterator[bytes], asked: list[BaseException]) -> bytes:
    try:
        return next(answers)
    except StopIteration:
        raise WireError("the coordinator ended the stream before the mean was whole") from None
    except grpc.RpcError:
        if asked:  # what failed is this site's own row
            raise asked[0] from None
        raise


class FederatedMean:
    """An :class:`~colearn_hpc.between.UnderWay` of a federation.

    Args:
        link: to the coordinator.
        hello: which mean.
        offer: of this site.
        index: of it.
        meanwhile: called again and again while this leader waits.
        leaves: tells whether this site is to leave, where the mean has not moved for so many seconds. It is then
            forgotten, and the next meeting says so to all ranks.
        tell: lets the coordinator know that this site is here; its answer tells who is awaited.
    """

    def __init__(
        self,
        link: Link,
        hello: Hello,
        offer: Offer,
        index: int,
        meanwhile: Callable[[], object],
        leaves: Callable[[float], bool],
        tell: Callable[[Callable[[], str]], None],
    ) -> None:
        self._link, self._hello, self._offer = link, hello, offer
        self._meanwhile, self._leaves, self._tell = meanwhile, leaves, tell
        self._gives = bool(hello.weights[index])
        source, encoding = offer.source, offer.encoding
        encoding.prepare(offer.parameter_size)
        width = min(hello.widest, hello.size)
        self._kinds = encoding.begin(Ground(offer.result, offer.previous, [1.0], width))
        self._scratch = torch.empty(width, dtype=source.dtype, pin_memory=source.on_gpu)
        self._outbox, self._inbox = torch.empty((2, wire.CHUNK), dtype=torch.uint8)
        # Where rows are no weights: ‖w_k - w̄‖² of each slice as K leaders in one MPI world cut them, measured while
        # later chunks travel.
        number = 0 if source.dtype == offer.result.dtype else len(hello.present)
        cut = (one for one in chunks(hello.size, offer.parameter_size, number) if one.parameters) if number else ()
        self._slices = [chunk.place(k) for chunk in cut for k in range(number)]
        self._apart: list[float | None] = []
        row = self._read if self._gives else None
        self._stream = Stream(link, hello, row, self._write, self._begin_again)

    def advance(self) -> None:
        """Threads move it."""

    def abandon(self, idle: Idle | None = None) -> None:
        """Forget it. Needs nobody else."""
        self._stream.cancel()

    def finish(self, idle: Idle | None = None) -> MeanFacts:
        """Wait politely. ``idle`` is not asked: a site that was killed may come back hours later, and who is given up
        is the coordinator's to say.

        Raises:
            FederationError: the coordinator refuses.
            LeftBehindError: the others have gone on without this site.
        """
        waiting = pacing.Patience()
        while not self._stream.done.wait(0.02 if waiting.seconds > 1 else 0.002):
            self._meanwhile()
            self._tell(lambda: "in a mean")
            if self._leaves(time.monotonic() - self._stream.moved):
                self.abandon()
                return MeanFacts(0, measure(None, None, None, 0, 1)[0], True, math.nan)
            if waiting.report_due():
                names = ", ".join(f"{name} ({text})" for name, text in self._link.awaited.items())
                log.warning("the mean is under way since %.0f s; awaited: %s", waiting.seconds, names or "nobody")
        if self._stream.error is not None:
            raise self._stream.error
        if self._stream.void:
            nothing = measure(None, None, None, 0, 1)[0]
            return MeanFacts(self._stream.sent, nothing, True, math.nan, self._stream.void)
        self._remember()
        offer, own = self._offer, None
        if self._gives and not self._slices and offer.previous is not None:
            own = offer.source
        number = len(self._hello.present)
        squares, rest, distance = measure(offer.result, offer.previous, own, offer.parameter_size, number)
        finite = math.isfinite(squares.after) and math.isfinite(rest.after)
        if known := [one for one in self._apart if one is not None]:
            distance = math.fsum(known)
        return MeanFacts(self._stream.sent, squares, finite, distance)

    def _remember(self) -> None:
        """Where the encoding remembers what its messages lacked: as if they had been sent, if the mean was there
        before; and of a site that gives nothing, nothing was sent."""
        if self._hello.codec:
            for chunk in range(self._hello.chunks):
                if not self._hello.is_coded(chunk):
                    continue
                if not self._gives:
                    self._kinds[0].skip(slice(*self._hello.place(chunk)))
                elif not self._stream.wanted:
                    self._read(chunk)

    def _begin_again(self) -> None:
        self._apart.clear()
        self._offer.encoding.again()

    def _read(self, chunk: int) -> memoryview:
        source, place = self._offer.source, slice(*self._hello.place(chunk))
        message = values = source.read(place.start, place.stop, self._scratch)
        source.wait()
        for kind, piece in self._pieces(place):
            inside = slice(piece.start - place.start, piece.stop - place.start)
            slices = self._kinds[kind]
            room = self._outbox.view(slices.unit)
            message = slices.write(values[inside], piece, room[inside.start :])
            if inside.start or inside.stop < len(values):  # what a chunk holds of two kinds is written in one way
                message = room[: len(values)] if slices.copies else values
        return message.contiguous().numpy().data.cast("B")

    def _write(self, chunk: int, content: memoryview) -> None:
        place = slice(*self._hello.place(chunk))
        self._inbox.numpy()[: len(content)] = content
        for kind, piece in self._pieces(place):
            message = self._inbox[: len(content)].view(self._kinds[kind].unit)
            if not self._hello.is_coded(chunk):
                message = message[piece.start - place.start : piece.stop - place.start]
            self._kinds[kind].take(message, piece)
        while len(self._apart) < len(self._slices) and self._slices[len(self._apart)].stop <= place.stop:
            self._apart.append(self._kinds[0].measure(self._slices[len(self._apart)]))

    def _pieces(self, place: slice) -> list[tuple[int, slice]]:
        """The part of a chunk that is of the parameters, and the rest, each with its kind."""
        end = min(max(self._offer.parameter_size, place.start), place.stop)
        pieces = [(0, slice(place.start, end)), (1, slice(end, place.stop))]
        return [(kind, piece) for kind, piece in pieces if piece.stop > piece.start]


def hello_of(number: int, offer: Offer, present: tuple[int, ...]) -> Hello:
    """What is said of a mean with this offer.

    Raises:
        ValueError: nobody gives, or the offer's result does not fit.
    """
    source, result = offer.source, offer.result
    expected = offer.encoding.source_dtype(result.dtype)
    if result.shape != (source.size,) or source.dtype != expected:
        raise ValueError(
            f"a mean of {tuple(result.shape)} x {result.dtype} needs {expected}, found {source.size} x {source.dtype}"
        )
    weights = tuple(float(w) for w in offer.weights)
    if not any(weights[k] for k in present):
        raise ValueError("the mean of no participants is undefined")
    part = LAST_MODEL if offer.last_model else ROUND_MEAN
    codec = offer.encoding.codec.name if isinstance(offer.encoding, Coded) else ""
    coded = offer.parameter_size if codec else 0
    return Hello(number, source.size, _DTYPES[source.dtype], weights, present, part, codec, coded)


def pieces(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of things of these sizes, laid one after the other."""
    return itertools.pairwise(itertools.accumulate(sizes, initial=0))
