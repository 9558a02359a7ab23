"""What a report says, free of how it looks: said once, and laid out by the templates as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's title."""

    text: str
    level: int = 2
    kind: str = "heading"


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Notice:
    """Something that the reader must not miss: a failed run, an unequal budget."""

    text: str
    kind: str = "notice"


@dataclass(frozen=True)
class Numbers:
    """The few numbers that a reader takes home: (the number, what it is), in large letters."""

    items: Sequence[tuple[str, str]]
    kind: str = "numbers"


@dataclass(frozen=True)
class Fact:
    """A line of :class:`Facts`; ``link`` is a file beside the report."""

    name: str
    text: str
    link: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and what they stand for: date, model, settings."""

    items: Sequence[Fact]
    kind: str = "facts"


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
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: of its file, without ending; unique in a report.
        svg: the picture, a whole ``<svg>`` element.
        caption: what it shows, also read out where the picture cannot be seen.
        points: (x, y, what is there) in the picture's units, for the page to show where one points.
    """

    name: str
    svg: str
    caption: str
    points: Sequence[tuple[float, float, str]] = ()
    kind: str = "figure"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until asked for."""

    summary: str
    blocks: Sequence[Block]
    kind: str = "details"


Block: TypeAlias = Heading | Paragraph | Notice | Numbers | Facts | Table | Figure | Details


def figures_of(blocks: Sequence[Block]) -> list[Figure]:
    """All figures, the folded ones included."""
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figure):
            found.append(block)
        elif isinstance(block, Details):
            found += figures_of(block.blocks)
    return found
