"""What a site must remember of its sums over any kill: the vector that it sends, and to whom it was sent.

    FOLDER/sum.json               where the site stands (``roster.py``), and scales and digest of the vector
    FOLDER/sum-round000003.bin    the whole numbers before they are masked, of the round in which it stands
    FOLDER/sum-key.json           the secret of its masks, before it tells the key; as secret as the numbers are

The first is on disk before any chunk goes out, and each chunk of the second before that chunk does, so that writing
overlaps the wire. A sum that was cut off can be taken again with the very same vector, whatever the retrained model is;
and a vector that was sent once is known for ever, by its digest. Where a kill came before the numbers were whole on
disk, only a retrained model with the very same numbers will do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.keys import new_secret
from colearn_hpc.privacy.roster import RosterState

_STATE, _NUMBERS, _KEY = "sum.json", "sum-round{:06d}.bin", "sum-key.json"
_PIECE = 8 << 20  # bytes that are written before the disk is asked to keep them


@dataclass(frozen=True)
class Kept:
    """What is on disk.

    Attributes:
        run: id of the run.
        state: where the site stands in its sums.
        exponents: of the scales of the vector that was sent last.
        bits: of its numbers.
        factor: f_k with which it was written.
        numbers: digest of the numbers.
        vectors: round -> digest of the vector that was sent for it.
    """

    run: str
    state: RosterState = field(default_factory=RosterState)
    exponents: tuple[int, ...] = ()
    bits: int = 32
    factor: float = 1.0
    numbers: str = ""
    vectors: dict[int, str] = field(default_factory=dict)


class KeptSum:
    """One site's memory of its sums.

    Args:
        folder: of the site alone; it need not be there yet.
        site: its name.
        run: id of the run. What another run has left here is forgotten.

    Raises:
        PrivacyError: what is on disk cannot be read. To go on without it could show this site's vector.
    """

    def __init__(self, folder: Path, site: str, run: str) -> None:
        self._folder, self._site = folder, site
        self._kept = Kept(run)
        self._writing: _Writing | None = None
        path = folder / _STATE
        if not path.exists():
            return
        try:
            kept = _from_plain(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrivacyError(
                f"{path} cannot be read ({error}), and says which vectors were sent to whom; bring it back, or start a "
                "new run"
            ) from error
        if kept.run == run:
            self._kept = kept

    def secret(self, transcript: bytes) -> bytes:
        """The secret of this site's masks for a sum, 32 bytes, on disk when this returns: a site that is killed after
        it has told its key can still send what the others expect.

        Args:
            transcript: digest of what is to be summed. Another sum has another secret.

        Raises:
            PrivacyError: what is on disk cannot be read.
        """
        path = self._folder / _KEY
        with contextlib.suppress(FileNotFoundError):
            try:
                kept = json.loads(path.read_text())
                if kept["transcript"] == transcript.hex():
                    return bytes.fromhex(kept["secret"])
            except (ValueError, KeyError, TypeError) as error:
                raise PrivacyError(f"{path} cannot be read ({error}); bring it back, or remove it") from error
        secret = new_secret()
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps({"transcript": transcript.hex(), "secret": secret.hex()}).encode())
        return secret

    def has_sent(self, numbers: NDArray[Any]) -> bool:
        """Whether these are the very numbers that were sent last."""
        return digest_of(numbers) == self._kept.numbers

    def is_past(self, round_: int) -> bool:
        """Whether this site has come to sums of later rounds: it has nothing more to send for this one."""
        return round_ < self._kept.state.round

    def attempt(self, round_: int) -> int:
        """The number that this site's next attempt at a round's sum has at least."""
        return self._kept.state.attempt + 1 if self._kept.state.round == round_ else 0

    def begun(self, round_: int) -> Kept | None:
        """What was sent for a round before; None: nothing."""
        state = self._kept.state
        return self._kept if state.round == round_ and state.phase != "open" else None

    def numbers(self) -> NDArray[Any] | None:
        """The vector that was sent last, signed whole numbers of shape (n,); None: this site was killed before it was
        whole on disk.

        Raises:
            PrivacyError: it is not what was sent.
        """
        kept = self._kept
        path = self._folder / _NUMBERS.format(kept.state.round)
        try:
            found = np.fromfile(path, np.dtype(f"<i{kept.bits // 8}"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PrivacyError(f"{path} cannot be read ({error}); the sum cannot be taken again") from error
        if digest_of(found) != kept.numbers:
            raise PrivacyError(f"{path} is not the vector that was sent; the sum cannot be taken again")
        return found

    def begin(
        self,
        round_: int,
        roster: tuple[str, ...],
        attempt: int,
        numbers: NDArray[Any],
        exponents: tuple[int, ...],
        factor: float = 1.0,
        vector: str = "",
        ahead: bool = False,
    ) -> None:
        """Before the first chunk goes out.

        Args:
            round_: of the run.
            roster: names of the sites to be summed, in order.
            attempt: its number in the round.
            numbers: the vector before it is masked, signed whole numbers of shape (n,).
            exponents: of its scales.
            factor: f_k.
            vector: digest of what the numbers say, however it is scaled: one vector on two scales is still one. Empty:
                of the numbers.
            ahead: return while the numbers are still being written; :meth:`wait` for each chunk. Nobody may change
                them meanwhile. Otherwise all of it is on disk when this returns.

        Raises:
            PrivacyError: the rules of ``roster.py`` forbid this sum.
        """
        self.wait()
        state, written = self._kept.state, digest_of(numbers)
        vector = vector or written
        if round_ < state.round:
            # The run was set back behind a sum whose vector is not kept any more. The very same sum tells nothing new.
            if self._kept.vectors.get(round_) != vector or state.rosters[vector] != roster:
                raise PrivacyError(
                    f"round {round_} was summed before, and now with another vector or roster: the difference of the "
                    "two sums could show this site's vector; go on from a newer resume point, or start a new run"
                )
            return
        while state.round < round_:
            if state.phase in ("open", "sending"):
                state = state.finish() if state.phase == "sending" else state.give_up()
            state = state.next_round()
        if state.phase == "sending" and written != self._kept.numbers:
            raise PrivacyError(
                f"round {round_} was begun with other numbers: the difference of the two sums could show this site's "
                "vector; send what is kept, or give the round up"
            )
        known = (self._kept.state.roster, self._kept.state.vector, self._kept.exponents, self._kept.state.attempt)
        if state.phase != "sending" or known != (roster, vector, exponents, attempt):
            state = state.begin(self._site, roster, vector, attempt)
            vectors, bits = self._kept.vectors | {round_: vector}, numbers.itemsize * 8
            self._kept = Kept(self._kept.run, state, exponents, bits, factor, written, vectors)
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / _STATE, json.dumps(_to_plain(self._kept)).encode())
        # Otherwise the very same goes out once more, under the same masks.
        path = self._folder / _NUMBERS.format(round_)
        for older in set(self._folder.glob("sum-round*.bin")) - {path}:
            older.unlink(missing_ok=True)
        if not path.exists():
            self._writing = _Writing(path, np.ascontiguousarray(numbers))
            if not ahead:
                self.wait()

    def wait(self, stop: int | None = None) -> None:
        """Wait until numbers are on disk.

        Args:
            stop: the first ``stop`` of them; None: all.

        Raises:
            PrivacyError: the disk refuses; they must not be sent.
        """
        if self._writing is not None:
            self._writing.wait(stop)


class _Writing:
    """Numbers on their way to the disk, from the first one on; a thread's work. For their user's eyes only.

    Args:
        path: their name when all are there.
        numbers: shape (n,).
    """

    def __init__(self, path: Path, numbers: NDArray[Any]) -> None:
        self._path, self._numbers = path, numbers
        self._safe, self._error = 0, ""  # numbers that are on disk
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="colearn-kept-sum", daemon=True)
        self._thread.start()

    def wait(self, stop: int | None) -> None:
        if stop is None:
            self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: stop is None or self._safe >= stop or bool(self._error))
            if self._error:
                raise PrivacyError(f"{self._path} cannot be written ({self._error}), so the numbers cannot be sent")

    def _run(self) -> None:
        try:
            step = _PIECE // self._numbers.itemsize
            with _temporary(self._path).open("wb") as file:
                for start in range(0, len(self._numbers), step):
                    piece = self._numbers[start : start + step]
                    file.write(piece.data)
                    file.flush()
                    os.fdatasync(file.fileno())
                    with self._changed:
                        self._safe = start + len(piece)
                        self._changed.notify_all()
            _rename(self._path)
        except OSError as error:
            with self._changed:
                self._error = str(error)
                self._changed.notify_all()


def digest_of(numbers: NDArray[Any]) -> str:
    """SHA-256 of whole numbers, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(numbers).data).hexdigest()


def _to_plain(kept: Kept) -> dict[str, Any]:
    return {
        "run": kept.run,
        "state": kept.state.state_dict(),
        "exponents": list(kept.exponents),
        "bits": kept.bits,
        "factor": kept.factor,
        "numbers": kept.numbers,
        "vectors": {str(round_): vector for round_, vector in kept.vectors.items()},
    }


def _from_plain(plain: dict[str, Any]) -> Kept:
    state = RosterState.from_state_dict(plain["state"])
    exponents, bits = tuple(map(int, plain["exponents"])), int(plain["bits"])
    vectors = {int(round_): str(vector) for round_, vector in plain["vectors"].items()}
    return Kept(str(plain["run"]), state, exponents, bits, float(plain["factor"]), str(plain["numbers"]), vectors)


def _write(path: Path, content: Any) -> None:
    """Under a temporary name in the folder where it belongs, on disk, then renamed, and the name on disk too. For its
    user's eyes only."""
    with _temporary(path).open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _rename(path)


def _temporary(path: Path) -> Path:
    """An empty file for what is to become ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch(0o600)
    return temporary


def _rename(path: Path) -> None:
    path.with_name(f".{path.name}.tmp").replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
