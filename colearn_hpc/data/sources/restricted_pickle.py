"""Unpickling of arrays, bytes, text, numbers, lists and dictionaries, and of nothing else.

A pickle is a program; loading a downloaded one with ``pickle.load`` runs whatever it says. Three fences keep this one
from doing anything but describe data:

- before it runs, its instructions are read: only those that data need, and none that would claim memory beyond the
  file's own length
- the names it may ask for lead to stand-ins written here, never to NumPy's own ``ndarray`` and ``dtype``, whose
  constructors take addresses and offsets
- arrays are made when the pickle has ended, of plain number types, from bytes of exactly the right length
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colearn_hpc.errors import DataError

# fmt: off
_INSTRUCTIONS = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
))
# fmt: on
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_MOST_SHARED_TUPLES = 20  # arrays share the tuple of an empty shape
_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MOST_DIMENSIONS = 8


class _Dtype:
    """In place of ``numpy.dtype``: a number type by its name, and its byte order."""

    def __init__(self, name: Any, *flags: Any) -> None:
        text = _text(name)
        if not _TYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"it holds an array of type {text[:20]!r}, which is no plain number")
        self.name = text

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags, …): a plain number has an order only.
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of structures")
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds an array of byte order {order[:20]!r}")
        self.name = order + self.name.lstrip("<>|=")


class _Array:
    """In place of ``numpy.ndarray``: what is needed to make one later."""

    __slots__ = ("_bytes", "_dtype", "_fortran", "_shape")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("it holds an array without its five parts")
        self.fill(*state[1:])

    def fill(self, shape: Any, dtype: Any, fortran: Any, content: Any) -> _Array:
        if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS or any(type(n) is not int for n in shape):
            raise pickle.UnpicklingError("it holds an array whose shape is no tuple of a few numbers")
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray) or min(shape, default=0) < 0:
            raise pickle.UnpicklingError("it holds an array that is not made of a number type and bytes")
        expected = math.prod(shape) * np.dtype(dtype.name).itemsize
        if len(content) != expected:
            raise pickle.UnpicklingError(f"it holds an array of {len(content)} bytes whose shape needs {expected}")
        self._shape, self._dtype, self._fortran, self._bytes = shape, dtype.name, fortran is True, bytes(content)
        return self

    def array(self) -> NDArray[Any]:
        numbers = np.frombuffer(self._bytes, dtype=np.dtype(self._dtype))
        return numbers.reshape(self._shape, order="F" if self._fortran else "C")


class _Call:
    """A function that a pickle may call; without attributes that it could replace."""

    __slots__ = ("_kind",)
    _kind: str

    def __init__(self, kind: str) -> None:
        object.__setattr__(self, "_kind", kind)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name!r} of a function")

    def __call__(self, *arguments: Any) -> Any:
        if self._kind == "dtype":
            return _Dtype(*arguments)
        if self._kind == "reconstruct":  # (ndarray, (0,), b"b"): an empty array, filled by the state that follows
            return _Array()
        if self._kind == "frombuffer":  # (bytes, dtype, shape, order), how NumPy writes protocol 5
            content, dtype, shape, order = arguments
            return _Array().fill(shape, dtype, order == "F", content)
        if self._kind == "ndarray":  # only ever handed to _reconstruct
            raise pickle.UnpicklingError("it makes an array of memory that it names itself")
        text, encoding = arguments  # _codecs.encode, how Python 3 writes bytes in protocol 2
        if not isinstance(text, str) or _text(encoding) not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("it encodes something else than bytes")
        return text.encode("latin1")


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _Call("encode")
        if (module, name) == ("numpy", "dtype"):
            return _Call("dtype")
        if (module, name) == ("numpy", "ndarray"):
            return _Call("ndarray")
        if module in _NUMPY and name in ("_reconstruct", "_frombuffer"):
            return _Call(name.removeprefix("_"))
        raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}, which no data file needs")


def unpickle(content: bytes) -> Any:
    """Load a pickle that holds data only. Python 2's strings come as bytes.

    Args:
        content: the pickle.

    Returns:
        What it holds; an array, or a dictionary's arrays, as NumPy's. Arrays further inside are refused by whoever
        looks for numbers there: they stay stand-ins.

    Raises:
        DataError: damaged, or asking for anything else than data. The message is a phrase; the caller names the file.
    """
    try:
        _check_instructions(content)
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if isinstance(found, dict):
            return {key: _real(value) for key, value in found.items()}
        return _real(found)
    # A damaged pickle can raise nearly anything, MemoryError for an absurd length included.
    except Exception as error:
        raise DataError(f"is no readable pickle of arrays: {error or type(error).__name__}") from error


def _check_instructions(content: bytes) -> None:
    before = ""
    numbered, shared = 0, 0
    tuples: set[int] = set()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(content), start=1):
        name = instruction.name
        if name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it has the instruction {name}, which no data file needs")
        if name in _PUTS or name == "MEMOIZE":
            number = numbered if name == "MEMOIZE" else int(argument or 0)
            # The unpickler makes room for the number alone: four bytes would claim 32 GiB.
            if number > count:
                raise pickle.UnpicklingError(f"it numbers an object {number} after {count} instructions")
            numbered += 1
            if "TUPLE" in before:
                tuples.add(number)
        elif name in _GETS and int(argument or 0) in tuples:
            # Tuples that hold each other twice, thirty levels deep, take an hour to be a dictionary's key.
            shared += 1
            if shared > _MOST_SHARED_TUPLES:
                raise pickle.UnpicklingError("it uses the same tuples again and again")
        before = name


def _real(value: Any) -> Any:
    return value.array() if isinstance(value, _Array) else value


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a name belongs")
    return value.decode("latin1") if isinstance(value, bytes) else value
