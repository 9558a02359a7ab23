"""Unpickling of arrays, bytes, text, numbers, lists and dictionaries, and of nothing else.

A pickle is a program; loading a downloaded one with ``pickle.load`` runs whatever it says. Here the only callables
it can name are the few that NumPy's own arrays need.
"""

from __future__ import annotations

import codecs
import io
import pickle
from typing import Any

import numpy as np

from colearn_hpc.errors import DataError


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return _encode
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # wherever this NumPy keeps it
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _from_buffer
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data file needs")


def unpickle(content: bytes) -> Any:
    """Load a pickle that holds data only. Python 2's strings come as bytes.

    Args:
        content: the pickle.

    Raises:
        DataError: damaged, or asking for anything else than data. The message is a phrase; the caller names the file.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle can raise nearly anything, MemoryError for an absurd length included.
    except Exception as error:
        raise DataError(f"is no readable pickle of arrays: {error or type(error).__name__}") from error


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return codecs.encode(text, "latin1")


def _from_buffer(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)
