"""Texts and numbers as people read them, in reports and on terminals."""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime

_SIGNS = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's control, format and surrogate characters, and its line ends


def printable(text: str) -> str:
    """The text with every control character spelled out, so that it cannot steer a terminal: ``\\x1b`` for an escape.

    Direction marks are among them: they make a line read as something that it is not. Line ends and tabs stay:
    tracebacks have them.
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(_spelled(sign) if _steers(sign) else sign for sign in text)


def _steers(sign: str) -> bool:
    return unicodedata.category(sign) in _SIGNS and sign not in "\n\t"


def _spelled(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def date(seconds: float) -> str:
    """A moment, given in seconds since 1970, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def times(factor: float) -> str:
    """A factor for people: two digits that mean something."""
    return f"{factor:,.0f} ×" if factor >= 10 else f"{factor:.1f} ×"


def megabytes(number: float) -> str:
    """Bytes in MB, without the unit."""
    return f"{number / 1e6:,.2f}" if number < 1e8 else f"{number / 1e6:,.0f}"


def is_percent(metric: str) -> bool:
    """Whether people read a metric in percent, by its name."""
    return any(part in metric for part in ("acc", "auc", "map"))


def value(number: float, metric: str, sign: bool = False, unit: bool = False) -> str:
    """A metric for people: accuracies and areas in percent, with `` %`` where the unit is asked for."""
    if not math.isfinite(number):
        return "—"
    plus = "+" if sign else ""
    if is_percent(metric):
        return f"{100 * number:{plus}.2f}{' %' if unit else ''}"
    return f"{number:{plus}.4g}"
