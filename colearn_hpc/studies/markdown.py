"""A report as Markdown; its figures are files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from colearn_hpc.studies.blocks import Block, Details, Figure, Heading, Notice, Paragraph, Table


def markdown(blocks: Sequence[Block], figures: str = "figures") -> str:
    """The whole text.

    Args:
        blocks: what it says.
        figures: folder of the figures' files, relative to the text's.
    """
    return "\n\n".join(_render(blocks, figures)) + "\n"


def _render(blocks: Sequence[Block], figures: str) -> list[str]:
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Paragraph):
            parts.append(block.text)
        elif isinstance(block, Notice):
            parts.append(f"> **Note.** {block.text}")
        elif isinstance(block, Figure):
            parts.append(f"![{_one_line(block.caption)}]({figures}/{block.name}.svg)\n\n*{block.caption}*")
        elif isinstance(block, Table):
            parts.append(table(block))
        elif isinstance(block, Details):
            parts += [f"<details><summary>{block.summary}</summary>", *_render(block.blocks, figures), "</details>"]
    return parts


def table(block: Table) -> str:
    """A table, with its caption above."""
    lines = [_row(block.header), "|" + "|".join([" :-- "] + [" --: "] * (len(block.header) - 1)) + "|"]
    for i, row in enumerate(block.rows):
        lines.append(_row([f"**{cell}**" if (i, j) in block.best else cell for j, cell in enumerate(row)]))
    return (f"*{block.caption}*\n\n" if block.caption else "") + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
