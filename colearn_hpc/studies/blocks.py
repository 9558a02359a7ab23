"""What a report says, free of how it looks: written once, rendered as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something that the reader must not miss: a failed run, an unequal budget."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        header: the columns' names.
        rows: as many texts in each as there are columns; the first names the row.
        caption: what it shows.
        best: (row, column) of the cells in bold.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    best: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), "a table's rows have one cell per column"


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: of its file, without ending; unique in a report.
        svg: the picture, a whole ``<svg>`` element.
        caption: what it shows, also read out where the picture cannot be seen.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until asked for."""

    summary: str
    blocks: Sequence[Block] = field(default_factory=tuple)


Block: TypeAlias = Heading | Paragraph | Notice | Table | Figure | Details


def figures_of(blocks: Sequence[Block]) -> list[Figure]:
    """All figures, the folded ones included."""
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figure):
            found.append(block)
        elif isinstance(block, Details):
            found += figures_of(block.blocks)
    return found
