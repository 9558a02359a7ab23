"""What becomes of a run where its ``federation.yaml`` is another one than before. Pure: two rosters in, facts out.

Sites keep their places in the order: who leaves for good stays in the file, marked, and who joins comes after all
others. So what was written down by index means the same afterwards.

Nothing is decided again that was: the new roster holds from the first round on whose end nobody has come to. Before
that all sites of it agree on a new contract, as before round 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from colearn_hpc.errors import FederationError
from colearn_hpc.federation.agreement import Federation

Entry = tuple[str, bool]  # of the roster: a site's name, and whether it has left


@dataclass(frozen=True)
class Standing:
    """Who takes part in a run, by index.

    Attributes:
        roster: all sites that ever were in it, in order.
        members: who is waited for.
        newcomers: who has not been handed the run yet.
        from_round: the first round that the roster holds for.
        joined: of those who joined, or are to join, a run that was under way: with which round.
    """

    roster: tuple[Entry, ...]
    members: frozenset[int]
    newcomers: frozenset[int] = frozenset()
    from_round: int = 0
    joined: Mapping[int, int] = field(default_factory=dict)

    @property
    def active(self) -> frozenset[int]:
        """Who has not left."""
        return frozenset(k for k, (_, left) in enumerate(self.roster) if not left)

    def changed(self, roster: Sequence[Entry], next_round: int, finished: bool) -> Standing:
        """What holds with another roster.

        Args:
            roster: of the new file.
            next_round: the first one whose end nobody has come to.
            finished: the run's last round is done.

        Raises:
            FederationError: it cannot be this run's.
        """
        names, before = [name for name, _ in roster], [name for name, _ in self.roster]
        if names[: len(before)] != before:
            raise FederationError(
                f"the run's sites are {', '.join(before)}, and the new federation.yaml lists {', '.join(names)}: every "
                "site keeps its place; mark who leaves (`colearn-hpc federation remove`), and put who joins at the end"
            )
        for k, (name, left) in enumerate(self.roster):
            if left and not roster[k][1]:
                raise FederationError(f"{name} has left for good; invite it by another name")
        after = frozenset(k for k, (_, left) in enumerate(roster) if not left)
        joins = frozenset(range(len(before), len(roster))) & after
        # Who was to join with the same round, or has, and trains its first one, joins with this contract.
        again = frozenset(k for k, first in self.joined.items() if first == next_round) & after
        newcomers = (self.newcomers & after) | joins | again
        if finished and joins:
            raise FederationError(
                f"{', '.join(names[k] for k in sorted(joins))} cannot join: the run's last round is done; begin a new "
                "run from shared.ckpt"
            )
        if not (members := (self.members & after) - newcomers) and not finished:
            raise FederationError(
                "none of the sites that are in the run now would stay, so nobody could go on with its model; keep one "
                "of them"
            )
        if finished:
            return Standing(tuple(roster), members, self.newcomers & after, self.from_round, self.joined)
        joined = {**self.joined, **dict.fromkeys(sorted(newcomers), next_round)}
        return Standing(tuple(roster), members, newcomers, next_round, joined)


def roster_of(federation: Federation) -> tuple[Entry, ...]:
    """The sites of a ``federation.yaml``."""
    return tuple((site.name, site.left) for site in federation.sites)


def difference(before: Standing, after: Standing) -> str:
    """Who left and who joins, for people."""
    names = [name for name, _ in after.roster]

    def listed(what: str, who: Iterable[int]) -> str:
        found = ", ".join(names[k] for k in sorted(who))
        return f"{what}: {found}; " if found else ""

    joins = after.newcomers - before.newcomers
    return (
        f"{listed('left for good', before.active - after.active)}{listed('joins', joins)}"
        f"in force from round {after.from_round} on, when all have confirmed it"
    )
