"""What a site must remember of its sums over any kill: the vector that it sends, and to whom it was sent.

    FOLDER/sum.json               where the site stands (``roster.py``), and the scales of the vector
    FOLDER/sum-round000003.bin    the whole numbers before they are masked, of the round in which it stands

Both are on disk before the first chunk goes out. So a sum that was cut off can be taken again with the very same
vector, whatever the retrained model is; and a vector that was sent once is known for ever, by its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.roster import RosterState

_STATE, _NUMBERS = "sum.json", "sum-round{:06d}.bin"


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

    def attempt(self, round_: int) -> int:
        """The number that this site's next attempt at a round's sum has at least."""
        return self._kept.state.attempt + 1 if self._kept.state.round == round_ else 0

    def begun(self, round_: int) -> Kept | None:
        """What was sent for a round before; None: nothing."""
        state = self._kept.state
        return self._kept if state.round == round_ and state.phase != "open" else None

    def numbers(self) -> NDArray[Any]:
        """The vector that was sent last, signed whole numbers of shape (n,).

        Raises:
            PrivacyError: it is not what was sent.
        """
        kept = self._kept
        path = self._folder / _NUMBERS.format(kept.state.round)
        try:
            found = np.fromfile(path, np.dtype(f"<i{kept.bits // 8}"))
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
    ) -> None:
        """Before the first chunk goes out. When this returns, all of it is on disk.

        Args:
            round_: of the run.
            roster: names of the sites to be summed, in order.
            attempt: its number in the round.
            numbers: the vector before it is masked, signed whole numbers of shape (n,).
            exponents: of its scales.
            factor: f_k.
            vector: digest of what the numbers say, however it is scaled: one vector on two scales is still one. Empty:
                of the numbers.

        Raises:
            PrivacyError: the rules of ``roster.py`` forbid this sum.
        """
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
        state = state.begin(self._site, roster, vector, attempt)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / _NUMBERS.format(round_)
        if self._kept.state.round != round_ or not path.exists():
            _write(path, np.ascontiguousarray(numbers).data)
        vectors = self._kept.vectors | {round_: vector}
        bits = numbers.itemsize * 8
        self._kept = Kept(self._kept.run, state, exponents, bits, factor, written, vectors)
        _write(self._folder / _STATE, json.dumps(_to_plain(self._kept)).encode())
        for older in set(self._folder.glob("sum-round*.bin")) - {path}:
            older.unlink(missing_ok=True)


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
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch(0o600)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
