"""Word vectors as the first layer of a text network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from colearn_hpc.errors import ConfigurationError

PADDING = 0
"""The token that fills a comment up to its length; the vocabulary's words begin above it."""


def build_embedding(
    embedding: str | None, vocabulary_size: int | None, embedding_dim: int, train_embedding: bool | None
) -> nn.Embedding:
    """Word vectors from a file, or new ones.

    Vectors that are not trained are a parameter with ``requires_grad=False``. A frozen parameter is not sent to other
    data centers, and a float buffer would be. (fastText's vectors for 300,000 words take 343 MiB, the BiGRU on top of
    them 0.7 MiB.) A parameter is in the checkpoint too, so a checkpoint can be used without the file.

    Args:
        embedding: A file with a float matrix (words, dimensions): a row for each token, row 0 for padding. Either
            ``.npy``, or ``.h5`` / ``.hdf5`` with a data set ``embedding`` or with only one two-dimensional data set.
            ``None``: random vectors.
        vocabulary_size: Number of rows. Needed if there is no file. If there is one, it may be left out, and must be
            the file's otherwise.
        embedding_dim: Number of dimensions if there is no file; a file has its own.
        train_embedding: Whether training changes the vectors. ``None``: it changes random ones, and not those of a
            file.

    Returns:
        An embedding with ``padding_idx=0``: that row gets no gradient.

    Raises:
        ConfigurationError: Neither a file nor a size is given, the file cannot be read or has another form, or its
            number of rows is not ``vocabulary_size``.
    """
    train = embedding is None if train_embedding is None else train_embedding
    if embedding is None:
        if vocabulary_size is None or vocabulary_size < 2:
            raise ConfigurationError(
                f"vocabulary_size={vocabulary_size} and no embedding file: set network_args.embedding to the "
                "matrix that was made with the data, or network_args.vocabulary_size to 2 or more"
            )
        layer = nn.Embedding(vocabulary_size, embedding_dim, padding_idx=PADDING)
        layer.weight.requires_grad_(train)
        return layer
    matrix = torch.from_numpy(_read(Path(embedding)))
    if vocabulary_size is not None and vocabulary_size != len(matrix):
        raise ConfigurationError(
            f"vocabulary_size={vocabulary_size}, but {embedding} has {len(matrix)} rows; leave vocabulary_size out, "
            "or give the matrix that was made with this data"
        )
    return nn.Embedding.from_pretrained(matrix, freeze=not train, padding_idx=PADDING)


def lengths_of(tokens: Tensor) -> Tensor:
    """Number of tokens in each row up to the last one that is not padding, at least 1.

    Shapes: (batch, time) int64 -> (batch,) int64.
    """
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return ((tokens != PADDING) * positions).amax(dim=1).clamp(min=1)


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    hint = (
        "It is written when the text data is prepared. To open a checkpoint where the file is not, override "
        "network_args with embedding: null and the file's vocabulary_size (the vectors are in the checkpoint)"
    )
    if not path.is_file():
        raise ConfigurationError(f"embedding={path}: there is no such file here. {hint}")
    try:
        # np.load refuses pickles by default: a matrix file cannot run code.
        matrix = _read_hdf5(path) if path.suffix in (".h5", ".hdf5") else np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigurationError(f"embedding={path}: cannot be read as .npy or .h5: {error}") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind != "f" or 0 in matrix.shape:
        found = f"{matrix.dtype} {matrix.shape}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
        raise ConfigurationError(f"embedding={path}: found {found}, wanted a float matrix (words, dimensions)")
    return np.ascontiguousarray(matrix, dtype=np.float32)


def _read_hdf5(path: Path) -> Any:
    import h5py

    with h5py.File(path, "r") as file:
        flat = [name for name, item in file.items() if isinstance(item, h5py.Dataset) and item.ndim == 2]
        name = "embedding" if "embedding" in file else flat[0] if len(flat) == 1 else None
        if name is None:
            raise ValueError(f"no data set 'embedding', and not exactly one two-dimensional one among {list(file)}")
        return file[name][...]
