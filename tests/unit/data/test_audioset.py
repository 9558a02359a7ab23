"""AudioSet: packed embeddings and log-mel arrive bit for bit; wrong keys, shapes and types are named."""

import h5py
import numpy as np
import pytest
import torch
from miniatures import audioset

from colearn_hpc.data.datamodule import ShardDataModule
from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.data.sources.audioset import AudioSet
from colearn_hpc.errors import DataError

NAMES = ("a", "b", "c")


def packed(source, out, **options):
    return pack(source, Request(out, NAMES, **options))


def original(folder, *files):
    found = []
    for name in files:
        with h5py.File(folder / f"{name}.h5") as file:
            found += [
                (x.tobytes(), y.astype(np.int8).tobytes()) for x, y in zip(file["x"][:], file["y"][:], strict=True)
            ]
    return sorted(found)


def shards(folder, *names):
    found = []
    for name in names:
        dataset = ShardDataset(folder / f"{name}.h5")
        for i in range(len(dataset)):
            x, y = dataset[i]
            found.append((x.numpy().tobytes(), y.numpy().tobytes()))
    return sorted(found)


@pytest.mark.parametrize("logmel", [False, True])
@pytest.mark.parametrize(
    ("train", "files"),
    [("balanced", ("bal_train",)), ("unbalanced", ("unbal_train",)), ("both", ("bal_train", "unbal_train"))],
)
def test_every_clip_arrives_bit_for_bit(tmp_path, logmel, train, files):
    source = audioset(tmp_path / "in", logmel, classes=20)
    manifest = packed(AudioSet(str(source), train), tmp_path / "out").manifest
    assert shards(tmp_path / "out", *NAMES) == original(source, *files)
    assert shards(tmp_path / "out", "test") == original(source, "eval")
    assert manifest["classes"][3] == "Sound 3, loud" and manifest["task"] == "multilabel"


def test_embeddings_reach_the_network_scaled_and_log_mel_as_it_is(tmp_path):
    for logmel in (False, True):
        packed(AudioSet(str(audioset(tmp_path / f"in{logmel}", logmel)), "balanced"), tmp_path / f"out{logmel}")
        data = ShardDataModule(str(tmp_path / f"out{logmel}" / "a.h5"))
        data.setup("fit")
        x, y = next(iter(data.train_dataloader()))
        expected = x if logmel else (x.float() - 128) / 128
        assert torch.allclose(data.ready(x), expected, atol=1e-6) and y.shape[1] == 527


def test_labels_are_not_held_in_memory(tmp_path):
    contents = AudioSet(str(audioset(tmp_path / "in"))).scan()
    assert dict(contents.labels) == {"train": 36, "test": 12}


def test_only_random_parts_are_possible(tmp_path):
    source = str(audioset(tmp_path / "in"))
    for rule in ("dirichlet", "by-class"):
        with pytest.raises(DataError, match="use iid"):
            packed(AudioSet(source), tmp_path / "out", rule=rule, alpha=1.0)


def test_without_names_classes_are_numbered(tmp_path):
    source = audioset(tmp_path / "in", classes=4)
    (source / "class_labels_indices.csv").unlink()
    assert packed(AudioSet(str(source)), tmp_path / "out").manifest["classes"] == [
        "class000",
        "class001",
        "class002",
        "class003",
    ]


def change(name, **arrays):
    def damage(folder):
        with h5py.File(folder / f"{name}.h5", "r+") as file:
            for key, array in arrays.items():
                del file[key]
                if array is not None:
                    file.create_dataset(key, data=array)

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    content = (folder / "bal_train.h5").read_bytes()
    (folder / "bal_train.h5").write_bytes(content[: len(content) // 2])


def flip(folder):
    """Damage one compressed chunk: the head is whole, the content is not."""
    with h5py.File(folder / "eval.h5") as file:
        at = file["x"].id.get_chunk_info(5).byte_offset
    content = bytearray((folder / "eval.h5").read_bytes())
    content[at : at + 40] = bytes(40)
    (folder / "eval.h5").write_bytes(bytes(content))


X, Y = np.zeros((12, 10, 128), np.uint8), np.zeros((12, 20), bool)
BAD = {
    "train missing": (lambda f: (f / "bal_train.h5").unlink(), "bal_train.h5: is missing"),
    "eval missing": (lambda f: (f / "eval.h5").unlink(), "eval.h5: is missing"),
    "zero bytes": (write("eval.h5", b""), "cannot be read as HDF5"),
    "text": (write("eval.h5", b"hello"), "cannot be read as HDF5"),
    "NUL bytes": (write("eval.h5", bytes(4096)), "cannot be read as HDF5"),
    "cut": (cut, "cannot be read as HDF5"),
    "a damaged chunk": (flip, "is damaged"),
    "no x": (change("eval", x=None), "needs data sets x and y, found video_id_list, y"),
    "no y": (change("eval", y=None), "needs data sets x and y"),
    "x float64": (change("eval", x=X.astype(np.float64)), "x is float64"),
    "x int8": (change("eval", x=X.astype(np.int8)), "x is int8"),
    "x flat": (change("eval", x=X.reshape(12, 1280)), r"\(12, 1280\)"),
    "x without end": (change("eval", x=np.zeros((1, 2**11, 2**10), np.uint8), y=Y[:1]), r"\(1, 2048, 1024\)"),
    "x without frames": (change("eval", x=X[:, :0]), r"\(12, 0, 128\)"),
    "y text": (change("eval", y=np.full((12, 20), b"yes")), "expected bool"),
    "y floats": (change("eval", y=Y.astype(np.float32)), "expected bool"),
    "y one column": (change("eval", y=Y[:, 0]), "expected bool"),
    "y without classes": (change("eval", y=Y[:, :0]), "expected bool"),
    "y of counts": (change("eval", y=np.full((12, 20), 3, np.uint8)), "other numbers than 0 and 1"),
    "fewer y": (change("eval", y=Y[:11]), "12 examples and 11 rows"),
    "no clips": (change("eval", x=X[:0], y=Y[:0]), "0 examples"),
    "other classes in eval": (change("eval", y=np.zeros((12, 21), bool)), "pack them alike"),
    "other frames in eval": (change("eval", x=X[:, :9]), "pack them alike"),
    "NaN": (
        lambda f: [
            change(n, x=np.full((c, 240, 64), np.nan, np.float32))(f) for n, c in (("bal_train", 12), ("eval", 12))
        ],
        "no finite numbers",
    ),
    "too few names": (write("class_labels_indices.csv", b"index,mid,display_name\n0,/m,Speech\n"), "names 1 classes"),
    "names without a column": (write("class_labels_indices.csv", b"a,b\n1,2\n"), "display_name"),
    "names not UTF-8": (write("class_labels_indices.csv", b"index,mid,display_name\n0,/m,\xff\xfe\n"), "display_name"),
}


@pytest.mark.parametrize("what", BAD)
def test_damaged_files_are_refused(tmp_path, what):
    damage, message = BAD[what]
    source = audioset(tmp_path / "in", classes=20)
    damage(source)
    with pytest.raises(DataError, match=message):
        packed(AudioSet(str(source), "balanced"), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_file_instead_of_a_folder(tmp_path):
    source = audioset(tmp_path / "in")
    with pytest.raises(DataError, match="is no folder"):
        AudioSet(str(source / "eval.h5"))
