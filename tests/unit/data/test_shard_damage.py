"""Every way a shard can be wrong: refused at open, with the file's name, what was found and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    "x a link to another file": (
        edit(lambda f: link(f, h5py.ExternalLink("images.h5", "/x"))),
        "a link to images.h5:/x",
    ),
    "x a link inside": (edit(lambda f: link(f, h5py.SoftLink("/moved"))), "'x' is a link to /moved"),
    "x a link to nothing": (edit(lambda f: link(f, h5py.SoftLink("/gone"), keep=False)), "'x' is a link to /gone"),
    "x in another file": (edit(lambda f: elsewhere(f)), "lies in another file"),
    "x a view": (edit(lambda f: virtual(f)), "a view of other data sets"),
    "x of the other byte order": (replace("x", np.ones((10, 4), ">f4")), "byte order of another machine .>f4."),
    "y of the other byte order": (replace("y", Y.astype(">i8")), "byte order of another machine .>i8."),
    "x of 12 bits in 16": (edit(lambda f: twelve_bits(f)), "a form of its own that HDF5 converts to"),
    "x an enumeration": (edit(lambda f: enumeration(f)), "a form of its own|integers or floats"),
    "an attribute without end": (attribute("day", np.zeros(7000)), "attribute day has 7000 values"),
    "scale no number": (attribute("scale", np.nan), "scale must be one number"),
    "classes twice": (attribute("classes", json.dumps(["cat", "dog", "cat"])), "of different names"),
    "scale a list": (attribute("scale", [1.0, 2.0]), "scale must be one number"),
}


def compressed(file):
    del file["x"]
    file.create_dataset("x", data=X, compression="gzip")


def link(file, target, keep=True):
    if keep:
        file.move("x", "moved")
    else:
        del file["x"]
    file["x"] = target


def elsewhere(file):
    (Path(file.filename).parent / "raw").write_bytes(X.tobytes())
    del file["x"]
    file.create_dataset("x", X.shape, X.dtype, external=[("raw", 0, X.nbytes)])


def virtual(file):
    file.move("x", "real")
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource(file["real"])
    file.create_virtual_dataset("x", layout)


def twelve_bits(file):
    del file["x"]
    kind = h5py.h5t.NATIVE_UINT16.copy()
    kind.set_precision(12)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((10, 4))).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.ones((10, 4), np.uint16)
    )


def enumeration(file):
    del file["x"]
    file.create_dataset("x", data=np.ones((10, 4), np.uint8), dtype=h5py.enum_dtype({"a": 0, "b": 1}, basetype="u1"))


def replace_all(file, x, y):
    for name, array in (("x", x), ("y", y)):
        del file[name]
        file.create_dataset(name, data=array)


def tokens_of_floats(file):
    file.attrs["encoding"] = "tokens"
    del file["x"]
    file.create_dataset("x", data=np.zeros((10, 4), np.float32))


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_shard_is_refused_at_open(make_shard, monkeypatch, what):
    monkeypatch.setattr("colearn_hpc.data.shard_file._MOST_VALUES", 1000)
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


def test_a_link_never_leads_to_the_rows_of_another_file(tmp_path):
    """HDF5 would follow it; rows read past HDF5 would be those at the other file's place in this one."""
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["x"] = np.arange(200, dtype=np.uint8).reshape(50, 4)
    path = tmp_path / "dc0.h5"
    with ShardWriter(path, task="classification", classes=["a", "b"]) as writer:
        for i in range(50):
            writer.append(np.zeros(4, np.uint8), i % 2)
    link_to_it = edit(lambda file: link(file, h5py.ExternalLink("images.h5", "/x")))
    link_to_it(path)
    for preload in (True, False):
        with pytest.raises(DataError, match="a shard holds its own"):
            ShardDataset(path, preload)


def test_a_shard_behind_a_user_block_is_read_at_its_place(tmp_path, make_shard):
    plain = make_shard(n=10)
    path = tmp_path / "block.h5"
    with h5py.File(plain) as source, h5py.File(path, "w", userblock_size=1024) as file:
        file.attrs.update(source.attrs)
        for name in ("x", "y"):
            file.create_dataset(name, data=source[name][...])
    for preload in (True, False):
        assert (ShardDataset(path, preload)[[3, 4]][0] == ShardDataset(plain)[[3, 4]][0]).all()


def test_a_fifo_is_no_shard_and_hangs_nobody(tmp_path):
    os.mkfifo(tmp_path / "s.h5")
    with pytest.raises(DataError, match="is no regular file"):
        read_info(tmp_path / "s.h5")


HOLD = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+', locking=True); print('held', flush=True); sys.stdin.read()"


def test_a_shard_that_another_program_has_locked(make_shard, monkeypatch):
    path = make_shard(n=10)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        module = ShardDataModule(str(path))
        module.setup("fit")
        assert module.fingerprint() and module.meaning()  # we ask for no lock
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")  # overrules us
        program = "import sys; from colearn_hpc.data.shards import read_info; read_info(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
        assert "dc0.h5: is locked by another program, or lies on a file system without locks; wait" in done.stderr
    finally:
        holder.communicate(timeout=60)


def test_a_shard_whose_writer_was_killed(tmp_path):
    path = tmp_path / "s.h5"
    program = (
        f"import h5py, os; f = h5py.File({str(path)!r}, 'w', libver='latest'); f.attrs['a'] = 1; f.flush(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(DataError, match="is marked as open for writing: a program writes it now, or was killed"):
        read_info(path)


def test_a_shape_that_outgrew_its_numbers(make_shard):
    path = make_shard(n=10)
    content = path.read_bytes()
    shape = (10).to_bytes(8, "little") + b"".join(n.to_bytes(8, "little") for n in (3, 4, 5))
    assert content.count(shape) >= 1
    path.write_bytes(content.replace(shape, (2**40).to_bytes(8, "little") + shape[8:]))
    with pytest.raises(DataError, match="data set 'x' cannot be opened: "):
        read_info(path)
