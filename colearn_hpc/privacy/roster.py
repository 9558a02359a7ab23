"""Who is summed in a round, and that one vector is never summed with two rosters.

Masks hide a vector in *one* sum. Were a site lost in the middle and the sum taken again among those that are left,
then the difference of the two sums would be the lost site's vector, exactly; whoever carries the messages could stage
that. So each site keeps these rules by itself, whatever it is told:

* A round's roster is fixed when the site's first chunk goes out.
* The sum is taken again only with the same roster and the very same vector, from where it is stored.
* Otherwise the round is void: nobody takes a mean, and the next round, with another vector, has another roster.

:class:`RosterState` is a value: a move gives a new one and changes nothing. The new one must be on disk, in the site's
resume point, before the site acts on it; what was decided is then known after any kill.

    open --begin--> sending --finish--> summed --next_round--> open
                    |     ^              void --next_round--> open
                    |     +-- begin: the same roster and vector, a later attempt
    open, sending --give_up--> void
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from colearn_hpc.errors import PrivacyError
from colearn_hpc.privacy.keys import check_roster

Phase = Literal["open", "sending", "summed", "void"]
_MOVES: dict[str, tuple[Phase, ...]] = {
    "begin": ("open", "sending"),
    "finish": ("sending",),
    "give_up": ("open", "sending"),
    "next_round": ("summed", "void"),
}


@dataclass(frozen=True)
class RosterState:
    """Where one site stands in the sums of a run.

    Attributes:
        round: from 0.
        phase: of this round's sum.
        roster: fixed for this round; empty while the round is open.
        vector: digest of the vector that is being summed; empty while the round is open.
        attempt: the last at this round's sum that chunks were sent for; -1 before the first.
        rosters: digest -> roster of every vector that was ever sent, this round's included.
    """

    round: int = 0
    phase: Phase = "open"
    roster: tuple[str, ...] = ()
    vector: str = ""
    attempt: int = -1
    rosters: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def begin(self, site: str, roster: tuple[str, ...], vector: str, attempt: int) -> RosterState:
        """Before the first chunk of an attempt goes out.

        Args:
            site: this one.
            roster: names of the sites to be summed, in order.
            vector: digest of the whole numbers before they are masked, in hexadecimal.
            attempt: its number in the round.

        Raises:
            PrivacyError: the round has another roster or vector already, the attempt was made, the vector was sent to
                another roster, or the roster hides nothing.
        """
        self._check("begin")
        check_roster(roster)
        if site not in roster:
            raise PrivacyError(f"site {site} is not in the roster {', '.join(roster)}, so it sends nothing")
        if attempt <= self.attempt:
            raise PrivacyError(f"attempt {attempt} of round {self.round} was made; another one needs a higher number")
        if self.phase == "sending" and (roster, vector) != (self.roster, self.vector):
            raise PrivacyError(
                f"round {self.round} is being summed over {', '.join(self.roster)}, and would be summed over "
                f"{', '.join(roster)}{'' if vector == self.vector else ' with another vector'}: the difference of the "
                "two sums would show a site's vector; wait for the same sites, or give the round up"
            )
        if self.rosters.get(vector, roster) != roster:
            raise PrivacyError(
                f"this vector was sent to the sum over {', '.join(self.rosters[vector])}, and would be sent to the one "
                f"over {', '.join(roster)}; train on before the next sum"
            )
        known = self.rosters | {vector: roster}
        return replace(self, phase="sending", roster=roster, vector=vector, attempt=attempt, rosters=known)

    def finish(self) -> RosterState:
        """The sum is there. Raises PrivacyError where nothing was sent."""
        self._check("finish")
        return replace(self, phase="summed")

    def give_up(self) -> RosterState:
        """The round is void. Raises PrivacyError where it has ended."""
        self._check("give_up")
        return replace(self, phase="void")

    def next_round(self) -> RosterState:
        """After a sum, or a round that was void. Raises PrivacyError before."""
        self._check("next_round")
        return RosterState(round=self.round + 1, rosters=self.rosters)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a checkpoint with them opens with ``weights_only=True``."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RosterState:
        """What :meth:`state_dict` gave."""
        rosters = {vector: tuple(roster) for vector, roster in state["rosters"].items()}
        return cls(**state | {"roster": tuple(state["roster"]), "rosters": rosters})

    def _check(self, move: str) -> None:
        if self.phase not in _MOVES[move]:
            raise PrivacyError(
                f"round {self.round} is {self.phase}; {move} comes where it is {' or '.join(_MOVES[move])}"
            )
