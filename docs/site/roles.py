"""For the reference: roles of reStructuredText in our docstrings become code."""

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """``:class:`~a.b.C` `` is shown as ``C``."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", obj.docstring.value)
