"""Every way a shard can be wrong: refused at open, with the file's name, what was found and what to do."""

import json

import h5py
import numpy as np
import pytest

from colearn_hpc.data.datamodule import ShardDataModule
from colearn_hpc.data.shards import ShardDataset, ShardWriter, check_shard, read_info
from colearn_hpc.errors import DataError


def edit(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def attribute(name, value):
    return edit(lambda file: file.attrs.__setitem__(name, value))


def replace(name, array):
    def change(file):
        if name in file:
            del file[name]
        if array is not None:
            file.create_dataset(name, data=array)

    return edit(change)


def label(position, value):
    return edit(lambda file: file["y"].__setitem__(position, value))


def cut(fraction):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


X, Y = np.zeros((10, 3, 4, 5), np.uint8), np.zeros(10, np.int64)


def announced_only(file):
    del file["x"]
    file.create_dataset("x", X.shape, X.dtype)


def as_group(file):
    del file["x"]
    file.create_group("x")


# What the damage is -> (how it is done, what the message must say).
DAMAGES = {
    "no file": (lambda path: path.unlink(), "(there is )?no (such )?shard"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "folder"),
    "zero bytes": (lambda path: path.write_bytes(b""), "0 bytes"),
    "text": (lambda path: path.write_text("hello"), "cannot be read as HDF5"),
    "a JPEG": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(500)), "cannot be read as HDF5"),
    "cut in the head": (cut(0.1), "cannot be read as HDF5"),
    "cut in the middle": (cut(0.5), "cannot be read as HDF5"),
    "last byte missing": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read as HDF5"),
    "other HDF5": (edit(lambda file: file.attrs.clear()), "format is None"),
    "other format": (attribute("format", "imagenet"), "format is 'imagenet'"),
    "next version": (attribute("version", 2), "version 2"),
    "version as text": (attribute("version", "one"), "version 'one'"),
    "unknown task": (attribute("task", "juggling"), "task is 'juggling'"),
    "unknown encoding": (attribute("encoding", "zip"), "encoding is 'zip'"),
    "unknown kind": (attribute("kind", "smell"), "kind is 'smell'"),
    "no classes": (attribute("classes", "[]"), "classes must be"),
    "classes no JSON": (attribute("classes", "cat, dog"), "classes must be"),
    "classes numbers": (attribute("classes", json.dumps([1, 2, 3])), "classes must be"),
    "x missing": (replace("x", None), "no data set 'x' .found: y"),
    "y missing": (replace("y", None), "no data set 'y'"),
    "x compressed": (edit(lambda f: compressed(f)), "chunked or compressed"),
    "x a group": (edit(as_group), "no data set 'x'"),
    "x never written": (edit(announced_only), "never written"),
    "fewer x": (replace("x", X[:9]), "x holds 9 examples but y holds 10"),
    "more x": (replace("x", np.zeros((11, 3, 4, 5), np.uint8)), "x holds 11 examples"),
    "x flat": (replace("x", np.zeros(10, np.uint8)), r"x has shape \(10,\)"),
    "x without numbers": (replace("x", np.zeros((10, 0, 5), np.uint8)), "at least one number"),
    "x text": (replace("x", np.full((10, 2), b"abc")), "integers or floats"),
    "x complex": (replace("x", np.zeros((10, 2), np.complex64)), "integers or floats"),
    "y floats": (replace("y", Y.astype(np.float64)), "y has type float64"),
    "y int32": (replace("y", Y.astype(np.int32)), "y has type int32"),
    "y two-dimensional": (replace("y", np.zeros((10, 3), np.int64)), r"y has shape \(10, 3\)"),
    "y scalar": (replace("y", np.int64(3)), "y has shape"),
    "no example": (edit(lambda f: replace_all(f, X[:0], Y[:0])), "0 examples"),
    "label too large": (label(4, 3), "label 3 of example 4"),
    "label negative": (label(9, -1), "label -1 of example 9"),
    "multilabel form": (attribute("task", "multilabel"), "needs int8"),
    "jpeg form": (attribute("encoding", "jpeg"), "no data set 'offsets'"),
    "tokens of floats": (edit(lambda f: tokens_of_floats(f)), "needs integers"),
    "mean without std": (edit(lambda f: f.attrs.__delitem__("std")), "only one of"),
    "mean of two channels": (attribute("mean", [0.1, 0.2]), "expected 3 numbers"),
    "mean NaN": (attribute("mean", [0.1, np.nan, 0.2]), "not finite"),
    "std zero": (attribute("std", [0.1, 0.0, 0.2]), "std not above 0"),
    "scale a list": (attribute("scale", [1.0, 2.0]), "scale must be one number"),
}


def compressed(file):
    del file["x"]
    file.create_dataset("x", data=X, compression="gzip")


def replace_all(file, x, y):
    for name, array in (("x", x), ("y", y)):
        del file[name]
        file.create_dataset(name, data=array)


def tokens_of_floats(file):
    file.attrs["encoding"] = "tokens"
    del file["x"]
    file.create_dataset("x", data=np.zeros((10, 4), np.float32))


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_shard_is_refused_at_open(make_shard, what):
    path = make_shard(n=10)
    read_info(path)
    damage, message = DAMAGES[what]
    damage(path)
    for opener in (read_info, ShardDataset, check_shard, lambda p: ShardDataModule(str(p)).setup("fit")):
        with pytest.raises(DataError, match=message) as caught:
            opener(path)
        assert str(path) in str(caught.value)


OFFSETS = {
    "too few": lambda o: o[:-1],
    "start": lambda o: o + 1,
    "end": lambda o: np.concatenate([o[:-1], o[-1:] + 1]),
    "falling": lambda o: np.concatenate([o[:1], o[2:0:-1], o[3:]]),
    "an image without bytes": lambda o: np.concatenate([o[:1], o[2:3], o[2:]]),
    "type": lambda o: o.astype(np.int32),
}


@pytest.mark.parametrize("what", OFFSETS)
def test_offsets_that_do_not_cut_are_refused(tmp_path, what):
    path = tmp_path / "s.h5"
    with ShardWriter(path, task="classification", classes=["a"], encoding="jpeg", kind="image") as writer:
        for content in (b"one", b"three", b"five"):
            writer.append(content, 0)
    with h5py.File(path, "r+") as file:
        offsets = OFFSETS[what](file["offsets"][:])
        del file["offsets"]
        file.create_dataset("offsets", data=offsets)
    with pytest.raises(DataError, match="offsets"):
        read_info(path)


def test_check_reads_what_open_does_not(tmp_path):
    path = tmp_path / "s.h5"
    with ShardWriter(path, task="classification", classes=["a"]) as writer:
        for value in (0.0, 1.0, np.nan):
            writer.append(np.array([0, value], np.float32), 0)
    read_info(path)
    with pytest.raises(DataError, match="example 2 holds nan"):
        check_shard(path)


def test_check_knows_the_vocabulary(tmp_path):
    path = tmp_path / "s.h5"
    with ShardWriter(
        path, task="classification", classes=["a"], encoding="tokens", kind="tokens", metadata={"vocabulary_size": 5}
    ) as writer:
        writer.append(np.array([1, 4], np.int32), 0)
        writer.append(np.array([1, 5], np.int32), 0)
    with pytest.raises(DataError, match="example 1 holds 5"):
        check_shard(path)


def test_check_decodes_every_image(tmp_path):
    path = tmp_path / "s.h5"
    with ShardWriter(path, task="classification", classes=["a"], encoding="jpeg", kind="image") as writer:
        writer.append(b"\xff\xd8\xff but no JPEG", 0)
    read_info(path)
    with pytest.raises(DataError, match="example 0 is not a readable image"):
        check_shard(path)


def test_large_label_tables_are_sampled_at_open_and_read_by_check(make_shard, monkeypatch):
    monkeypatch.setattr("colearn_hpc.data.shard_info._CHEAP_LABEL_BYTES", 8)
    path = make_shard(n=2500)
    label(1200, 99)(path)
    read_info(path)
    with pytest.raises(DataError, match="label 99 of example 1200"):
        check_shard(path)
    label(2499, 98)(path)
    with pytest.raises(DataError, match="label 98 of example 2499"):
        read_info(path)
