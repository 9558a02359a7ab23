"""Plain data: what data centers may say to each other, as bytes and back.

None, bool, int, float, str, bytes, lists and dicts with text as keys; nothing else. What another organisation sent is
parsed within limits and never unpickled: a pickle may run any code.
"""

from __future__ import annotations

import base64
import json
from typing import Any

LIMIT = 64 << 20  # bytes of one message; the names of a very large model's parameters take a few MiB
DEPTH = 16
_BYTES = "\0bytes"  # the only key of a dict that stands for bytes


class PlainError(ValueError):
    """What came is not plain data, or too much of it."""


def encode(value: Any) -> bytes:
    """The value as bytes; the same bytes for the same value.

    Raises:
        PlainError: it holds something that is not plain.
    """
    ready = _ready(value, 0)
    try:
        return json.dumps(ready, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError as error:  # an integer with more digits than Python writes
        raise PlainError(str(error)) from None


def decode(message: bytes, limit: int = LIMIT) -> Any:
    """What :func:`encode` made.

    Args:
        message: from another data center.
        limit: bytes.

    Raises:
        PlainError: the message is too long, nested too deep, or not of this form.
    """
    if len(message) > limit:
        raise PlainError(f"a message of {len(message)} bytes; at most {limit} are taken")
    try:
        return _read(json.loads(bytes(message).decode("utf-8", "surrogatepass")), 0)
    except (ValueError, RecursionError) as error:
        if isinstance(error, PlainError):
            raise
        raise PlainError(f"a message that is no plain data: {type(error).__name__}") from None


def _ready(value: Any, depth: int) -> Any:
    if depth > DEPTH:
        raise PlainError(f"data nested deeper than {DEPTH}")
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [_ready(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value) or _BYTES in value:
            raise PlainError(f"keys must be text: {list(value)!r:.200}")
        return {key: _ready(item, depth + 1) for key, item in value.items()}
    # An exact class: subclasses such as NumPy's numbers and enums would come back as something else.
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise PlainError(f"a {type(value).__name__} cannot be sent to another data center")


def _read(value: Any, depth: int) -> Any:
    if depth > DEPTH:
        raise PlainError(f"data nested deeper than {DEPTH}")
    if isinstance(value, list):
        return [_read(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if _BYTES in value:
            if len(value) != 1 or not isinstance(value[_BYTES], str):
                raise PlainError("a key that is reserved")
            return base64.b64decode(value[_BYTES], validate=True)
        return {key: _read(item, depth + 1) for key, item in value.items()}
    return value
