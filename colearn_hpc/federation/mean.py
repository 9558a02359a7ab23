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
import numpy as np
import torch

from colearn_hpc import faults
from colearn_hpc.algorithm.slices import measure
from colearn_hpc.between import Idle, MeanFacts, Offer
from colearn_hpc.federation import wire
from colearn_hpc.federation.link import Link, Pause, is_refusal, refused
from colearn_hpc.federation.reach import UnreachableError
from colearn_hpc.federation.wire import HELLO, MEAN, ROW, WELCOME, WINDOW, Hello, WireError
from colearn_hpc.protocol import pacing

log = logging.getLogger("colearn_hpc")

_DTYPES = {torch.float32: "<f4", torch.float64: "<f8", torch.uint8: "|u1"}


class Stream:
    """One vector on its way, and the mean on its way back; a thread's work.

    Args:
        link: to the coordinator.
        hello: which mean.
        row: gives bytes of a chunk of this site's vector; None: it gives nothing.
        put: takes bytes of a chunk of the mean.
    """

    def __init__(
        self, link: Link, hello: Hello, row: Callable[[int], memoryview] | None, put: Callable[[int, memoryview], None]
    ) -> None:
        self._link, self._hello, self._row, self._put = link, hello, row, put
        self.sent = 0  # payload bytes of the try that succeeded
        self.moved = time.monotonic()  # when something came
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._cancelled = False
        self._answers: grpc.Call | None = None
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(target=self._run, name="colearn-mean", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Forget it. Needs nobody else."""
        self._cancelled = True
        if self._answers is not None:
            self._answers.cancel()
        self._thread.join(10)

    def _run(self) -> None:
        if self._device is not None:
            torch.cuda.set_device(self._device)  # a thread begins with the first one
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
        self.sent = 0

        def frames() -> Iterator[bytes]:
            yield wire.frame(HELLO, hello.number, 0, wire.pack(hello.to_plain()))
            wanted.wait()
            try:
                for chunk in range(hello.chunks):
                    credit.acquire()
                    if ends.is_set():
                        return
                    assert self._row is not None, "only who gives is asked for rows"
                    content = self._row(chunk)
                    if chunk == 1:
                        faults.reached("exchange")
                    self.sent += len(content)
                    yield wire.frame(ROW, hello.number, chunk, content)
            except Exception as error:  # and not that gRPC has no more use for it
                asked.append(error)
                raise

        answers = self._answers = self._link.mean(frames())
        try:
            welcome = wire.unpack(wire.expect(_next(answers, asked), WELCOME, hello.number, 0))
            pause.reset()
            if not (isinstance(welcome, dict) and isinstance(welcome.get("rows"), bool)):
                raise WireError("no welcome")
            if not welcome["rows"]:
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
        element = wire.DTYPES[hello.dtype]
        self._step = wire.CHUNK // element
        self._scratch = torch.empty(self._step, dtype=offer.result.dtype, pin_memory=offer.source.on_gpu)
        self._result = offer.result.numpy()
        self._stream = Stream(link, hello, self._read if self._gives else None, self._write)

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
        offer = self._offer
        own = offer.source if self._gives and offer.previous is not None else None
        squares, rest, distance = measure(
            offer.result, offer.previous, own, offer.parameter_size, len(self._hello.present)
        )
        finite = math.isfinite(squares.after) and math.isfinite(rest.after)
        return MeanFacts(self._stream.sent, squares, finite, distance)

    def _read(self, chunk: int) -> memoryview:
        start = chunk * self._step
        row = self._offer.source.read(start, min(start + self._step, self._hello.size), self._scratch)
        self._offer.source.wait()
        return row.numpy().astype(self._hello.dtype, copy=False).data.cast("B")

    def _write(self, chunk: int, content: memoryview) -> None:
        start = chunk * self._step
        values = np.frombuffer(content, self._hello.dtype)
        self._result[start : start + len(values)] = values


def hello_of(number: int, offer: Offer, present: tuple[int, ...]) -> Hello:
    """What is said of a mean with this offer.

    Raises:
        ValueError: nobody gives, or the offer's result does not fit.
    """
    source, result = offer.source, offer.result
    if result.shape != (source.size,) or result.dtype != source.dtype:
        raise ValueError(f"the mean needs {source.size} x {source.dtype}, found {tuple(result.shape)} x {result.dtype}")
    weights = tuple(float(w) for w in offer.weights)
    if not any(weights[k] for k in present):
        raise ValueError("the mean of no participants is undefined")
    return Hello(number, source.size, _DTYPES[source.dtype], weights, present)


def pieces(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of things of these sizes, laid one after the other."""
    return itertools.pairwise(itertools.accumulate(sizes, initial=0))
