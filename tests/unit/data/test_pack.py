"""One shard per data center: complete, idempotent, safe to interrupt, never over other people's files."""

import json
import re

import numpy as np
import pytest

from colearn_hpc.data import pack as pack_module
from colearn_hpc.data.pack import Request, pack, read_manifest
from colearn_hpc.data.shards import ShardDataset, read_info
from colearn_hpc.data.sources.base import Contents, Item, Source, Unreadable
from colearn_hpc.data.sources.digits import Digits
from colearn_hpc.errors import DataError

NAMES = ("lyon", "tokyo", "oslo")


class Numbers(Source):
    """n training and m test examples; example i is (i, split). What it does wrong is set by attributes."""

    name = "numbers"

    def __init__(self, n=30, m=5, multilabel=False):
        self.n, self.m, self.multilabel = n, m, multilabel
        self.fail_at = self.error = None
        self.unreadable = set()
        self.lost = 0
        self.reads = 0

    @classmethod
    def add_arguments(cls, parser):
        pass

    @classmethod
    def from_arguments(cls, options):
        return cls()

    def parameters(self):
        return {"n": self.n, "m": self.m}

    def fingerprint(self):
        return "numbers"

    def labels(self, n):
        return np.tile([[1, 0, -1]], (n, 1)).astype(np.int8) if self.multilabel else np.arange(n) % 3

    def scan(self):
        task = "multilabel" if self.multilabel else "classification"
        labels = {"train": self.labels(self.n)} | ({"test": self.labels(self.m)} if self.m else {})
        return Contents(task, "features", ("x", "y", "z"), labels, notes=("a note",))

    def read(self):
        self.reads += 1
        for number, split, i in [(0, "test", i) for i in range(self.m)] + [
            (1, "train", i) for i in reversed(range(self.n - self.lost))
        ]:
            if split == "train" and i == self.fail_at:
                raise self.error
            if (split, i) in self.unreadable:
                yield Item(split, i, Unreadable(f"{split}{i}", "is broken"))
            else:
                yield Item(split, i, np.array([i, number], dtype=np.float32))

    def sidecars(self):
        return {"words.txt": lambda file: file.write(b"hello")}


def held(folder, name):
    dataset = ShardDataset(folder / f"{name}.h5")
    return dataset[list(range(len(dataset)))]


def test_every_example_is_in_exactly_one_shard(tmp_path):
    result = pack(Numbers(31), Request(tmp_path / "out", NAMES))
    values = np.concatenate([held(tmp_path / "out", name)[0].numpy() for name in NAMES])
    assert sorted(values[:, 0].tolist()) == list(range(31)) and set(values[:, 1]) == {1.0}
    for name in NAMES:
        x, y = held(tmp_path / "out", name)
        assert (x[:, 0] % 3 == y).all()
    assert held(tmp_path / "out", "test")[0][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert [entry["examples"] for entry in result.manifest["centers"]] == [11, 10, 10]
    counts = np.array([entry["class_counts"] for entry in result.manifest["centers"]])
    assert counts.sum(axis=0).tolist() == [11, 10, 10]
    assert (tmp_path / "out" / "words.txt").read_bytes() == b"hello"
    assert result.notes == ("a note",)


def test_several_labels_are_counted_where_they_are_one(tmp_path):
    manifest = pack(Numbers(6, multilabel=True), Request(tmp_path / "out", ("a",))).manifest
    assert manifest["centers"][0]["class_counts"] == [6, 0, 0]


def test_digits_are_the_whole_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    pack(Digits(), Request(tmp_path / "out", NAMES))
    shards = [held(tmp_path / "out", name) for name in (*NAMES, "test")]
    ours = sorted((int(y), x.numpy().tobytes()) for xs, ys in shards for x, y in zip(xs, ys, strict=True))
    theirs = sorted((int(y), x.astype(np.uint8).tobytes()) for x, y in zip(digits.images, digits.target, strict=True))
    assert ours == theirs
    assert np.bincount(shards[-1][1], minlength=10).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert len(shards[-1][1]) == 359


def test_the_test_set_of_digits_does_not_follow_the_seed(tmp_path):
    for seed in (0, 1):
        pack(Digits(), Request(tmp_path / str(seed), NAMES, seed=seed))
    assert (held(tmp_path / "0", "test")[0] == held(tmp_path / "1", "test")[0]).all()
    assert held(tmp_path / "0", "lyon")[0].tolist() != held(tmp_path / "1", "lyon")[0].tolist()


def test_the_same_request_again_does_nothing(tmp_path):
    request = Request(tmp_path / "out", NAMES)
    pack(Numbers(), request)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    source = Numbers()
    result = pack(source, request)
    assert result.already_there and source.reads == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("loss", ["lyon.h5", "test.h5", "dataset.json", "words.txt"])
def test_a_missing_file_is_made_again(tmp_path, loss):
    request = Request(tmp_path / "out", NAMES)
    pack(Numbers(), request)
    if loss == "dataset.json":
        (tmp_path / "out" / "words.txt").unlink()  # sidecars follow the shards, so a killed run has neither
    (tmp_path / "out" / loss).unlink()
    assert not pack(Numbers(), request).already_there
    assert pack(Numbers(), request).already_there


def test_a_damaged_shard_is_made_again(tmp_path):
    request = Request(tmp_path / "out", NAMES)
    pack(Numbers(), request)
    (tmp_path / "out" / "lyon.h5").write_bytes(b"")
    assert not pack(Numbers(), request).already_there
    assert read_info(tmp_path / "out" / "lyon.h5").examples == 10


OTHER = {
    "seed": (Numbers(), {"seed": 1}),
    "rule": (Numbers(), {"rule": "by-class"}),
    "names": (Numbers(), {"names": ("a", "b")}),
    "source parameters": (Numbers(29), {}),
    "source": (Digits(), {}),
    "on_error": (Numbers(), {"on_error": "skip"}),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_request_needs_overwrite(tmp_path, what):
    source, change = OTHER[what]
    first = Request(tmp_path / "out", NAMES)
    pack(Numbers(), first)
    before = read_manifest(tmp_path / "out")
    request = {"out": tmp_path / "out", "names": NAMES} | change
    with pytest.raises(DataError, match=r"holds another data set.*--overwrite"):
        pack(source, Request(**request))
    assert read_manifest(tmp_path / "out") == before
    manifest = pack(source, Request(**request, overwrite=True)).manifest
    files = {entry["file"] for entry in manifest["centers"] + manifest["evaluation"]}
    present = {path.name for path in (tmp_path / "out").glob("*.h5")}
    assert present == files
    assert pack(source, Request(**request)).already_there


def test_a_users_folder_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(DataError, match=r"not empty \(thesis.tex"):
        pack(Numbers(), Request(tmp_path, NAMES))
    pack(Numbers(), Request(tmp_path, NAMES, overwrite=True))
    assert (tmp_path / "thesis.tex").read_text() == "dear"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        pack(Numbers(), Request(tmp_path / "file", NAMES))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("broken"), RuntimeError("bug")])
def test_an_interruption_leaves_nothing_half(tmp_path, error):
    source = Numbers()
    source.fail_at, source.error = 15, error
    with pytest.raises(type(error)):
        pack(source, Request(tmp_path / "out", NAMES))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("after", range(1, 6))
def test_killed_between_two_renames_the_same_call_completes_it(tmp_path, monkeypatch, after):
    """Four shards are renamed one after the other, then comes the manifest: stop at each point."""
    request = Request(tmp_path / "out", NAMES)
    close = pack_module.ShardWriter.close
    closed = []

    def dying_close(self):
        if len(closed) + 1 == after:
            raise KeyboardInterrupt
        closed.append(self)
        close(self)

    def dying_write(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_module.ShardWriter, "close", dying_close)
        patch.setattr(pack_module, "write_atomically", dying_write)
        with pytest.raises(KeyboardInterrupt):
            pack(Numbers(), request)
    assert len(closed) == after - 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {shard.path.name for shard in closed}
    for shard in closed:
        read_info(shard.path)
    with pytest.raises(DataError, match="not empty") if closed else pytest.raises(ZeroDivisionError):
        pack(Numbers(), Request(tmp_path / "out", NAMES, seed=5))
        raise ZeroDivisionError
    if closed:
        pack(Numbers(), request)
    else:
        pack(Numbers(), Request(tmp_path / "out", NAMES, overwrite=True))
    assert pack(Numbers(), request).already_there


def test_no_manifest_of_old_data_stands_beside_new_shards(tmp_path, monkeypatch):
    pack(Numbers(), Request(tmp_path / "out", NAMES))
    monkeypatch.setattr(pack_module, "write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(Numbers(), Request(tmp_path / "out", NAMES, seed=1, overwrite=True))
    assert read_manifest(tmp_path / "out") is None


def test_unreadable_examples_are_refused_or_skipped(tmp_path):
    source = Numbers()
    source.unreadable = {("train", 3), ("test", 0)}
    with pytest.raises(DataError, match=r"test0: is broken. .*--on-error skip"):
        pack(source, Request(tmp_path / "out", NAMES))
    result = pack(source, Request(tmp_path / "out", NAMES, on_error="skip"))
    assert result.skipped == [("test0", "is broken"), ("train3", "is broken")]
    assert sum(entry["examples"] for entry in result.manifest["centers"]) == 29
    assert held(tmp_path / "out", "test")[0][:, 0].tolist() == [1, 2, 3, 4]


def test_a_center_left_without_examples_is_an_error(tmp_path):
    source = Numbers(3)
    source.unreadable = {("train", i) for i in range(3)}
    with pytest.raises(DataError, match="would be empty"):
        pack(source, Request(tmp_path / "out", NAMES, on_error="skip"))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_example_lost_on_the_way_is_noticed(tmp_path):
    source = Numbers()
    source.lost = 1
    with pytest.raises(DataError, match="35 examples were found, 34 were read"):
        pack(source, Request(tmp_path / "out", NAMES))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("a", "a"),
        ("a", "A"),
        ("",),
        ("a/b",),
        ("../a",),
        (".a",),
        ("test",),
        ("Val",),
        ("dataset",),
        ("a b",),
        ("x" * 65,),
    ],
)
def test_names_that_cannot_be_file_names(tmp_path, names):
    with pytest.raises(DataError, match=r"names|centers"):
        pack(Numbers(), Request(tmp_path / "out", names))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "colearn-dataset", "version": 2}', "\0\0"])
def test_a_damaged_manifest_is_an_error(tmp_path, text):
    pack(Numbers(), Request(tmp_path / "out", NAMES))
    (tmp_path / "out" / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=re.escape("dataset.json")):
        pack(Numbers(), Request(tmp_path / "out", NAMES))


def test_the_manifest_holds_no_path_of_this_machine(tmp_path):
    manifest = pack(Numbers(), Request(tmp_path / "out", NAMES)).manifest
    assert str(tmp_path) not in json.dumps(manifest)
