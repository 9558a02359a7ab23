"""CIFAR-10: pickles, binary and images give the same shards; a hostile pickle runs nothing."""

import hashlib
import pickle

import numpy as np
import pytest
from miniatures import (
    CIFAR_CLASSES,
    cifar10,
    cifar10_binary_files,
    cifar10_pickle_files,
    cifar_labels,
    image_bytes,
    images,
    python2_pickle,
    write_folder,
    write_tar,
    write_zip,
)

from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.data.sources import cifar10 as cifar10_module
from colearn_hpc.data.sources.cifar10 import Cifar10
from colearn_hpc.data.sources.imagefolder import ImageFolder
from colearn_hpc.errors import DataError

NAMES = ("a", "b", "c")


def packed(source, out, **options):
    return pack(source, Request(out, NAMES, **options))


def arrays(folder, name):
    dataset = ShardDataset(folder / f"{name}.h5")
    x, y = dataset[list(range(len(dataset)))]
    return x.numpy(), y.numpy()


def by_class(n_train, n_test):
    """Images in the order in which imagefolder lists them, so that the partition is the same, and their files."""
    labels = sorted(cifar_labels(n_train)) + sorted(cifar_labels(n_test))
    pixels = images(n_train + n_test, size=32)
    splits = ["train"] * n_train + ["test"] * n_test
    files = {
        f"{split}/{CIFAR_CLASSES[label]}/{i:05d}.png": image_bytes(pixels[i])
        for i, (split, label) in enumerate(zip(splits, labels, strict=True))
    }
    return pixels, labels, files


def test_pickles_and_images_give_byte_identical_shards(tmp_path):
    """The same images through imagefolder and through a pickle folder made from them."""
    pixels, labels, files = by_class(100, 20)
    packed(ImageFolder(str(write_zip(tmp_path / "images.zip", files))), tmp_path / "from_images")
    source = write_folder(tmp_path / "cifar", cifar10_pickle_files(pixels, labels, 20))
    packed(Cifar10(str(source)), tmp_path / "from_pickles")
    for name in (*NAMES, "test"):
        (x, y), (x2, y2) = arrays(tmp_path / "from_images", name), arrays(tmp_path / "from_pickles", name)
        assert x.tobytes() == x2.tobytes() and y.tobytes() == y2.tobytes()
        info, info2 = (ShardDataset(tmp_path / f / f"{name}.h5").info for f in ("from_images", "from_pickles"))
        assert (info.classes, info.metadata["mean"], info.metadata["std"]) == (
            info2.classes,
            info2.metadata["mean"],
            info2.metadata["std"],
        )


@pytest.mark.parametrize("form", ["binary folder", "pickle tar.gz", "binary tar.gz", "pickle zip", "inner folder"])
def test_all_forms_give_the_same_shards(tmp_path, form):
    packed(Cifar10(str(cifar10(tmp_path / "plain"))), tmp_path / "expected")
    make = cifar10_binary_files if form.startswith("binary") else cifar10_pickle_files
    files = make(images(60, size=32), cifar_labels(60), 10)
    files = {name: files[name] for name in reversed(list(files))}  # an archive's order must not matter
    if form.endswith("tar.gz"):
        source = write_tar(tmp_path / "mine.tar.gz", files)
    elif form.endswith("zip"):
        source = write_zip(tmp_path / "mine.zip", files)
    else:
        source = write_folder(tmp_path / "mine", files)
    packed(Cifar10(str(source)), tmp_path / "out")
    for name in (*NAMES, "test"):
        found = sorted(zip(*(a.tolist() for a in arrays(tmp_path / "out", name)), strict=True))
        assert found == sorted(zip(*(a.tolist() for a in arrays(tmp_path / "expected", name)), strict=True))


def test_python_3_pickles_are_read_too(tmp_path):
    for protocol in (2, 5):
        files = cifar10_pickle_files(images(60, size=32), cifar_labels(60), 10)
        rewritten = {
            n: pickle.dumps(pickle.loads(c, encoding="bytes"), protocol)
            for n, c in files.items()
            if "batch" in n and "html" not in n
        }
        manifest = packed(
            Cifar10(str(write_folder(tmp_path / f"p{protocol}", rewritten))), tmp_path / f"o{protocol}"
        ).manifest
        assert manifest["classes"] == list(CIFAR_CLASSES)


def test_unofficial_files_in_a_folder_are_noted(tmp_path):
    source = cifar10(tmp_path)
    assert "differ from the official" in packed(Cifar10(str(source)), tmp_path / "out").notes[0]
    assert packed(Cifar10(str(source), checksum=False), tmp_path / "out2").notes == ()


def test_an_archive_with_an_official_name_must_have_its_checksum(tmp_path, monkeypatch):
    files = cifar10_pickle_files(images(60, size=32), cifar_labels(60), 10)
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", files)
    with pytest.raises(DataError, match=r"MD5 .* official file has c58f.*--no-checksum"):
        packed(Cifar10(str(path)), tmp_path / "out")
    packed(Cifar10(str(path), checksum=False), tmp_path / "out")
    monkeypatch.setitem(cifar10_module.ARCHIVES, path.name, hashlib.md5(path.read_bytes()).hexdigest())
    assert "that of the official file" in packed(Cifar10(str(path)), tmp_path / "out2").notes[0]


class Evil:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('EVIL').touch()",)


DATA = np.zeros((10, 3072), np.uint8)
LABELS = list(range(10))


def entry(**change):
    return python2_pickle({"data": DATA, "labels": LABELS} | change)


def protocol2(item):
    return pickle.dumps(item, 2)


# What data_batch_3 is -> what must be said.
BAD_PICKLES = {
    "empty": (b"", "no readable pickle"),
    "NUL bytes": (bytes(100), "no readable pickle"),
    "text": (b"hello", "no readable pickle"),
    "cut": (entry()[:-2000], "no readable pickle"),
    "cut in the head": (entry()[:20], "no readable pickle"),
    "html": (b"<html>404</html>", "no readable pickle"),
    "runs code": (pickle.dumps(Evil()), "eval"),
    "runs code inside": (protocol2({"data": DATA, "labels": [Evil()]}), "eval"),
    "os.system": (b"cos\nsystem\n(S'touch EVIL'\ntR.", "os.system|posix.system"),
    "builtins.exec": (b"c__builtin__\nexec\n(S'1'\ntR.", "exec"),
    "numpy function": (b"cnumpy\nload\n(S'EVIL'\ntR.", "numpy.load"),
    "other codec": (b"c_codecs\nencode\n(Va\nVpunycode\ntR.", "encodes something else than bytes"),
    "a class": (pickle.dumps(np.random.RandomState(0)), "asks for"),
    "array of a terabyte": (b"cnumpy\nndarray\n((I1099511627776\ntS'f8'\ntR.", "no readable pickle"),
    "a list": (protocol2([1, 2]), "holds a list"),
    "no data": (python2_pickle({"labels": LABELS}), "has data NoneType"),
    "no labels": (python2_pickle({"data": DATA}), "no list of labels"),
    "data of floats": (protocol2({"data": DATA.astype(np.float32), "labels": LABELS}), "data float32"),
    "data too narrow": (entry(data=DATA[:, :3000]), r"\(10, 3000\)"),
    "data not flat": (protocol2({"data": DATA.reshape(10, 3, 32, 32), "labels": LABELS}), "data uint8"),
    "fewer labels": (entry(labels=LABELS[:9]), "10 images and 9 labels"),
    "no images": (entry(data=DATA[:0], labels=[]), "0 images"),
    "labels as text": (python2_pickle({"data": DATA, "labels": ["cat"] * 10}), "no list of labels"),
    "labels as floats": (protocol2({"data": DATA, "labels": [1.0] * 10}), "no list of labels"),
    "label 10": (entry(labels=[*LABELS[:9], 10]), "label 10 at image 9"),
    "label negative": (entry(labels=[-1, *LABELS[1:]]), "label -1 at image 0"),
    "NumPy's constructor over bytes": (
        b"\x80\x02cnumpy\nndarray\n(K\x01\x85X\x01\x00\x00\x00OC\x08AAAAAAAAtR.",
        "an array of memory that it names itself",
    ),
    "an array of objects": (protocol2({"data": np.array([None]), "labels": LABELS}), "'O8', which is no plain number"),
    "an array of structures": (
        protocol2({"data": np.zeros(3, dtype=[("a", "i8")]), "labels": LABELS}),
        "'V8', which is no plain number",
    ),
    "an array of text": (protocol2({"data": np.array(["abc"]), "labels": LABELS}), "'U3', which is no plain number"),
    "fewer bytes than the shape": (entry().replace(b"J\x0a\0\0\0J\x00\x0c\0\0", b"J\x0b\0\0\0J\x00\x0c\0\0"), "needs"),
    "a state for a function": (
        b"\x80\x02c_codecs\nencode\n(N}(X\x0c\0\0\0__defaults__(X\x05\0\0\0utf-8tutb.",
        "sets '__defaults__' of a function",
    ),
    "a number that claims memory": (b"\x80\x02Nr\xff\xff\xff\x7f.", "numbers an object 2147483647"),
    "a length that claims memory": (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.", "no readable pickle"),
    "tuples of tuples as a key": (
        b"\x80\x02})q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b"K\x01s.",
        "the same tuples again and again",
    ),
    "the extension registry": (b"\x80\x02\x82\x01.", "instruction EXT1"),
    "a persistent id": (b"Pfoo\n.", "instruction PERSID"),
    "a new object": (b"\x80\x02cnumpy\ndtype\n)\x81.", "instruction NEWOBJ"),
    "label huge": (protocol2({"data": DATA, "labels": [10**30, *LABELS[1:]]}), "a label of 1000"),
}


@pytest.mark.parametrize("what", BAD_PICKLES)
def test_damaged_and_hostile_pickles_are_refused_and_run_nothing(tmp_path, monkeypatch, what):
    content, message = BAD_PICKLES[what]
    monkeypatch.chdir(tmp_path)
    source = cifar10(tmp_path / "cifar")
    (source / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        packed(Cifar10(str(source)), tmp_path / "out")
    assert "data_batch_3" in str(caught.value)
    assert not (tmp_path / "EVIL").exists() and not (tmp_path / "out").exists()


BAD_FOLDERS = {
    "batch missing": ("pickle", lambda f: (f / "data_batch_4").unlink(), "data_batch_4 not found"),
    "test missing": ("binary", lambda f: (f / "test_batch.bin").unlink(), "test_batch not found"),
    "binary cut": ("binary", lambda f: (f / "data_batch_2.bin").write_bytes(bytes(3073 * 3 - 1)), "cut short"),
    "binary empty": ("binary", lambda f: (f / "data_batch_2.bin").write_bytes(b""), "has 0 bytes"),
    "binary label": ("binary", lambda f: (f / "data_batch_2.bin").write_bytes(b"\x0b" + bytes(3072)), "label 11"),
    "meta damaged": ("pickle", lambda f: (f / "batches.meta").write_bytes(b"x"), "batches.meta is no readable pickle"),
    "meta without names": (
        "pickle",
        lambda f: (f / "batches.meta").write_bytes(python2_pickle({"a": 1})),
        "no label_names",
    ),
    "a batch twice": ("pickle", lambda f: write_folder(f / "copy", {"data_batch_1": b""}), "holds data_batch_1 twice"),
    "nothing": ("pickle", lambda f: [path.unlink() for path in f.iterdir()], "is no CIFAR-10"),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_incomplete_folders_are_refused(tmp_path, what):
    form, damage, message = BAD_FOLDERS[what]
    source = cifar10(tmp_path / "cifar", form=form)
    damage(source)
    with pytest.raises(DataError, match=message):
        packed(Cifar10(str(source)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
