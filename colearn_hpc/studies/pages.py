"""A report as text: one HTML page that needs nothing else, and the same as Markdown with figures in files beside it.

What comes from a run folder is escaped by the templates' environments, not by those who remember to.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from colearn_hpc.studies.blocks import Block

_TEMPLATES = Path(__file__).with_name("templates")
_MEANS_SOMETHING = re.compile(r"[\\`*\[\]|~]")  # in the middle of a line of Markdown
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole HTML page."""
    script = (_TEMPLATES / "report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment(markdown=False)
        .get_template("report.html.j2")
        .render(
            title=title,
            blocks=blocks,
            style=(_TEMPLATES / "report.css").read_text(),
            script=script,
            script_hash=Markup(f"sha256-{digest}"),
        )
    )


def markdown(blocks: Sequence[Block]) -> str:
    """The whole Markdown text; figures are ``figures/NAME.svg`` beside it."""
    text = _environment(markdown=True).get_template("report.md.j2").render(blocks=blocks)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@functools.cache
def _environment(markdown: bool) -> Environment:
    """The templates; every text that they print is escaped, as HTML or as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=not markdown,
        finalize=_escaped if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["raw"] = Markup
    return environment


def _escaped(value: Any) -> Any:
    """One line of Markdown that shows the text as it is, whatever it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = " ".join(value.split())
    return _MEANS_SOMETHING.sub(r"\\\g<0>", text.translate(_ENTITIES))
