"""The shard: one HDF5 file with the examples of one data center (format version 1).

Attributes of the root group
    format        ``"colearn-shard"``
    version       ``1``
    task          ``"classification"`` | ``"multilabel"``
    classes       JSON list of names; a label is a position in it
    source        name of the source that wrote it
    encoding      how ``x`` is stored: ``"array"`` | ``"tokens"`` | ``"jpeg"``
    kind          what an example is: ``"image"`` | ``"wave"`` | ``"features"`` | ``"tokens"``
    scale, offset optional; the value handed to the network is ``x * scale + offset``
    mean, std     optional; per channel, of the training data of all data centers, after scale and offset
    sample_rate   waves: samples per second
    vocabulary    tokens: the same text where all words have the same numbers (``vocabulary_size``: how many)
    layout        optional; what the numbers of an example are: names and units of features, in order
    …             anything else is free metadata: numbers, text, or a list of numbers

All but ``source``, ``mean``, ``std`` and the free metadata give the numbers their meaning
(:attr:`ShardInfo.meaning`), and must be equal in all data centers that train one model.

Datasets
    x        ``array``:  (N, …), contiguous, any integer or float type. Images are (N, C, H, W) uint8: planes first,
                         as networks want them, so that no batch is ever transposed
             ``tokens``: (N, T) int32 word numbers, 0 = padding
             ``jpeg``:   (total bytes,) uint8, the image files one after the other
    offsets  ``jpeg`` only: (N + 1,) int64, example i is ``x[offsets[i]:offsets[i + 1]]``
    y        ``classification``: (N,) int64, 0 ≤ y < classes
             ``multilabel``:     (N, classes) int8, 1 = has it, 0 = has it not, −1 = nobody knows (masked)

All data sets are contiguous and uncompressed, so a row is a known range of the file and is read past HDF5. That is
several times as fast as HDF5's own ways (``benchmarks/loader.py`` measures it), and needs no care across forks.
Bytes and offsets give ten times the speed of HDF5's variable-length types.
"""

from colearn_hpc.data.shard_dataset import ShardDataset
from colearn_hpc.data.shard_info import (
    ENCODINGS,
    FORMAT,
    KINDS,
    TASKS,
    VERSION,
    ShardInfo,
    ShardReport,
    check_shard,
    read_info,
)
from colearn_hpc.data.shard_writer import ShardWriter

__all__ = [
    "ENCODINGS",
    "FORMAT",
    "KINDS",
    "TASKS",
    "VERSION",
    "ShardDataset",
    "ShardInfo",
    "ShardReport",
    "ShardWriter",
    "check_shard",
    "read_info",
]
