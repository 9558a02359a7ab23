"""A report as one HTML page that needs nothing else: no script, no network, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from colearn_hpc.studies.blocks import Block, Details, Figure, Heading, Notice, Paragraph, Table

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: #1b1f24; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1.05rem; margin-top: 1.4rem; }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto; max-width: 40rem; }
figcaption, .caption { color: #57606a; font-size: .875rem; } .caption { margin: 1rem 0 0; }
.table { overflow-x: auto; margin: .3rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #57606a; }
.notice { border-left: .3rem solid #bf8700; background: #fff8c5; padding: .5rem .8rem; margin: .8rem 0; }
details { border-top: 1px solid #d8dee4; padding: .5rem 0; } summary { cursor: pointer; }
@media print { details { break-inside: avoid; } }
"""


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon: a browser would otherwise ask the network for one.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"{_render(blocks)}\n</body>\n</html>\n"
    )


def _render(blocks: Sequence[Block]) -> str:
    parts: list[str] = []
    grid: list[str] = []
    for block in [*blocks, None]:
        if isinstance(block, Figure):
            grid.append(_figure(block))  # neighbours share a row where there is room
            continue
        if grid:
            parts.append(f'<div class="figures">{"".join(grid)}</div>')
            grid = []
        if isinstance(block, Heading):
            parts.append(f"<h{block.level}>{escape(block.text)}</h{block.level}>")
        elif isinstance(block, Paragraph):
            parts.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Notice):
            parts.append(f'<p class="notice" role="note">{escape(block.text)}</p>')
        elif isinstance(block, Table):
            parts.append(_table(block))
        elif isinstance(block, Details):
            parts.append(f"<details><summary>{escape(block.summary)}</summary>\n{_render(block.blocks)}\n</details>")
    return "\n".join(parts)


def _figure(figure: Figure) -> str:
    return f'<figure id="{escape(figure.name)}">{figure.svg}<figcaption>{escape(figure.caption)}</figcaption></figure>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = []
    for i, row in enumerate(table.rows):
        cells = [f"<b>{escape(cell)}</b>" if (i, j) in table.best else escape(cell) for j, cell in enumerate(row)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    # Not a <caption>: that is as wide as its table, and would be cut off on a phone.
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    # tabindex: a region that scrolls sideways must be reachable by keyboard.
    return (
        f'{caption}<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
